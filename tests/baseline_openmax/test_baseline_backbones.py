"""Every backbone builds with random weights on the CPU and trains a step; sizes, stems, weights and what is refused."""

import os
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from baseline_openmax import backbones
from baseline_openmax.model import Classifier
from baseline_openmax.network import CLASSIFIERS, NECKS, OpenSetNetwork, build_network, is_general, make_neck
from common.errors import UserError

CONSTANTS = ([0.5] * 3, [0.25] * 3)
# Name, image size, features; the paper's numbers.
NETWORKS = [
    ("convnet8", 8, 64), ("convnet28", 28, 32), ("vgg", 32, 1024), ("speednet", 32, 256), ("resnet18", 32, 512),
    ("classifier32", 32, 128), ("resnet50", 32, 2048), ("efficientnet_b0", 32, 1280), ("efficientnet_b4", 32, 1792),
    ("vit_ti16", 32, 192), ("vit_s16", 32, 384), ("dinov2_s14", 28, 384),
    pytest.param("vit_b16", 224, 768, marks=pytest.mark.slow), pytest.param("dinov2_b14", 224, 768, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("name", "size", "dimension"), NETWORKS)
def test_every_backbone_builds_and_trains_one_step(name, size, dimension):
    torch.manual_seed(0)
    timm = not backbones.is_plain(name)
    model = OpenSetNetwork(name, 4, (3, size, size), *CONSTANTS, timm=timm)
    assert model.backbone.dimension == dimension
    images, labels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8), torch.tensor([0, 3])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3)
    before = model.classifier.weight.detach().clone()
    outputs = model(images)
    assert outputs.shape == (2, 4) and model.features(images).shape == (2, dimension)
    torch.nn.functional.cross_entropy(outputs, labels).backward()
    optimizer.step()
    assert not torch.equal(before, model.classifier.weight)
    first = next(p for p in model.backbone.parameters() if p.requires_grad)
    assert first.grad is not None and torch.isfinite(first.grad).all() and first.grad.abs().sum() > 0


def test_the_small_stem_keeps_the_resolution():
    images = torch.zeros(2, 3, 32, 32)
    small, large = (backbones.build("resnet18", 3, 32, stem=stem, timm=True) for stem in ("small", "imagenet"))
    assert small.net.forward_features(images).shape[2:] == (4, 4) and large.net.forward_features(images).shape[2:] == (1, 1)
    small, large = (backbones.build("efficientnet_b0", 3, 32, stem=stem, timm=True) for stem in ("small", "imagenet"))
    assert small.net.forward_features(images).shape[2:] == (2, 2) and large.net.forward_features(images).shape[2:] == (1, 1)


def test_classifier32_has_the_published_shape():
    net = backbones.Classifier32()
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 64] + [128] * 7
    assert [c.stride[0] for c in convolutions] == [1, 1, 2] * 3
    assert net.feature_map(torch.zeros(1, 3, 32, 32)).shape == (1, 128, 4, 4)


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_necks_and_classifiers(neck, classifier):
    model = OpenSetNetwork("convnet8", 4, (1, 8, 8), [0.5], [0.25], neck=neck, neck_dim=10, classifier=classifier, dummies=2)
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    assert model.features(images).shape == (5, 64 if neck == "none" else 10) and model(images).shape == (5, 6)
    again = OpenSetNetwork("convnet8", 4, (1, 8, 8), [0.5], [0.25], neck=neck, neck_dim=10, classifier=classifier, dummies=2)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(images), model.eval()(images))


def test_an_unknown_neck_is_an_error():
    with pytest.raises(ValueError, match="choose from none, linear, mlp, batch_norm"):
        make_neck("deep", 4, 4)


def test_frozen_modules_do_not_move_in_training_mode():
    model = OpenSetNetwork("convnet8", 4, (1, 8, 8), [0.5], [0.25], frozen=True, neck="batch_norm", neck_dim=6).train()
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    model(torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)).sum().backward()
    assert not model.backbone.training and model.neck.training
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
    assert all(p.grad is None for p in model.backbone.parameters()) and model.classifier.weight.grad is not None


def test_image_size_resizes_in_front_of_the_backbone():
    model = OpenSetNetwork("vit_ti16", 3, (1, 28, 28), [0.5], [0.25], image_size=32, timm=True).eval()
    assert model(torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)).shape == (2, 3)


