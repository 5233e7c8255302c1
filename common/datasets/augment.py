"""Random augmentation of a batch: policies that draw numbers through `Draws` and apply batch operations.

A policy is called as `policy(pixels, draws) -> pixels` with this process's images, uint8 `(N, C, H, W)`. All
numbers are drawn for the global batch, in a sequence that depends on no image, so several processes see the
same augmentation as one. `repr(policy)` names all parameters; runs record it. RandAugment: `randaugment.py`.
"""

from __future__ import annotations

import math

import torch

from common.datasets import colour, geometry

# Principal axes of ImageNet's colours (values in [0, 1]); columns of the matrix are the axes. Source: the
# ImageNet recipe of fb.resnet.torch (datasets/imagenet.lua), the usual default also for other images.
IMAGENET_EIGENVALUES = (0.2175, 0.0188, 0.0045)
IMAGENET_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


class Policy:
    """What policies share: the attributes of an instance are its parameters, and `repr` shows them."""

    def __repr__(self):
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"
        )


class Compose(Policy):
    """Apply policies one after another."""

    def __init__(self, *policies):
        self.policies = policies

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        for policy in self.policies:
            pixels = policy(pixels, draws)
        return pixels

    def __repr__(self):
        return f"Compose({', '.join(map(repr, self.policies))})"


class RandomFlip(Policy):
    """Mirror each image left and right with a probability."""

    def __init__(self, probability: float = 0.5):
        self.probability = _share("probability", probability)

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        return geometry.horizontal_flip(pixels, draws.uniform() < self.probability)


class AlternatingFlip(Policy):
    """Mirror each image in every second epoch: two epochs show both views (Jordan 2024, arXiv 2404.00498).

    Parameters
    ----------
    seed : int
        Chooses, for every position in the data set, whether its first epoch is the mirrored one. No number is
        drawn: the choice is a hash of position and seed, so it holds over epochs, batches and processes.
    """

    def __init__(self, seed: int = 0):
        self.seed = int(seed)

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        return geometry.horizontal_flip(pixels, (_hash(draws.index, self.seed) + draws.epoch) % 2 == 1)


class RandomShift(Policy):
    """Shift each image by up to `padding` pixels each way (pad, then crop to the old size).

    Parameters
    ----------
    padding : int
        Pixels.
    mode : "reflect" or "zero"
        What comes in at the border: the mirrored image, or the colour `fill`.
    fill : number or one per channel
    """

    def __init__(self, padding: int, mode: str = "reflect", fill=0):
        if mode not in ("reflect", "zero"):
            raise ValueError(f"padding mode must be reflect or zero, got {mode}")
        if padding < 0:
            raise ValueError(f"padding must be at least 0, got {padding}")
        self.padding, self.mode, self.fill = padding, mode, fill

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        offsets = draws.integers(0, 2 * self.padding + 1, 2)
        return geometry.pad_crop(pixels, offsets, self.padding, self.mode, self.fill)


