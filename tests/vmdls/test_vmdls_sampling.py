"""Class-balanced batches: the released program's counts and lists, invariants, growth, resume, processes, bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.datasets.batches import generator_for
from common.errors import UserError
from vmdls.sampling import BalancedBatches, balanced_indices

# Images of each class: CIFAR's are equal, MNIST's training part is not.
SIZES = {
    "cifar10": [5000] * 10,
    "cifar100": [500] * 100,
    "mnist": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
}


def labels_of(sizes):
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def assert_balanced(batches, labels, batch_classes, samples):
    """Every batch has B_c distinct classes x B_s; no image comes back before its class has too few others left."""
    visited = {}
    for batch in batches:
        groups = labels[batch].reshape(batch_classes, samples)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0].tolist())) == batch_classes
        for label, chosen in zip(groups[:, 0].tolist(), batch.reshape(batch_classes, samples).tolist()):
            seen = visited.setdefault(label, set())
            if len(seen) + samples > int((labels == label).sum()):
                seen.clear()
            assert len(set(chosen)) == samples and not seen & set(chosen)
            seen |= set(chosen)


def test_batch_counts_equal_the_released_program(golden):
    case = golden("sampler/train_batch_counts")
    for dataset, (batch_classes, samples, batches, smallest, largest) in zip(case["dataset"], case["table"]):
        labels = labels_of(SIZES[str(dataset)])
        found = balanced_indices(labels, int(batch_classes), int(samples), generator_for(0, 0))
        assert found.shape == (batches, smallest) and smallest == largest
        counts = torch.bincount(labels[found[0]])
        assert (counts[counts > 0] == samples).all() and (counts > 0).sum() == batch_classes


def test_released_lists_and_ours_obey_the_same_rules(golden):
    case = golden("sampler/small_seed7")
    config, labels = case.config, torch.from_numpy(case["labels"])
    released = torch.from_numpy(case["batches"])
    ours = balanced_indices(labels, config["batch_classes"], config["sample_count"], generator_for(7))
    assert ours.shape == released.shape
    for batches in (released, ours):
        assert_balanced(batches, labels, config["batch_classes"], config["sample_count"])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_batches_are_balanced_for_any_class_sizes(data):
    sizes = data.draw(st.lists(st.integers(3, 30), min_size=1, max_size=5))
    samples = data.draw(st.integers(1, min(sizes)))
    batch_classes = data.draw(st.integers(1, len(sizes)))
    labels = labels_of(sizes)[torch.randperm(sum(sizes), generator=generator_for(data.draw(st.integers(0, 9))))]
    found = balanced_indices(labels, batch_classes, samples, generator_for(data.draw(st.integers(0, 99))))
    assert len(found) == (sum(sizes) - 1) // (batch_classes * samples)
    assert_balanced(found, labels, batch_classes, samples)


def test_classes_are_drawn_evenly_and_epochs_differ():
    labels = labels_of([100] * 10)
    epochs = [balanced_indices(labels, 2, 5, generator_for(0, epoch)) for epoch in range(20)]
    visits = torch.bincount(labels[torch.cat(epochs)].flatten(), minlength=10) / 5
    assert visits.sum() == 20 * 99 * 2
    np.testing.assert_allclose(visits, 396, rtol=0.15)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[3], balanced_indices(labels, 2, 5, generator_for(0, 3)))


def batches_of(sizes=(20, 25, 30), batch_classes=2, samples=4, **options):
    labels = labels_of(list(sizes))
    pixels = torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1)
    return BalancedBatches(pixels, labels, batch_classes, samples, **options)


def test_images_go_with_their_labels_and_resume_gives_the_same_rest():
    batches = batches_of()
    whole = list(batches.epoch(5))
    assert [number for number, _, _ in whole] == list(range(len(batches))) == list(range(9))
    for _, pixels, labels in whole:
        assert torch.equal(batches.labels[pixels.flatten().long()], labels)
    for (number, *rest), (_, *expected) in zip(batches.epoch(5, start=6), whole[6:], strict=True):
        assert number >= 6 and all(torch.equal(part, other) for part, other in zip(rest, expected))


def test_samples_grow_at_the_epoch():
    batches = batches_of(samples=2, sample_count_final=10, sample_count_epoch=3)
    for epoch, samples, count in ((0, 2, 18), (2, 2, 18), (3, 10, 3), (9, 10, 3)):
        batches.begin(epoch)
        shown = list(batches.epoch(epoch))
        assert len(batches) == len(shown) == count
        assert all(len(labels) == 2 * samples for _, _, labels in shown)
    assert batches_of(samples=2).samples(10_000) == 2


def test_augmentation_and_slices_are_those_of_the_whole_batch():
    def noisy(pixels, draws):
        return pixels.float() + draws.uniform(1, 1, 1)

    whole = list(batches_of(augment=noisy).epoch(1))
    parts = [list(batches_of(augment=noisy, rank=rank, world_size=2).epoch(1)) for rank in range(2)]
    for (_, pixels, labels), first, second in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat((first[1], second[1])), pixels)
        assert torch.equal(torch.cat((first[2], second[2])), labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_classes": 4}, "--batch_classes 4: there are only 3 known classes"),
        ({"samples": 21}, "class 0 has only 20 training images; lower it to at most 20"),
        ({"samples": 4, "sample_count_final": 26}, "--sample_count_final 26: class 0"),
        ({"sizes": (0, 9, 9), "samples": 2}, "class 0 has only 0"),
        ({"sizes": (8, 8), "samples": 8}, "give no batch of 2 classes x 8"),
        ({"samples": 3, "world_size": 4}, "4 processes cannot share"),
    ],
)
def test_impossible_batches_are_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message) as raised:
        batches_of(**options)
    assert "\n" not in str(raised.value)
