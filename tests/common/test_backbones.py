"""Every backbone has the feature map and pooled features it promises; the speed net's stem whitens."""

import pytest
import torch

from baseline_openmax.model import Classifier, mirrored
from common.backbones import BACKBONES, GlobalBatchNorm2d, Normalise, SpeedNet
from common.errors import UserError

SIZES = {"convnet8": 8, "convnet28": 28, "vgg": 32, "speednet": 32, "resnet18": 32}
MAPS = {"convnet8": (64, 4, 4), "convnet28": (32, 7, 7), "vgg": (256, 4, 4), "speednet": (256, 3, 3), "resnet18": (512, 4, 4)}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", BACKBONES)
def test_shapes_and_one_training_step(name, channels):
    net = BACKBONES[name](in_channels=channels, image_size=SIZES[name])
    images = torch.randn(2, channels, SIZES[name], SIZES[name])
    feature_map = net.feature_map(images)
    assert feature_map.shape == (2, *MAPS[name])
    assert net.channels == feature_map.shape[1]
    pooled = net(images)
    assert pooled.shape == (2, net.dimension)
    torch.testing.assert_close(net.eval().pool(net.feature_map(images)), net(images))
    pooled.square().sum().backward()
    for parameter_name, parameter in net.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, parameter_name


def test_normalise_equals_torchvision():
    from torchvision.transforms.v2.functional import normalize

    images = torch.randint(0, 256, (3, 3, 5, 5), dtype=torch.uint8)
    mean, std = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
    normalised = Normalise(mean, std)(images)
    torch.testing.assert_close(normalised, normalize(images / 255, mean, std))
    assert Normalise(mean, std)(normalised) is normalised


def test_whitening_decorrelates_training_patches():
    torch.manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(200, 3, 34, 34), 3, 1)
    net = SpeedNet()
    net.whiten(smooth, eps=0.0)
    out = net.whitening(smooth)
    positive, negative = out[:, :12], out[:, 12:]
    torch.testing.assert_close(positive, -negative)
    rows = positive.permute(0, 2, 3, 1).reshape(-1, 12).double()
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(12, dtype=torch.float64), atol=1e-3, rtol=0)
    assert not net.whitening.weight.requires_grad and net.whitening.bias.requires_grad


def test_identity_start_passes_channels_on():
    conv = SpeedNet()._conv(24, 64)
    images = torch.randn(1, 24, 6, 6)
    torch.testing.assert_close(conv(images)[:, :24], images)


def test_mirrored_logits_do_not_see_the_mirror():
    torch.manual_seed(0)
    net = Classifier("convnet8", 4, (1, 8, 8), [0.3], [0.3]).eval()
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(mirrored(net, images), mirrored(net, images.flip(-1)))


def test_speed_logits_have_no_bias_and_are_scaled():
    net = Classifier("speednet", 6, (3, 32, 32), [0.5] * 3, [0.25] * 3, logit_scale=1 / 9).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert net.classifier.bias is None
    torch.testing.assert_close(net(images), net.classifier(net.features(images)) / 9)


def test_norms_that_processes_cannot_share_are_refused():
    from common.devices import refuse_local_norms

    shared = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    GlobalBatchNorm2d.convert(shared)
    refuse_local_norms(shared)
    with pytest.raises(UserError, match=r"BatchNorm1d, which cannot be shared.*--devices 1"):
        refuse_local_norms(torch.nn.Sequential(*shared, torch.nn.BatchNorm1d(4)))