class LowResolution:
    """Shrink all images to three quarters of their size in the first epochs: training costs about half there.

    Small images teach the coarse shapes; the later epochs at full size teach the rest (progressive resizing).
    """

    def __init__(self, epochs: int):
        self.epochs = epochs

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        if draws.epoch >= self.epochs:
            return pixels
        size = [3 * side // 4 for side in pixels.shape[-2:]]
        small = torch.nn.functional.interpolate(pixels.float(), size=size, mode="bilinear", antialias=True)
        return small.round().to(torch.uint8)

    def __repr__(self):
        return f"LowResolution(epochs={self.epochs})"


class RandomRotation(Policy):
    """Rotate each image about its centre by an angle drawn evenly from -`degrees` .. `degrees`."""

    def __init__(self, degrees: float, interpolation: str = "nearest", fill=0):
        self.degrees, self.interpolation, self.fill = degrees, interpolation, fill

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        angle = draws.uniform(low=-self.degrees, high=self.degrees)
        return geometry.rotate(pixels, angle, self.interpolation, self.fill)


class RandomAffine(Policy):
    """Rotate, shift, scale and shear each image, in the convention of torchvision's `RandomAffine`.

    Parameters
    ----------
    degrees : float
        Angles are drawn from -`degrees` .. `degrees`.
    translate : (float, float)
        Largest shift as a share of width and of height; shifts are whole pixels.
    scale : (float, float)
        Range of the factor.
    shear : (float, float)
        Largest slant along x and along y, in degrees either way.
    interpolation : "nearest" or "bilinear"
    fill : number or one per channel
    """

    def __init__(
        self,
        degrees: float,
        translate=(0.0, 0.0),
        scale=(1.0, 1.0),
        shear=(0.0, 0.0),
        interpolation: str = "nearest",
        fill=0,
    ):
        for share in translate:
            _share("translate", share)
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be two positive numbers in ascending order, got {tuple(scale)}")
        self.degrees, self.translate, self.scale, self.shear = (
            degrees,
            tuple(translate),
            tuple(scale),
            tuple(shear),
        )
        self.interpolation, self.fill = interpolation, fill

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        angle = draws.uniform(low=-self.degrees, high=self.degrees)
        reach = torch.tensor([self.translate[0] * pixels.shape[3], self.translate[1] * pixels.shape[2]])
        shift = (draws.uniform(2, low=-1.0) * reach.to(pixels.device)).round()
        scale = draws.uniform(low=self.scale[0], high=self.scale[1])
        shear = draws.uniform(2, low=-1.0) * torch.tensor(self.shear, device=pixels.device)
        return geometry.affine(pixels, angle, shift, scale, shear, self.interpolation, self.fill)


class RandomExpand(Policy):
    """Paste each image at a random place of a canvas up to `ratio` times larger, then cut a random window.

    Parameters
    ----------
    ratio : float
        The canvas of an image is 1 .. `ratio` times its size, drawn evenly.
    crop : int, optional
        Side of the window in pixels, at most the image's; without it every image gets the largest canvas.
        `RandomExpand(1, crop=28)` is a plain random crop.
    fill : number or one per channel
        Colour of the canvas, for example the data set's mean.
    """

    def __init__(self, ratio: float, crop: int | None = None, fill=0):
        if ratio < 1:
            raise ValueError(f"ratio must be at least 1, got {ratio}")
        self.ratio, self.crop, self.fill = ratio, crop, fill

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        size = torch.tensor(pixels.shape[2:], device=pixels.device)
        grown, place, window = draws.uniform(1), draws.uniform(2), draws.uniform(2)
        largest = [int(side * self.ratio) for side in pixels.shape[2:]]
        canvas = (size * (1 + grown.double() * (self.ratio - 1))).to(torch.int64)  # (N, 2): rows, columns
        if self.crop is None:
            canvas = torch.tensor(largest, device=pixels.device).expand_as(canvas)
        start = (place * (canvas - size + 1)).to(torch.int64).minimum(canvas - size)
        pasted = geometry.expand(pixels, start, *largest, self.fill)
        if self.crop is None:
            return pasted
        if self.crop > min(pixels.shape[2:]):
            raise ValueError(f"crop {self.crop} is larger than the images, {tuple(pixels.shape[2:])}")
        offsets = (window * (canvas - self.crop + 1)).to(torch.int64).minimum(canvas - self.crop)
        return geometry.crop(pasted, offsets, self.crop, self.crop)


class RandomResizedCrop(Policy):
    """Cut a random box and resize it to `size` x `size` pixels, drawn as torchvision's `RandomResizedCrop`.

    Parameters
    ----------
    size : int
        Side of the result in pixels.
    scale : (float, float)
        Area of the box as a share of the image.
    ratio : (float, float)
        Width over height of the box.
    """

    tries = 10  # boxes drawn per image before the largest centred one is taken

    def __init__(self, size: int, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
        if not 0 < scale[0] <= scale[1] or not 0 < ratio[0] <= ratio[1]:
            raise ValueError("scale and ratio must be two positive numbers in ascending order")
        self.size, self.scale, self.ratio = size, tuple(scale), tuple(ratio)

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        area, shape = draws.uniform(self.tries).double(), draws.uniform(self.tries).double()
        place = draws.uniform(2).double()
        height, width = pixels.shape[2:]
        area = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        shape = (low + shape * (high - low)).exp()
        boxes = torch.stack([(area / shape).sqrt(), (area * shape).sqrt()], 2).round().to(torch.int64)
        limit = torch.tensor([height, width], device=pixels.device)
        fits = ((boxes > 0) & (boxes <= limit)).all(2)
        first = fits.to(torch.uint8).argmax(1)
        box = boxes[torch.arange(len(boxes), device=pixels.device), first]
        wide = min(max(width / height, self.ratio[0]), self.ratio[1])
        spare = torch.tensor([min(height, round(width / wide)), min(width, round(height * wide))])
        corner = (place * (limit - box + 1)).to(torch.int64)
        found = fits.any(1, keepdim=True)
        spare = spare.to(pixels.device).expand_as(box)
        box, corner = torch.where(found, box, spare), torch.where(found, corner, (limit - spare) // 2)
        return geometry.resized_crop(pixels, torch.cat([corner, box], 1), self.size, self.size)


class Cutout(Policy):
    """Fill a square of each image, placed anywhere and cut off at the border (CSSR's and FixMatch's rule).

    A point is drawn evenly over the image; the square starts half a side before it, at 0 at the least, and
    ends `size` pixels later, the last pixel included: up to `size` + 1 pixels wide.

    Parameters
    ----------
    size : int
        Side in pixels.
    fill : number or one per channel
    """

    def __init__(self, size: int, fill=127):
        if size < 0:
            raise ValueError(f"size must be at least 0, got {size}")
        self.size, self.fill = size, fill

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        limit = torch.tensor([pixels.shape[3], pixels.shape[2]], device=pixels.device)
        return geometry.cutout(pixels, cutout_corners(draws.uniform(2) * limit, self.size, limit), self.fill)


class ColourJitter(Policy):
    """Change brightness, contrast, saturation and hue, in a random order that is drawn for each image.

    Parameters
    ----------
    brightness, contrast, saturation : float
        Half width v of the factor's range, max(0, 1 - v) .. 1 + v; 0 leaves the operation out.
    hue : float
        Largest turn either way, in turns, at most 0.5.
    """

    def __init__(
        self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
    ):
        for name, width in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            if width < 0:
                raise ValueError(f"{name} must be at least 0, got {width}")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue must lie in 0..0.5, got {hue}")
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        active, magnitudes = [], []
        for name in ("brightness", "contrast", "saturation"):
            width = getattr(self, name)
            if width:
                active.append(getattr(colour, name))
                magnitudes.append(draws.uniform(low=max(0.0, 1.0 - width), high=1.0 + width))
        if self.hue:
            active.append(colour.hue)
            magnitudes.append(draws.uniform(low=-self.hue, high=self.hue))
        if not active:
            return pixels
        order, magnitudes = draws.permutation(len(active)), torch.stack(magnitudes, 1)
        for turn in range(len(active)):
            chosen = order[:, turn]
            pixels = apply_chosen(pixels, chosen, magnitudes.gather(1, chosen[:, None])[:, 0], active)
        return pixels


class PCALighting(Policy):
    """Shift each image's colour along the principal axes of the training colours (Krizhevsky et al. 2012).

    Parameters
    ----------
    std : float
        Standard deviation of the factors, in levels of 0..255 (25.5 for a tenth of the range).
    eigenvalues : sequence of K numbers
    eigenvectors : C rows of K numbers
        Column k belongs to eigenvalue k.
    """

    def __init__(self, std: float, eigenvalues=IMAGENET_EIGENVALUES, eigenvectors=IMAGENET_EIGENVECTORS):
        self.std, self.eigenvalues, self.eigenvectors = std, eigenvalues, eigenvectors

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        strengths = draws.normal(len(self.eigenvalues)) * self.std
        return colour.pca_lighting(pixels, strengths, self.eigenvalues, self.eigenvectors)


class GaussianNoise(Policy):
    """Add normal noise with standard deviation `std` (levels of 0..255) to every value, round and clip."""

    def __init__(self, std: float):
        self.std = std

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        return colour.add(pixels, draws.normal(*pixels.shape[1:]) * self.std)


def apply_chosen(
    pixels: torch.Tensor, choice: torch.Tensor, strength: torch.Tensor, operations
) -> torch.Tensor:
    """Apply to every image the one operation that it chose.

    Parameters
    ----------
    pixels : Tensor, uint8 `(N, C, H, W)`
    choice : Tensor, int64 `(N,)`
        Number of the operation, 0 .. len(operations) - 1, or len(operations) to leave the image alone.
    strength : Tensor `(N,)`
        Magnitude for the image's own operation.
    operations : sequence of callables `operation(pixels, magnitude) -> pixels`
    """
    order = choice.argsort(stable=True)
    counts = torch.bincount(choice, minlength=len(operations) + 1).tolist()  # the only wait for the device
    changed = pixels.clone()
    for members, operation in zip(order.split(counts), operations, strict=False):
        if len(members):
            changed.index_copy_(0, members, operation(pixels.index_select(0, members), strength[members]))
    return changed


def cutout_corners(point: torch.Tensor, size: int, limit: torch.Tensor) -> torch.Tensor:
    """Corners x0, y0, x1, y1 `(N, 4)` of the square for `point` (x, y) in an image of size `limit` (w, h)."""
    near = (point - size / 2).clamp(min=0).floor()
    return torch.cat([near, torch.minimum(near + size, limit.to(near))], 1)


def _share(name: str, value: float) -> float:
    """Check a probability or share."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in 0..1, got {value}")
    return value


def _hash(index: torch.Tensor, seed: int) -> torch.Tensor:
    """Mix positions, int64 `(N,)`, with a seed to non-negative int64 (the finaliser of splitmix64)."""
    low = (1 << 63) - 1  # int64 shifts carry the sign along: keep the numbers non-negative before each shift
    state = (index + 1) * 0x1E3779B97F4A7C15 + (seed * 0x3F58476D1CE4E5B9 & low)
    for shift, factor in ((30, 0x3F58476D1CE4E5B9), (27, 0x14D049BB133111EB)):
        state = state & low
        state = (state ^ (state >> shift)) * factor
    state = state & low
    return (state ^ (state >> 31)) >> 16
