"""From flags to the network: its constructor arguments, its first weights, and what is refused before training."""

from __future__ import annotations

from collections.abc import Mapping

from common.errors import UserError


def model_settings(args, data) -> dict:
    """Constructor arguments of the network for a data set; those of the plain classifier wherever that one is enough.

    Raises
    ------
    UserError
        An unknown backbone, a size it cannot take, a flag that it has no use for.
    """
    from baseline_openmax import backbones
    from baseline_openmax.model import BACKBONE_FOR_SIZE
    from common.training import fitting_backbone

    shape = data.train.pixels.shape[1:]
    size = args.image_size or int(shape[1])
    backbone = fitting_backbone(args.backbone, size, BACKBONE_FOR_SIZE)
    plain = backbones.is_plain(backbone, args.pretrained, args.backbone_weights, args.stem)
    stem = None
    if plain and (args.pretrained or args.backbone_weights or args.stem):
        raise UserError(f"backbone {backbone} is a plain net: --pretrained, --backbone_weights and --stem are for those of timm")
    if not plain:
        backbones.timm_name(backbone)  # an unknown name ends here
        own = args.pretrained or args.backbone_weights is not None
        stem = args.stem or backbones.default_stem(backbone, size, own)
    backbones.check_size(backbone, size, stem, plain)
    mean, std = data.train.mean_std()
    if args.pretrained or args.backbone_weights:
        mean, std = backbones.normalisation_of(backbone)
        mean, std = mean[: shape[0]], std[: shape[0]]
    settings = {"backbone": backbone, "classes": len(data.class_names), "shape": list(map(int, shape)),
            "mean": [round(float(v), 6) for v in mean], "std": [round(float(v), 6) for v in std],
            "width": args.width, "norm": args.norm, "logit_scale": args.logit_scale}  # fmt: skip
    own = _general(args, settings, plain, stem)
    rest = len(data.train) % args.batch_size
    if own and not args.drop_last and rest and rest <= (2 if args.kplus1 and "mixup" in args.kplus1 else 1):
        raise UserError(f"the last batch of an epoch would have {rest} of {len(data.train)} images, too few for BatchNorm:"
                        " give --drop_last or another --batch_size")
    return settings | own


def _general(args, settings: Mapping, plain: bool, stem: str | None) -> dict:
    """What the general network has beyond the plain classifier; empty when nothing asks for it."""
    own = {}
    if args.image_size and args.image_size != settings["shape"][1]:
        own["image_size"] = args.image_size
    if args.neck != "none":
        own |= {"neck": args.neck, "neck_dim": args.neck_dim}
    if args.classifier != "linear":
        own["classifier"] = args.classifier
    if args.kplus1:
        own["dummies"] = args.dummies
    if args.frozen:
        own["frozen"] = True
    if not plain:
        own |= {"timm": True, "stem": stem}
    if not own and settings["backbone"] == "classifier32":
        own["neck"] = "none"
    return own


def new_network(args, settings: Mapping, data):
    """The network with its first weights: random, published, of a file, or of a run (`--start_from`)."""
    import torch

    from baseline_openmax.network import OpenSetNetwork, build_network
    from baseline_openmax.sized_backbones import check_passes

    starts = {}
    if args.pretrained or args.backbone_weights:
        starts = {"pretrained": args.pretrained, "weights": args.backbone_weights}
    model = OpenSetNetwork(**settings, **starts) if starts else build_network(settings)
    if settings.get("timm"):
        check_passes(model, settings["backbone"], settings["shape"], settings.get("image_size", settings["shape"][1]))
    if args.start_from:
        fill_from(model, args.start_from, data.class_names, data_settings(args, data))
    elif hasattr(model.backbone, "whiten"):
        model.backbone.whiten(model.normalise(torch.from_numpy(data.train.pixels[:5000])))
    return model


def run_or_file(where):
    """A run directory given by its path or name, else what was given (a file or a manifest name)."""
    from common.run import find_run

    try:
        return find_run("baseline_openmax", where)
    except UserError:
        return where


def data_settings(args, data) -> dict:
    """What decides which images are trained on and which are held out, as weights tell it (`header["data"]`)."""
    return {"known_dataset": args.known_dataset, "split": data.split.name, "seed": args.seed,
            "validation_share": args.validation_share, "subset": args.subset}  # fmt: skip


def outliers_shown(args) -> list[str]:
    """Outlier sets of this run and of the one that it starts from: all are known to the network."""
    from common.checkpoints import load_weights

    earlier = load_weights(run_or_file(args.start_from), paper="baseline_openmax")[1] if args.start_from else {}
    return list(dict.fromkeys([*earlier.get("outliers", ()), *(args.outliers or ())]))


def fill_from(model, source: str, class_names, wanted_data: Mapping) -> None:
    """Load a run's weights; only the dummy logits may be missing there.

    Raises
    ------
    UserError
        Other known classes, other training images (`data_settings`), or weights of another network.
    """
    from common.checkpoints import load_weights
    from common.datasets import resolve_name

    tensors, header = load_weights(run_or_file(source), paper="baseline_openmax")
    if list(header["class_names"]) != list(class_names):
        raise UserError(f"--start_from {source} knows {header['class_names']}, this run {list(class_names)}: give its --split")
    theirs = header["data"] | {"known_dataset": resolve_name(header["data"]["known_dataset"])}
    ours = wanted_data | {"known_dataset": resolve_name(wanted_data["known_dataset"])}
    differing = [key for key in ours if theirs.get(key) != ours[key]]
    if differing:
        said = ", ".join(f"--{key} {theirs.get(key)} there, {ours[key]} here" for key in differing)
        raise UserError(f"--start_from {source} was trained on other images ({said}): it may have seen what this run holds"
                        " out; give its flags")
    found = {key: value for key, value in tensors.items() if not key.startswith("statistics.")}
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in found and not key.startswith("dummy.")]
    other = [key for key in found if key not in wanted or found[key].shape != wanted[key].shape]
    if missing or other:
        raise UserError(f"--start_from {source} is another network than the flags describe ({(missing + other)[0]} differs):"
                        " give the flags or the preset that trained it")
    model.load_state_dict(wanted | found)
