"""The training loss of every head: softmax, K+1 in three ways, outliers against energy or the uniform softmax."""

from __future__ import annotations

import torch
from torch.nn import functional

from baseline_openmax import kplus1
from common.datasets.batches import generator_for

DEFAULT_WEIGHT = {"kplus1": 1.0, "msp": 0.5, "energy": 0.1}


def energy_hinges(known: torch.Tensor, outlying: torch.Tensor, known_margin: float, unknown_margin: float) -> torch.Tensor:
    """Mean squared excess of the energies over their margins (Liu et al. 2020, equation 8).

    `known` `(N, K)` and `outlying` `(M, K)` are logits; E = -log sum exp z; known ones belong below `known_margin`, outliers
    above `unknown_margin`.
    """
    above = functional.relu(-torch.logsumexp(known, 1) - known_margin)
    below = functional.relu(unknown_margin + torch.logsumexp(outlying, 1))
    return above.square().mean() + below.square().mean()


def uniform_loss(outlying: torch.Tensor) -> torch.Tensor:
    """Cross-entropy between the uniform distribution and the softmax of outliers (Hendrycks et al. 2019)."""
    return -functional.log_softmax(outlying, 1).mean()


class Objective:
    """The loss of one step.

    Parameters
    ----------
    args : Namespace
        Flags of `baseline_openmax.arguments`.
    classes : int
        Number of known classes K.
    model : nn.Module
        The network itself (`mixing` of `OpenSetNetwork` is used for K+1 mixup).
    outliers : OutlierBatches, optional
    """

    def __init__(self, args, classes: int, model=None, outliers=None):
        self.args, self.classes, self.model, self.outliers = args, classes, model, outliers
        self.ways = args.kplus1 or ()
        weight = args.outlier_weight
        self.outlier_weight = DEFAULT_WEIGHT.get(args.osr_head, 1.0) if weight is None else weight

    def __call__(self, called, images: torch.Tensor, labels: torch.Tensor, step: int = 0, epoch: int = 0) -> torch.Tensor:
        """Loss of the images uint8 `(N, C, H, W)` with labels `(N,)` at optimiser step `step`; `called` gives the outputs."""
        if self.ways:
            return self._kplus1(called, images, labels, step, epoch)
        if self.outliers is None:
            return functional.cross_entropy(called(images).float(), labels, label_smoothing=self.args.label_smoothing)
        outputs = called(torch.cat((images, self._outliers(images, step, epoch)))).float()
        known, outlying = outputs[: len(images)], outputs[len(images) :]
        loss = functional.cross_entropy(known, labels, label_smoothing=self.args.label_smoothing)
        if self.args.osr_head == "energy":
            extra = energy_hinges(known, outlying, self.args.known_margin, self.args.unknown_margin)
        else:
            extra = uniform_loss(outlying)
        return loss + self.outlier_weight * extra

    def _outliers(self, images, step, epoch):
        found = self.outliers.draw(len(images), step, epoch)
        if found.shape[2:] != images.shape[2:]:  # low-resolution epochs
            found = functional.interpolate(found.float(), size=images.shape[2:], mode="area").round().to(images.dtype)
        return found

    def _kplus1(self, called, images, labels, step, epoch):
        mixes = "mixup" in self.ways
        # Half of each batch is mixed and half is plain, as in the released program.
        plain = len(images) - len(images) // 2 if mixes else len(images)
        shown = images[:plain]
        if "oe" in self.ways:
            shown = torch.cat((shown, self._outliers(shown, step, epoch)))
        both = kplus1.joined(called(shown).float(), self.classes)
        known = both[:plain]
        loss = kplus1.known_loss(known, labels[:plain], self.args.label_smoothing)
        if "placeholder" in self.ways:
            loss = loss + self.args.placeholder_weight * kplus1.placeholder_loss(known, labels[:plain])
        if "oe" in self.ways:
            loss = loss + self.outlier_weight * kplus1.unknown_loss(both[plain:])
        if mixes:
            loss = loss + self.args.mixup_weight * self._mixed(called, images[plain:], labels[plain:], step)
        return loss

    def _mixed(self, called, images, labels, step):
        generator = generator_for(self.args.seed, step, 15485863)
        kept, partner = kplus1.different_partners(labels, generator)
        if not len(kept):
            return torch.zeros((), device=images.device)
        share = torch.ones(len(labels))
        share[kept] = kplus1.mixing_shares(len(kept), self.args.mixup_alpha, generator)
        whole = torch.arange(len(labels)).scatter(0, kept, partner)
        with self.model.mixing(whole.to(images.device), share.to(images.device)):
            outputs = called(images).float()
        return kplus1.unknown_loss(kplus1.joined(outputs[kept.to(images.device)], self.classes))
