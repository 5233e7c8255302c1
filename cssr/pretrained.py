"""CSSR on pretrained backbones, frozen or not: torchvision's and timm's networks, and the weights for them."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from common.backbones import Backbone, Normalise
from common.errors import UserError
from cssr.backbones import Projected, build_backbone
from cssr.model import CSSR, LinearHead, ReconstructionHead

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Name in the configuration files: torchvision's network, and its published weights.
TORCHVISION = {
    "prt_r18": ("resnet18", None),
    "prt_r34": ("resnet34", None),
    "prt_r50": ("resnet50", None),
    "prt_pytorchr18": ("resnet18", "ResNet18_Weights"),
    "prt_pytorchr34": ("resnet34", "ResNet34_Weights"),
    "prt_pytorchr50": ("resnet50", "ResNet50_Weights"),
    "prt_dinor50": ("resnet50", None),
}
# Where the release expects DINO's ResNet-50, below the folder of this paper or the working directory.
DINO_FILE = "model_weights/dino_resnet50_pretrain.pth"
TIMM = "timm/"
# The backbone that fits an image size beyond those of `cssr.backbones`.
LARGE_IMAGES = {224: "prt_r18"}


class PretrainedResNet(Backbone):
    """torchvision's ResNet up to its last feature map, `(512 or 2048, H/32, W/32)`."""

    def __init__(self, name: str):
        super().__init__()
        import torchvision

        net = getattr(torchvision.models, name)(num_classes=1)
        self.channels = self.dimension = net.fc.in_features
        net.fc = nn.Identity()
        self.net = net

    def feature_map(self, images):
        net = self.net
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))


class TimmBackbone(Backbone):
    """A convolutional network of timm up to its last feature map."""

    def __init__(self, name: str):
        super().__init__()
        self.net = _timm_model(name)
        self.channels = self.dimension = self.net.num_features

    def feature_map(self, images):
        found = self.net.forward_features(images)
        if found.ndim != 4 or found.shape[1] != self.channels:
            raise UserError(f"this network of timm gives features {tuple(found.shape)}, not a map (N, {self.channels}, h, w)")
        return found


def timm_module(name: str):
    """The library timm; a `UserError` says how to get it."""
    try:
        import timm
    except ImportError:
        raise UserError(f"backbone {name} needs timm: pip install timm") from None
    return timm


def _timm_model(name: str, pretrained: bool = False) -> nn.Module:
    timm = timm_module(TIMM + name)
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="")
    except RuntimeError as error:
        raise UserError(f"timm has no backbone {name!r}: {error}") from None


def is_pretrained(name: str) -> bool:
    """Whether a name means a network of this module (torchvision's or timm's)."""
    return name in TORCHVISION or name.startswith(TIMM)


def has_weights(name: str) -> bool:
    """Whether published weights come with the name."""
    return name == "prt_dinor50" or name.startswith(TIMM) or TORCHVISION.get(name, ("", None))[1] is not None


def build_pretrained(name: str) -> Backbone:
    """The network called `prt_...` or `timm/...`, with random weights."""
    return TimmBackbone(name.removeprefix(TIMM)) if name.startswith(TIMM) else PretrainedResNet(TORCHVISION[name][0])