def test_a_plain_header_builds_the_plain_classifier():
    """Checkpoints and records of the plain classifier stay what they are."""
    plain = {"backbone": "convnet8", "classes": 3, "shape": [1, 8, 8], "mean": [0.5], "std": [0.25],
             "width": None, "norm": "batch", "logit_scale": 1.0}  # fmt: skip
    assert not is_general(plain)
    torch.manual_seed(0)
    one = build_network(plain)
    torch.manual_seed(0)
    other = OpenSetNetwork(**plain, dummies=1)
    assert type(one) is Classifier and set(other.state_dict()) - set(one.state_dict()) == {"dummy.weight", "dummy.bias"}
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value)


@pytest.mark.parametrize(
    ("name", "size", "stem", "expected"),
    [
        ("vit_b16", 28, "small", "patches of 16 pixels, these have 28: resize them with --image_size 16 or 32"),
        ("dinov2_s14", 32, "small", "--image_size 28 or 42"),
        ("dinov2_s14", 8, "small", "--image_size 14"),
        ("resnet50", 28, "imagenet", "at least 32 pixels"),
        ("efficientnet_b4", 8, "small", "at least 16 pixels"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(name, size, stem, expected):
    with pytest.raises(UserError, match=expected):
        backbones.check_size(name, size, stem, plain=False)


def test_plain_nets_refuse_images_that_are_too_small():
    with pytest.raises(UserError, match="speednet needs images of at least 27 pixels, these have 8"):
        backbones.check_size("speednet", 8)
    for name, least in backbones.SMALLEST.items():
        model = backbones.build(name, 1, least)
        model.eval()(torch.zeros(1, 1, least, least))


def test_unknown_names_say_what_is_near():
    with pytest.raises(UserError, match="nearest: resnet50"):
        backbones.timm_name("resnet_50")
    with pytest.raises(UserError, match="timm has no network 'resnet51'"):
        backbones.build("timm:resnet51", 3, 32, timm=True)


def test_a_local_file_gives_the_weights(tmp_path):
    torch.manual_seed(1)
    source = backbones.build("vit_ti16", 3, 32, timm=True)
    torch.save(source.net.state_dict(), tmp_path / "weights.pth")
    torch.manual_seed(2)
    model = backbones.build("vit_ti16", 3, 32, timm=True, weights=str(tmp_path / "weights.pth"))
    for key, value in source.net.state_dict().items():
        torch.testing.assert_close(model.net.state_dict()[key], value)
    with pytest.raises(UserError, match="there is no file"):
        backbones.build("vit_ti16", 3, 32, timm=True, weights=str(tmp_path / "none.pth"))
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not fit vit_ti16"):
        backbones.build("vit_ti16", 3, 32, timm=True, weights=str(tmp_path / "other.pth"))


def test_without_network_pretrained_weights_are_one_clear_error(tmp_path):
    code = ("from baseline_openmax import backbones\nfrom common.errors import UserError\n"
            "try:\n    backbones.build('vit_ti16', 3, 32, timm=True, pretrained=True)\n"
            "except UserError as error:\n    print(error)")  # fmt: skip
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=offline,
                          cwd=backbones.__file__.rsplit("/", 2)[0])  # fmt: skip
    assert "--pretrained false" in done.stdout and "--backbone_weights FILE" in done.stdout, done.stderr
    assert "\n" not in done.stdout.strip()


@pytest.mark.parametrize(
    ("given", "general"),
    [({}, set()), ({"neck": "mlp"}, {"neck", "neck_dim"}), ({"image_size": 16, "backbone": "convnet8"}, {"image_size"}),
     ({"kplus1": ["mixup"]}, {"dummies"}), ({"backbone": "classifier32"}, {"neck"}),
     ({"backbone": "resnet50", "image_size": 32}, {"timm", "stem", "image_size"})],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)  # fmt: skip
def test_settings_are_general_only_where_a_flag_asks_for_it(given, general):
    from baseline_openmax.main import model_settings, parse_arguments
    from common.datasets import prepare

    args = Namespace(**(vars(parse_arguments([])) | given))
    settings = model_settings(args, prepare("digits", "first-6", []))
    plain = {"backbone", "classes", "shape", "mean", "std", "width", "norm", "logit_scale"}
    assert set(settings) - plain == general
    build_network(settings)
