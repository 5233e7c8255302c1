"""Colour operations on a whole batch, with one magnitude per image.

Every operation takes uint8 images `(N, C, H, W)` with 1 or 3 channels on any device and gives what Pillow's
`ImageEnhance`, `ImageOps` and HSV conversion give: the same integer luma, the same truncation of a blend.
"""

from __future__ import annotations

import torch

from common.datasets.geometry import check_images, per_image


def luma(pixels: torch.Tensor) -> torch.Tensor:
    """Grey level of every pixel (ITU-R 601 in integers, as Pillow's mode "L"), uint8 `(N, 1, H, W)`."""
    check_images(pixels, integer=True, channels=(1, 3))
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.to(torch.int32).split(1, dim=1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)


def blend(plain: torch.Tensor, pixels: torch.Tensor, factor) -> torch.Tensor:
    """Go from `plain` (factor 0) to `pixels` (factor 1) and beyond: `Image.blend`.

    Parameters
    ----------
    plain : Tensor, uint8, broadcastable to `pixels`
    pixels : Tensor, uint8 `(N, C, H, W)`
    factor : number or Tensor `(N,)`

    Returns
    -------
    Tensor, uint8 `(N, C, H, W)`
    """
    factor = per_image(factor, pixels, torch.float32).reshape(-1, 1, 1, 1)
    plain = plain.float()
    # Multiply and add stay two roundings (no fused operation), then truncation: bit for bit what Pillow does.
    return (pixels.float() - plain).mul_(factor).add_(plain).clamp_(0, 255).to(torch.uint8)


def brightness(pixels: torch.Tensor, factor) -> torch.Tensor:
    """Scale towards black (factor 0) or brighter (above 1); `ImageEnhance.Brightness`."""
    check_images(pixels, integer=True)
    return blend(pixels.new_zeros(()), pixels, factor)


def contrast(pixels: torch.Tensor, factor) -> torch.Tensor:
    """Blend with the image's mean grey level, rounded to an integer; `ImageEnhance.Contrast`."""
    grey = luma(pixels)
    size = grey.shape[2] * grey.shape[3]
    total = grey.sum(dim=(1, 2, 3), dtype=torch.int64)
    mean = torch.div(2 * total + size, 2 * size, rounding_mode="floor")
    return blend(mean.reshape(-1, 1, 1, 1), pixels, factor)


def saturation(pixels: torch.Tensor, factor) -> torch.Tensor:
    """Blend with the grey image; `ImageEnhance.Color`. Grey images stay as they are."""
    grey = luma(pixels)
    return pixels if pixels.shape[1] == 1 else blend(grey, pixels, factor)


