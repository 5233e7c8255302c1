"""Noise as unknown data: seeded, so that every run and every method meets the same images.

Two forms. The default lies in image space, as a camera could deliver it: uint8, clipped to 0..255. The released form
is what the VMDLS program fed to its network: float values that were never normalised (`noise`) or that were added after
the normalisation (`mnist-noise`). It bypasses normalisation, and it is easier to reject.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ..errors import UserError
from .images import Images

COUNT = 10_000


def _finish(pixels: np.ndarray, name: str, seed: int, form: str) -> Images:
    digest = hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()
    labels = np.zeros(len(pixels), dtype=np.int64)
    return Images(pixels, labels, (), name, {f"{name} ({form}, seed {seed})": f"sha256:{digest}"})


def uniform(shape, seed: int = 0, count: int = COUNT, released: bool = False) -> Images:
    """Independent uniform pixels.

    Parameters
    ----------
    shape : tuple
        Channels, height, width.
    seed, count : int
    released : bool
        float32 in [0, 1) as network input instead of uint8 0..255.
    """
    random = np.random.RandomState(seed)
    if released:
        return _finish(random.random_sample((count, *shape)).astype(np.float32), "noise", seed, "released")
    return _finish(random.randint(0, 256, (count, *shape), dtype=np.uint8), "noise", seed, "uniform")


def gaussian(shape, seed: int = 0, count: int = COUNT) -> Images:
    """Independent Gaussian pixels of mean 0.5 and variance 1 (image scale [0, 1]), clipped: the Gaussian noise of ODIN.

    It has no released form in any of the four papers and always lies in image space.
    """
    draws = np.random.RandomState(seed).standard_normal((count, *shape))
    pixels = np.clip(np.rint(255 * (0.5 + draws)), 0, 255).astype(np.uint8)
    return _finish(pixels, "gaussian-noise", seed, "gaussian")


def on_digits(digits: Images, seed: int = 0, released: bool = False) -> Images:
    """MNIST-noise: uniform noise over the full range added to every MNIST test image.

    Parameters
    ----------
    digits : Images
        The MNIST test part, uint8 `(N, 1, 28, 28)`.
    seed : int
    released : bool
        Normalise the digits to [-1, 1] and add U[0, 1) without clipping: float32 in [-1, 2), as network input.
    """
    if not len(digits):
        raise UserError("mnist-noise needs the MNIST test images, and there are none")
    random = np.random.RandomState(seed)
    if released:
        pixels = digits.pixels / np.float32(127.5) - 1 + random.random_sample(digits.pixels.shape)
        images = _finish(pixels.astype(np.float32), "mnist-noise", seed, "released")
    else:
        noise = random.randint(0, 256, digits.pixels.shape).astype(np.uint16)
        images = _finish(np.minimum(digits.pixels + noise, 255).astype(np.uint8), "mnist-noise", seed, "uniform")
    images.checksums.update(digits.checksums)
    return images
