"""VMDLS's network: an encoder, and two linear heads that give a Gaussian in a low-dimensional latent space.

    g = encoder(x)                                  (N, k), encoders.py
    mu = W_mu g + b_mu,  log sigma^2 = W_s g + b_s  (N, d)
    z = mu + exp(log sigma^2 / 2) * eps             eps ~ N(0, I); used in training, testing uses mu
    t = [t1, t2, t3, g, mu]                         the feature ensemble of scores.py, t_i averaged over positions

Dinari and Freifeld 2022, "Variational- and Metric-based Deep Latent Space for Out-of-Distribution Detection" (UAI).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from common.backbones import Normalise
from vmdls.encoders import build_encoder


class Ensemble(NamedTuple):
    """Features of a batch, float32: three pooled layers, encoder output and latent mean, each `(N, its width)`."""

    t1: torch.Tensor
    t2: torch.Tensor
    t3: torch.Tensor
    g: torch.Tensor
    mean: torch.Tensor


class VMDLS(nn.Module):
    """Normalisation, encoder and the heads of mean and log-variance.

    Parameters
    ----------
    backbone : str
        Name of the encoder, in `vmdls.encoders.NAMES`.
    classes : int
        Number of known classes K.
    shape : tuple of int
        `(C, H, W)` of the images.
    mean, std : sequence of float
        Normalisation constants per channel on the 0..1 scale.
    latent_dim : int
        d.
    width, first_conv, maxpool1, released_slices, dropout_at_test
        See `vmdls.encoders.build_encoder`.

    Attributes
    ----------
    class_means : Tensor `(K, d)`
        m(c), means of the sampled z over the epoch before (a buffer: saved with the weights); 0 before the first one.
    frozen : bool
        Fine-tuning's first phase: the encoder is in evaluation mode (its BatchNorm statistics stand still) and gets no
        gradient.
    """

    def __init__(
        self, backbone, classes, shape, mean, std, *, latent_dim=32, width=None, first_conv=False, maxpool1=False,
        released_slices=False, dropout_at_test=False,
    ):  # fmt: skip
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.encoder = build_encoder(
            backbone, shape[0], shape[1], width=width, first_conv=first_conv, maxpool1=maxpool1,
            released_slices=released_slices, dropout_at_test=dropout_at_test,
        )  # fmt: skip
        self.mean_head = nn.Linear(self.encoder.dimension, latent_dim)
        self.log_variance_head = nn.Linear(self.encoder.dimension, latent_dim)
        self.register_buffer("class_means", torch.zeros(classes, latent_dim))
        self.frozen = False

    @property
    def dimensions(self) -> dict[str, int]:
        """Width of every part of the ensemble, in the order of `features`."""
        widths = (*self.encoder.layer_dimensions, self.encoder.dimension, self.class_means.shape[1])
        return dict(zip(Ensemble._fields, widths))

    def freeze(self, frozen: bool) -> None:
        """Begin (True) or end (False) the phase in which only the heads learn."""
        self.frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> VMDLS:
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def _input(self, images: torch.Tensor) -> torch.Tensor:
        return self.normalise(images).contiguous(memory_format=torch.channels_last)

    def _head(self, head: nn.Linear, g: torch.Tensor) -> torch.Tensor:
        # The latent space keeps its precision: log-variances and close pairs suffer in bfloat16.
        with torch.autocast(g.device.type, enabled=False):
            return head(g.to(head.weight.dtype))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latent mean and log-variance, `(N, d)` each, of uint8 images `(N, C, H, W)` (floats count as normalised)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            g = self.encoder(self._input(images))
        return self._head(self.mean_head, g), self._head(self.log_variance_head, g)

    def first_layer(self, images: torch.Tensor) -> torch.Tensor:
        """t1 alone, `(N, C_1)` float32: the layers behind it are not computed."""
        return next(self.encoder.stages(self._input(images))).float().mean((2, 3))

    def ensemble(self, images: torch.Tensor) -> Ensemble:
        """The parts of the feature ensemble of uint8 images `(N, C, H, W)`, in one pass."""
        *maps, g = self.encoder.stages(self._input(images))
        pooled = [feature_map.float().mean((2, 3)) for feature_map in maps]
        return Ensemble(*pooled, g.float(), self._head(self.mean_head, g))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The feature ensemble t = [t1, t2, t3, g, mu], `(N, D)` float32."""
        return torch.cat(self.ensemble(images), 1)


