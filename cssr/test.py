"""Evaluate a trained CSSR network in the open set: its three scores, their fusion, metrics of every unknown set.

    python cssr/test.py --save NAME                                  # the fused score on a run's own unknown classes
    python cssr/test.py --save NAME --score fused s0 s1 s2 msp --unknown omniglot noise
    python cssr/test.py --save NAME --ds ./exps/cifar10/all_vs_lsun_crop.json
    python cssr/test.py --save NAME --images my_digit.png folder/    # class or "unknown" for own pictures
"""

from __future__ import annotations

import time

from common.arguments import ScriptParser, add_common_arguments, parse, run_script

PAPER = "cssr"
SCORE_NAMES = ("fused", "s0", "s1", "s2", "rre", "fm", "msp", "mls")


def get_args_parser() -> ScriptParser:
    from pathlib import Path

    from common.evaluation import add_evaluation_arguments
    from cssr.data import add_path_arguments

    parser = ScriptParser(description=__doc__.split("\n")[0])
    group = add_evaluation_arguments(parser, SCORE_NAMES, ["fused"], "those of --ds or of the run's experiment file, else rest")
    group.add_argument("--images", nargs="+", metavar="FILE|DIR",
                       help="judge own pictures instead: class or unknown at the threshold of the last evaluation")
    group.add_argument("--ds", metavar="FILE", help="experiment whose unknown sets are tested; it must know the run's classes")
    group.add_argument("--feature_dir", type=Path, metavar="DIR", help="features of a frozen backbone, as in main.py")
    add_path_arguments(parser)
    add_common_arguments(parser, train=False)
    return parser


def open_set_data_of(trained, args):
    """The data that a checkpoint's header names, with the unknown sets of the flags; its classes must be the header's."""
    from common.datasets import find_split
    from common.errors import UserError
    from cssr.data import UnknownSet, open_set_data
    from cssr.experiments import read_experiment

    config, names = trained.header["data"], trained.header["class_names"]
    if args.ds and args.unknown:
        raise UserError("--ds and --unknown both name unknown sets: give one of them")
    unknown = args.unknown or config.get("unknown_sets") or ["rest"]
    if args.ds:
        asked = read_experiment(args.ds)
        known = find_split(config["known_dataset"], config["split"]).known
        if (asked.dataset, find_split(asked.dataset, asked.split).known) != (config["known_dataset"], known):
            count = len(find_split(asked.dataset, asked.split).known)
            raise UserError(f"the checkpoint knows {len(names)} classes of {config['known_dataset']} ({config['split']}),"
                            f" --ds {args.ds} {count} of {asked.dataset} ({asked.split})")  # fmt: skip
        unknown = list(asked.unknown)
    unknown = [UnknownSet(part["dataset"], part["classes"] and tuple(part["classes"])) if isinstance(part, dict) else part
               for part in unknown]  # fmt: skip
    args.image_size = args.image_size or config.get("image_size")
    data = open_set_data(
        config["known_dataset"], config["split"], unknown, args, validation_share=config["validation_share"],
        seed=config["seed"], subset=args.subset or config["subset"], released_noise=args.released_noise, odin_crop=args.odin_crop,
    )  # fmt: skip
    if list(data.class_names) != names:
        raise UserError(f"the checkpoint knows {len(names)} classes {names[:10]}, the data gives {len(data.class_names)}:"
                        f" {list(data.class_names[:10])}")  # fmt: skip
    return data


def trained_network(args, devices):
    """`(Trained, CSSR)`: the checkpoint that the flags name, and its network on the device, in evaluation mode.

    Raises
    ------
    UserError
        Nothing there, or a score that the network cannot give.
    """
    from common.errors import UserError
    from common.evaluation import Trained
    from cssr.pretrained import build_network

    trained = Trained(args, PAPER)
    if trained.header["model"]["model"] == "linear" and "rre" in args.score:
        raise UserError("--score rre needs auto-encoders: the linear baseline has no reconstruction error")
    if "s2" in args.score and not trained.tensors["statistics.gram_mean"].shape[1]:
        raise UserError("--score s2 needs Gram statistics: the run was trained with --without_gram (or cssr_ft)")
    if "s1" in args.score and trained.tensors["statistics.class_share"].isnan().all():
        raise UserError("--score s1 needs training statistics: train with --integrate_score S[0]+S[1]")
    model = build_network(trained.header["model"])
    trained.fill(model)
    return trained, devices.setup(model).eval()


def main(argv=None) -> None:
    args = parse(get_args_parser(), argv)
    import numpy as np

    from common.detector import verdicts
    from common.devices import Devices
    from common.evaluation import parts_to_score, report
    from common.inference import evaluation_parts
    from cssr.api import Detector
    from cssr.data import place_data_sets
    from cssr.evaluation import arrays_of
    from cssr.expressions import scored_by

    place_data_sets(args)
    if args.images:
        print("\n".join(verdicts(Detector.from_arguments(args), args.images)))
        return
    devices = Devices(args)
    trained, model = trained_network(args, devices)
    header = trained.header
    kind = header["model"]["model"]
    data = open_set_data_of(trained, args)
    begun = time.monotonic()
    if header["model"].get("frozen") and header["data"].get("feature_views") != 0:
        data = featured(data, model, devices, args, trained.directory)
    streamed = hasattr(data.test.pixels, "files") or isinstance(data.test.pixels, np.memmap)
    # Scores of a streamed training part would take gigabytes: only when they are asked for.
    parts = evaluation_parts(data, args.train_scores) if streamed else parts_to_score(args, data)
    arrays = arrays_of(model, trained.tensors, parts, devices, args.batch_size)
    arrays["class_names"] = np.array(data.class_names)
    seconds = time.monotonic() - begun

    def method(name: str) -> str:
        return f"{kind}-{name}"

    report(args, trained, data, args.score, lambda name: scored_by(name, header, trained.tensors, arrays), seconds, argv, method)


def featured(data, model, devices, args, directory):
    """The data with the features of a frozen backbone, from the cache that training filled where it is there."""
    from dataclasses import replace

    from cssr.features import FeatureCache, default_folder

    cache = FeatureCache(directory / "features" if args.dry_run else args.feature_dir or default_folder(), model, devices)
    train = cache.features_of(data.train) if args.train_scores else data.train
    others = {name: cache.features_of(images) for name, images in data.unknown.items()}
    validation = data.validation and cache.features_of(data.validation)
    return replace(data, train=train, test=cache.features_of(data.test), validation=validation, unknown=others)


if __name__ == "__main__":
    run_script(main)