def normalisation_of(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that a pretrained network was trained with, per channel on the 0..1 scale."""
    if name.startswith(TIMM):
        config = timm_module(name).get_pretrained_cfg(name.removeprefix(TIMM))
        return (tuple(config.mean), tuple(config.std)) if config else (IMAGENET_MEAN, IMAGENET_STD)
    return IMAGENET_MEAN, IMAGENET_STD


def read_backbone(settings: dict, args) -> dict[str, torch.Tensor] | None:
    """Weights for the backbone of the network's settings: those of `--backbone_weights`, else the published ones of its name.

    Returns
    -------
    dict or None
        Tensors by the backbone's own names; None for a backbone that starts at random.

    Raises
    ------
    UserError
        They are not to be had, or of another network; a dry run goes on with random ones where they cannot be fetched.
    """
    name, source = settings["backbone"], args.backbone_weights
    if source is None and not has_weights(name):
        return None
    try:
        state, label = _state(name, source)
    except UserError as error:
        if source is not None or not args.dry_run:
            raise
        print(f"warning: {error}; this dry run takes random weights", file=sys.stderr)
        return None
    plain = {key: settings[key] for key in ("width", "norm", "standard_wrn")}
    with torch.device("meta"):
        empty = network(name, settings["shape"][0], settings["shape"][1], **plain)
    return fitting_state(empty, state, label)


def fill_backbone(model: CSSR, state: dict[str, torch.Tensor] | None) -> None:
    """Load the tensors of `read_backbone`, if there are any."""
    if state is not None:
        backbone = model.backbone.backbone if isinstance(model.backbone, Projected) else model.backbone
        backbone.load_state_dict(backbone.state_dict() | state)


def is_state_dict(source: str) -> bool:
    """Whether weights are named by a file of tensors alone, without a header of this repository."""
    return Path(source).suffix in (".pth", ".pt", ".tar", ".bin") and Path(source).is_file()


def _state(name: str, source: str | None) -> tuple[dict[str, torch.Tensor], str]:
    """Tensors of a source, or the published ones of a name, and where they came from."""
    if source is not None:
        return _read_weights(source), source
    if name == "prt_dinor50":
        from cssr.configuration import FOLDER

        places = [place / DINO_FILE for place in (Path.cwd(), FOLDER)]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise UserError(f"prt_dinor50 needs DINO's ResNet-50 weights in {places[1]}, or --backbone_weights FILE")
        return _read_weights(str(found)), str(found)
    try:
        if name.startswith(TIMM):
            return _timm_model(name.removeprefix(TIMM), pretrained=True).state_dict(), name
        import torchvision

        weights = getattr(torchvision.models, TORCHVISION[name][1]).IMAGENET1K_V1
        return dict(weights.get_state_dict(progress=False, check_hash=True)), str(weights)
    except UserError:
        raise
    except Exception as error:  # every library has its own errors for "no connection"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the weights of {name} could not be fetched ({reason}); fetch them elsewhere and give"
                        " --backbone_weights FILE") from None


def _read_weights(source: str) -> dict[str, torch.Tensor]:
    """Tensors of a state-dict file, or of a run or checkpoint of this folder; nothing in the file is executed."""
    if is_state_dict(source):
        try:
            content = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{source} is not readable as weights only: {str(error).splitlines()[0]}") from None
        for key in ("state_dict", "model", "teacher"):
            content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
        if not isinstance(content, dict):
            raise UserError(f"{source} holds a {type(content).__name__}, expected tensors by name")
        return {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    from common.checkpoints import load_weights

    tensors, _ = load_weights(source, paper="cssr")
    return {key.removeprefix("backbone."): value for key, value in tensors.items() if key.startswith("backbone.")}


def fitting_state(backbone: nn.Module, state: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """The tensors of `state` under the backbone's own names, whatever usual prefix they have.

    Raises
    ------
    UserError
        They are of another network.
    """
    wanted = backbone.state_dict()
    for prefix in ("", "module.", "backbone.", "module.backbone."):
        for own in ("", "net."):
            found = {own + key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            fits = {key: value for key, value in found.items() if key in wanted and value.shape == wanted[key].shape}
            missing = [key for key in wanted if key not in fits and not key.endswith("num_batches_tracked")]
            if not missing:
                unused = sorted(found.keys() - fits.keys())
                if unused:
                    print(f"note: {source}: {len(unused)} tensors not used: {', '.join(unused[:4])}")
                return fits
    raise UserError(f"{source} does not fit the backbone: {len(wanted)} tensors such as {next(iter(wanted))} expected,"
                    f" {len(state)} found such as {next(iter(state), 'none')}")


class PretrainedCSSR(CSSR):
    """CSSR on a network of this module, or on any frozen backbone (`--method cssr_ft`).

    Parameters
    ----------
    model, backbone, classes, shape, mean, std, projection_dim, ae_hidden, ae_latent, gamma, error_measure, arch_type, mirror_test
        As of `CSSR`; `backbone` also `prt_...` or `timm/...`.
    frozen : bool
        The backbone is not trained; the projection then belongs to the head: 1x1 convolution, BatchNorm, LeakyReLU(.01). Input in
        half precision is taken for feature maps of the backbone, computed before.
    plain : keyword arguments
        `width`, `norm`, `standard_wrn` of `cssr.backbones.build_backbone`.
    """

    def __init__(
        self, model, backbone, classes, shape, mean, std, *, frozen=False, projection_dim=-1, ae_hidden=(), ae_latent=64,
        gamma=0.1, error_measure="L1", arch_type="softmax_avg", mirror_test=False, **plain,
    ):  # fmt: skip
        nn.Module.__init__(self)  # not CSSR's, which knows the networks for small images only
        self.kind, self.arch_type, self.mirror_test, self.frozen = model, arch_type, mirror_test, frozen
        self.normalise = Normalise(mean, std)
        self.backbone = network(backbone, shape[0], shape[1], **plain)
        channels, self.projection = self.backbone.channels, nn.Identity()
        if frozen:
            self.backbone.requires_grad_(False).eval()
        if projection_dim > 0 and frozen:
            layers = nn.Conv2d(channels, projection_dim, 1), nn.BatchNorm2d(projection_dim), nn.LeakyReLU(0.01)
            self.projection, channels = nn.Sequential(*layers), projection_dim
        elif projection_dim > 0:
            self.backbone, channels = Projected(self.backbone, projection_dim), projection_dim
        if model == "linear":
            self.head = LinearHead(classes, channels, gamma)
        else:
            self.head = ReconstructionHead(model, classes, channels, ae_latent, ae_hidden, gamma, error_measure)

    def train(self, mode: bool = True):
        """Training mode; a frozen backbone's BatchNorm keeps its statistics."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def backbone_map(self, images: torch.Tensor) -> torch.Tensor:
        """Feature map of the backbone, `(N, C, h, w)`, of uint8 images `(N, C, H, W)` (floats count as normalised already)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return super().feature_map(images)

    def feature_map(self, images: torch.Tensor) -> torch.Tensor:
        """Feature map that the head takes: of images, or of the frozen backbone's feature maps in half precision."""
        computed = self.frozen and images.dtype == torch.float16
        return self.projection(images.float() if computed else self.backbone_map(images))


def network(name: str, channels: int, size: int, **plain) -> Backbone:
    """A backbone of this module or of `cssr.backbones`, without projection."""
    if not is_pretrained(name):
        return build_backbone(name, channels, size, **plain)
    if channels != 3:
        raise UserError(f"backbone {name} takes colour images, these have {channels} channel")
    return build_pretrained(name)


def build_network(settings: dict) -> CSSR:
    """The network that a checkpoint's header (`model`) describes."""
    special = settings.get("frozen") or is_pretrained(settings["backbone"])
    return (PretrainedCSSR if special else CSSR)(**settings)