class LatentGaussians:
    """One full Gaussian per class in latent space, from the sampled z of an epoch; float64.

    The means are what the KL term pulls to in the next epoch. The rest watches training: class of a latent mean, and
    whether it reaches the class's bound, the `lower_bound` quantile of the log-likelihoods that the epoch's z had under
    the Gaussians of the epoch before.

    Parameters
    ----------
    means : Tensor `(K, d)`
        m(c) before the first epoch.
    lower_bound : float
        Share of the training samples below the bound.
    """

    def __init__(self, means: torch.Tensor, lower_bound: float = 0.05):
        self.lower_bound = lower_bound
        classes, dimension = means.shape
        self.mean = means.detach().double().clone()
        self.covariance = torch.eye(dimension, dtype=torch.float64, device=means.device).repeat(classes, 1, 1)
        self.bound = torch.full((classes,), -math.inf, dtype=torch.float64, device=means.device)
        self.fitted = torch.zeros((), dtype=torch.bool)
        self._begin()

    def _begin(self) -> None:
        self.count = torch.zeros(len(self.mean), dtype=torch.float64, device=self.mean.device)
        self.sum, self.product = torch.zeros_like(self.mean), torch.zeros_like(self.covariance)
        self.likelihoods: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []

    @torch.no_grad()
    def add(self, samples: torch.Tensor, labels: torch.Tensor) -> None:
        """Count the sampled z `(N, d)` of a step in the epoch's moments."""
        samples = samples.detach().double()
        self.count.index_add_(0, labels, torch.ones_like(samples[:, 0]))
        self.sum.index_add_(0, labels, samples)
        self.product.index_add_(0, labels, samples[:, :, None] * samples[:, None])
        if self.fitted:
            self.likelihoods.append(self.log_likelihood(samples).gather(1, labels[:, None])[:, 0])
            self.labels.append(labels)

    @torch.no_grad()
    def end_epoch(self) -> torch.Tensor:
        """Set bounds, means and covariances from the epoch's samples and return the means `(K, d)`.

        A class without a sample keeps all of its own.
        """
        if self.labels:
            likelihoods, labels = torch.cat(self.likelihoods), torch.cat(self.labels)
            for label in labels.unique().tolist():
                self.bound[label] = torch.quantile(likelihoods[labels == label], self.lower_bound)
        seen = self.count > 0
        count = self.count.clamp(min=1)
        mean = self.sum / count[:, None]
        covariance = self.product / count[:, None, None] - mean[:, :, None] * mean[:, None]
        self.mean[seen], self.covariance[seen] = mean[seen], covariance[seen]
        self.fitted.fill_(True)
        self._begin()
        return self.mean

    def log_likelihood(self, points: torch.Tensor) -> torch.Tensor:
        """log N(x; m_c, S_c), `(N, K)` float64, of points `(N, d)`; a singular covariance (few samples) counts as I."""
        factor, failed = torch.linalg.cholesky_ex(self.covariance)
        identity = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
        factor = torch.where(failed[:, None, None] > 0, identity, factor)
        centred = (points.double() - self.mean[:, None]).mT  # (K, d, N)
        distance = torch.linalg.solve_triangular(factor, centred, upper=False).square().sum(1)
        log_determinant = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
        return -0.5 * (distance + log_determinant + points.shape[1] * math.log(2 * math.pi)).T

    def decide(self, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Most likely class of latent means `(N, d)`, and the most likely of those whose bound is reached, else K."""
        likelihood = self.log_likelihood(means)
        reached = likelihood >= self.bound
        best = likelihood.masked_fill(~reached, -math.inf).argmax(1)
        return likelihood.argmax(1), torch.where(reached.any(1), best, len(self.mean))

    def state_dict(self) -> dict[str, torch.Tensor]:
        names = ("mean", "covariance", "bound", "fitted", "count", "sum", "product")
        state = {name: getattr(self, name) for name in names}
        if self.labels:
            state |= {"likelihoods": torch.cat(self.likelihoods), "labels": torch.cat(self.labels)}
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        device = self.mean.device
        for name in ("mean", "covariance", "bound", "count", "sum", "product"):
            setattr(self, name, state[name].to(device, copy=True))
        self.fitted = state["fitted"].clone()
        if "labels" in state:
            self.likelihoods, self.labels = [state["likelihoods"].to(device)], [state["labels"].to(device)]