def sharpness(pixels: torch.Tensor, factor) -> torch.Tensor:
    """Blend with the image smoothed by Pillow's 3x3 `SMOOTH` filter; `ImageEnhance.Sharpness`."""
    check_images(pixels, integer=True)
    smooth = pixels
    if min(pixels.shape[2:]) > 2:  # the filter leaves the outermost pixels as they are
        wide = pixels.to(torch.int16)
        total = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
        total = total[..., :-2] + total[..., 1:-1] + total[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
        smooth = pixels.clone()
        # Thirteenths never lie nearer than 1/26 to a half, so float32 rounds all of them right.
        smooth[:, :, 1:-1, 1:-1] = (total.float() / 13 + 0.5).to(torch.uint8)
    return blend(smooth, pixels, factor)


def hue(pixels: torch.Tensor, shift) -> torch.Tensor:
    """Turn the hue circle by `shift` (`(N,)`, in turns, -0.5 .. 0.5) in Pillow's 8-bit HSV.

    As torchvision does with Pillow images, `shift` is truncated to 1/255 of a turn. Grey images stay.
    """
    check_images(pixels, integer=True, channels=(1, 3))
    if pixels.shape[1] == 1:
        return pixels
    steps = (per_image(shift, pixels) * 255).to(torch.int64).reshape(-1, 1, 1)
    turned, saturated, value = _to_hsv(pixels)
    return _from_hsv((turned + steps) & 255, saturated, value)


def _divide(values: torch.Tensor, divisor: float) -> torch.Tensor:
    """Division with one rounding on every device (CUDA multiplies by a Python number's reciprocal)."""
    return values / values.new_full((), divisor)


def _to_hsv(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hue (int64), saturation and value (float32) in whole levels 0..255 as in Pillow, all `(N, H, W)`."""
    red, green, blue = pixels.float().unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    divisor = chroma.clamp(min=1.0)
    far_red, far_green, far_blue = (high - red) / divisor, (high - green) / divisor, (high - blue) / divisor
    # Pillow keeps every quotient in float32 but adds and multiplies them in double precision.
    green_sector, blue_sector = 2.0 + far_red.double() - far_blue, 4.0 + far_green.double() - far_red
    sector = torch.where(high == green, green_sector.float(), blue_sector.float())
    sector = torch.where(high == red, far_blue - far_green, sector)
    turn = _divide(sector.double(), 6.0) + 1.0
    turn = (turn - (turn >= 1.0).double()).float()
    turned = (turn.double() * 255.0).to(torch.int64).masked_fill_(chroma == 0, 0)
    return turned, (chroma / high.clamp(min=1.0) * 255.0).floor(), high


def _from_hsv(turned: torch.Tensor, saturated: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The inverse: uint8 `(N, 3, H, W)`."""
    position = _divide(torch.arange(256, device=turned.device) * 6.0, 255.0)
    sector = position.floor()
    part = position - sector
    # How much of the saturation red, green and blue lose, for each of the 256 hues: in each of the six
    # sectors one channel loses none, one all, one a falling or rising part.
    losses = torch.stack([torch.zeros_like(part), torch.ones_like(part), part, 1.0 - part])
    which = torch.tensor([[0, 2, 1, 1, 3, 0], [3, 0, 0, 2, 1, 1], [1, 1, 3, 0, 0, 2]], device=turned.device)
    losses = losses.gather(0, which[:, sector.to(torch.int64) % 6])
    share = _divide(saturated, 255.0)
    channels = [value * (1.0 - share * loss[turned]) + 0.5 for loss in losses]
    return torch.stack(channels, 1).to(torch.uint8)


def invert(pixels: torch.Tensor) -> torch.Tensor:
    """Negative image; `ImageOps.invert`."""
    check_images(pixels, integer=True)
    return 255 - pixels


def posterize(pixels: torch.Tensor, bits) -> torch.Tensor:
    """Keep the highest `bits` (`(N,)`, 0..8) of every value; `ImageOps.posterize`."""
    check_images(pixels, integer=True)
    kept = per_image(bits, pixels, torch.int64)
    mask = (256 - torch.bitwise_left_shift(torch.ones_like(kept), 8 - kept)).to(torch.uint8)
    return pixels & mask.reshape(-1, 1, 1, 1)


def solarize(pixels: torch.Tensor, threshold) -> torch.Tensor:
    """Invert every value at or above `threshold` (`(N,)`, 0..256); `ImageOps.solarize`."""
    check_images(pixels, integer=True)
    limit = per_image(threshold, pixels).ceil().reshape(-1, 1, 1, 1)  # value < threshold means value < limit
    above = (pixels >= limit.clamp(0, 255).to(torch.uint8)) & (limit < 256)
    return pixels ^ (above.to(torch.uint8) * 255)


def solarize_add(pixels: torch.Tensor, amount, threshold: int = 128) -> torch.Tensor:
    """Add `amount` (`(N,)`, 0..255) to values below `threshold` and clip (AutoAugment, arXiv 1805.09501)."""
    check_images(pixels, integer=True)
    added = pixels.to(torch.int16) + per_image(amount, pixels, torch.int16).reshape(-1, 1, 1, 1)
    return torch.where(pixels < threshold, added.clamp_(0, 255).to(torch.uint8), pixels)


def _look_up(table: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Replace values by entries of `table`, uint8 `(N, C, 256)`."""
    return table.gather(2, pixels.flatten(2).to(torch.int64)).reshape(pixels.shape)


def autocontrast(pixels: torch.Tensor) -> torch.Tensor:
    """Stretch every channel to 0..255; `ImageOps.autocontrast` without cutoff. Channels of one value stay."""
    check_images(pixels, integer=True)
    flat = pixels.flatten(2)
    low = flat.amin(2, keepdim=True).double()
    span = flat.amax(2, keepdim=True).double() - low
    level = torch.arange(256, device=pixels.device, dtype=torch.float64)
    scale = torch.full_like(span, 255.0) / span  # a Python number here would be multiplied by 1 / span
    table = torch.where(span > 0, level * scale - low * scale, level)
    return _look_up(table.clamp_(0, 255).to(torch.uint8), pixels)


def equalize(pixels: torch.Tensor) -> torch.Tensor:
    """Flatten the histogram of every channel; `ImageOps.equalize`."""
    check_images(pixels, integer=True)
    flat = pixels.flatten(2).to(torch.int64)
    histogram = flat.new_zeros(*flat.shape[:2], 256).scatter_add_(2, flat, torch.ones_like(flat))
    last = histogram.gather(2, flat.amax(2, keepdim=True))  # number of pixels of the highest value
    step = torch.div(flat.shape[2] - last, 255, rounding_mode="floor")
    before = histogram.cumsum(2) - histogram
    table = torch.div(before + step // 2, step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    # With fewer than 255 pixels below the highest value Pillow leaves the channel as it is.
    table = torch.where(step > 0, table, torch.arange(256, device=pixels.device))
    return _look_up(table.to(torch.uint8), pixels)


def add(pixels: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Add `change` (float, levels of 0..255, broadcastable to `(N, C, H, W)`), round to nearest and clip."""
    check_images(pixels, integer=True)
    return (pixels.float() + change).round_().clamp_(0, 255).to(torch.uint8)


def pca_lighting(pixels: torch.Tensor, strengths: torch.Tensor, eigenvalues, eigenvectors) -> torch.Tensor:
    """Add to every image a colour along the principal axes of the training colours (Krizhevsky et al. 2012).

    Parameters
    ----------
    pixels : Tensor, uint8 `(N, C, H, W)`
    strengths : Tensor, float `(N, K)`
        Random factor of each axis, in levels of 0..255 per unit eigenvalue.
    eigenvalues : sequence of K numbers
    eigenvectors : C rows of K numbers
        Column k belongs to eigenvalue k.
    """
    check_images(pixels, integer=True)
    axes = torch.tensor(eigenvectors, dtype=torch.float32) * torch.as_tensor(eigenvalues, dtype=torch.float32)
    if axes.shape != (pixels.shape[1], strengths.shape[1]):
        raise ValueError(
            f"eigenvectors must be {pixels.shape[1]} rows of {strengths.shape[1]}, got {tuple(axes.shape)}"
        )
    colour = strengths.new_zeros(len(pixels), pixels.shape[1])
    for axis, direction in enumerate(
        axes.to(pixels.device).unbind(1)
    ):  # a matrix product may round by batch size
        colour = colour + strengths[:, axis, None] * direction
    return add(pixels, colour[:, :, None, None])
