"""K+1 training: losses by hand, gradients, a 2-D problem where the truth is known, outliers that are refused."""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from baseline_openmax import kplus1, scores
from baseline_openmax.network import OpenSetNetwork
from baseline_openmax.objectives import Objective, energy_hinges, uniform_loss
from baseline_openmax.outliers import OutlierBatches, refuse_overlap, shuffled_blocks
from common.datasets import find_split
from common.datasets.batches import generator_for
from common.errors import UserError


def flags(**given):
    return Namespace(**({"kplus1": None, "osr_head": None, "outlier_weight": None, "label_smoothing": 0.0, "seed": 0,
                         "placeholder_weight": 1.0, "mixup_weight": 1.0, "mixup_alpha": 1.0, "known_margin": -8.0,
                         "unknown_margin": -4.0} | given))  # fmt: skip


def test_losses_by_hand():
    outputs = torch.tensor([[2.0, 0.0, -1.0, 0.5]])  # two classes, two dummies: the largest dummy counts
    both, label = kplus1.joined(outputs, 2), torch.tensor([0])
    torch.testing.assert_close(both, torch.tensor([[2.0, 0.0, 0.5]]))
    log_all = math.log(sum(map(math.exp, (2.0, 0.0, 0.5))))
    assert float(kplus1.known_loss(both, label)) == pytest.approx(log_all - 2.0)
    assert float(kplus1.unknown_loss(both)) == pytest.approx(log_all - 0.5)
    assert float(kplus1.placeholder_loss(both, label)) == pytest.approx(math.log(1 + math.exp(0.5)) - 0.5)
    with pytest.raises(UserError, match="needs dummy logits"):
        kplus1.joined(outputs[:, :2], 2)


def test_energy_hinges_and_uniform_loss_by_hand():
    known, outlying = torch.tensor([[9.0, -50.0], [5.0, -50.0]]), torch.tensor([[6.0, -50.0]])
    # Energies -9, -5 against -8: excess 0 and 3; -6 against -4: short of 2.
    assert float(energy_hinges(known, outlying, -8.0, -4.0)) == pytest.approx((0 + 9) / 2 + 4)
    assert float(uniform_loss(torch.zeros(3, 5))) == pytest.approx(math.log(5))
    assert float(uniform_loss(torch.tensor([[4.0, 0.0]]))) > math.log(2)


def test_mixed_pairs_never_share_a_class():
    labels = torch.from_numpy(np.random.RandomState(0).randint(0, 4, 200))
    kept, partner = kplus1.different_partners(labels, generator_for(0, 1))
    assert len(kept) == 200 and (labels[kept] != labels[partner]).all()
    assert not len(kplus1.different_partners(torch.zeros(5, dtype=torch.int64), generator_for(0))[0])
    share = kplus1.mixing_shares(5000, 2.0, generator_for(0))
    assert float(share.mean()) == pytest.approx(0.5, abs=0.01) and float(share.var()) == pytest.approx(0.05, abs=0.005)


def network(dummies=2, **options):
    torch.manual_seed(0)
    return OpenSetNetwork("convnet8", 3, (1, 8, 8), [0.5], [0.5], width=4, dummies=dummies, **options)


def test_mixing_mixes_the_hidden_map_only_inside_its_context():
    model = network(norm="none").eval()
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    plain = model(images)
    with model.mixing(torch.tensor([1, 2, 0]), torch.tensor([1.0, 0.0, 0.5])):
        mixed = model(images)
    torch.testing.assert_close(mixed[0], plain[0])  # share 1: itself
    torch.testing.assert_close(mixed[1], plain[2])  # share 0: the partner
    assert not torch.allclose(mixed[2], plain[2])
    torch.testing.assert_close(model(images), plain)


@pytest.mark.parametrize(
    "given",
    [
        {"osr_head": "kplus1", "kplus1": ["placeholder"]},
        {"osr_head": "kplus1", "kplus1": ["mixup"]},
        {"osr_head": "kplus1", "kplus1": ["oe"]},
        {"osr_head": "kplus1", "kplus1": ["placeholder", "mixup", "oe"]},
        {"osr_head": "energy"},
        {"osr_head": "msp"},
    ],
    ids=lambda given: "+".join(given.get("kplus1", [given["osr_head"]])),
)
def test_the_loss_reaches_every_parameter_of_the_unknown_score(given):
    """deep-osr scored with heads that no loss ever reached."""
    model = network(dummies=1 if "kplus1" in given else 0)
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
    outliers = OutlierBatches(torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8), seed=0)
    drawn = outliers if given["osr_head"] != "kplus1" or "oe" in given["kplus1"] else None
    Objective(flags(**given), 3, model, drawn)(model, images, torch.arange(16) % 3).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


class Plane(nn.Module):
    """A net for points of the plane with dummy logits: `mixing` as the image network has it."""

    mixing = OpenSetNetwork.mixing

    def __init__(self, classes):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.layers = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, classes + 1)

    def forward(self, points):
        return self.head(self.backbone.layers(points))


@pytest.mark.parametrize("way", ["placeholder", "mixup", "oe"])
@pytest.mark.parametrize("seed", [0, 1])
def test_points_between_the_classes_score_higher_than_points_of_the_classes(way, seed):
    torch.manual_seed(seed)
    angle = torch.arange(3) * 2 * math.pi / 3
    centres = 2 * torch.stack((angle.cos(), angle.sin()), 1)
    labels = torch.arange(300) % 3
    points = centres[labels] + 0.2 * torch.randn(300, 2)
    between = torch.cat(((centres + centres.roll(1, 0)) / 2, torch.zeros(1, 2)))
    model = Plane(3)

    class Wide:
        """Outliers all over the plane."""

        def draw(self, count, step, epoch):
            return 6 * torch.rand(count, 2, generator=torch.Generator().manual_seed(step)) - 3

    args = flags(osr_head="kplus1", kplus1=[way], mixup_weight=1.0)
    objective = Objective(args, 3, model, Wide() if way == "oe" else None)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(150):
        optimizer.zero_grad()
        objective(model, points, labels, step).backward()
        optimizer.step()
    with torch.no_grad():
        outputs = [model(x).double().numpy() for x in (points, between)]
    on, off = (scores.kplus1(o[:, :3], o[:, 3:].max(1)) for o in outputs)
    assert (outputs[0][:, :3].argmax(1) == labels.numpy()).mean() > 0.98
    assert off.mean() > on.mean() + 1


def test_shuffled_blocks_are_the_same_blocks_in_another_order():
    pixels = np.random.RandomState(0).randint(0, 256, (3, 2, 9, 9), dtype=np.uint8)
    made = shuffled_blocks(pixels, seed=1)
    np.testing.assert_array_equal(made[:, :, 8:], pixels[:, :, 8:])
    np.testing.assert_array_equal(made, shuffled_blocks(pixels, seed=1))

    def blocks(image):
        return sorted(image[:, r : r + 2, c : c + 2].tobytes() for r in range(0, 8, 2) for c in range(0, 8, 2))

    assert all(blocks(a) == blocks(b) for a, b in zip(made, pixels)) and not np.array_equal(made, pixels)
    with pytest.raises(UserError, match="too small"):
        shuffled_blocks(pixels[:, :, :3], 0)


def test_outliers_that_contain_test_unknowns_or_known_classes_are_refused():
    digits, names = find_split("digits", "first-6"), [str(n) for n in range(10)]
    with pytest.raises(UserError, match="known data set itself"):
        refuse_overlap("digits", names, "digits", digits, names)
    with pytest.raises(UserError, match=r"show test unknowns \(6, 7, 8, 9\)"):
        refuse_overlap("mnist", names, "digits", digits, names)
    with pytest.raises(UserError, match=r"show known classes \(0, 1\)"):
        refuse_overlap("mnist", ["0", "1"], "digits", digits, names)
    plus = find_split("cifar10", "arpl-plus10-0")
    with pytest.raises(UserError, match="unknown classes of split arpl-plus10-0 come from it"):
        refuse_overlap("cifar100", ["apple"], "cifar10", plus, [str(n) for n in range(10)])
    tiny = find_split("tinyimagenet", "arpl-0")
    with pytest.raises(UserError, match="made from images of the classes of tinyimagenet"):
        refuse_overlap("imagenet-crop", [], "tinyimagenet", tiny, [str(n) for n in range(200)])
    refuse_overlap("cifar100", ["apple"], "cifar10", find_split("cifar10", "cssr-a"), [f"c{n}" for n in range(10)])


def test_outliers_of_a_step_depend_on_seed_and_step_alone():
    pixels = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1)
    batches = OutlierBatches(pixels, seed=3)
    assert torch.equal(batches.draw(8, step=5, epoch=0), OutlierBatches(pixels, seed=3).draw(8, step=5, epoch=0))
    assert not torch.equal(batches.draw(8, step=5, epoch=0), batches.draw(8, step=6, epoch=0))


def test_plain_training_is_plain_cross_entropy():
    model, images = network(dummies=0), torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(8) % 3
    loss = Objective(flags(label_smoothing=0.1), 3, model)(model, images, labels)
    torch.testing.assert_close(loss, functional.cross_entropy(model(images), labels, label_smoothing=0.1))
