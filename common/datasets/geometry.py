"""Geometric image operations on a whole batch, with one magnitude per image.

Every operation takes images `(N, C, H, W)` on any device and works in tensor code, without a loop over images
or pixels. The sampling arithmetic is Pillow's (`Image.transform`, `Image.rotate`, `Image.resize`): nearest
neighbour walks in the same 16.16 fixed-point steps, resizing uses the same 22-bit weights.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

FIXED = 1 << 16  # Pillow's unit for nearest-neighbour coordinates
WEIGHT_BITS = 22  # Pillow's precision of resampling weights: 32 - 8 (pixel) - 2 (head room)


def check_images(pixels: torch.Tensor, *, integer: bool = False, channels: tuple[int, ...] = ()) -> None:
    """Raise ValueError unless `pixels` is `(N, C, H, W)`, uint8 if `integer`, with C among `channels`."""
    if pixels.dim() != 4:
        raise ValueError(f"expected images (N, C, H, W), got shape {tuple(pixels.shape)}")
    if integer and pixels.dtype != torch.uint8:
        raise ValueError(f"expected uint8 images, got {str(pixels.dtype).removeprefix('torch.')}")
    if channels and pixels.shape[1] not in channels:
        wanted = " or ".join(str(count) for count in channels)
        raise ValueError(f"expected images with {wanted} channels, got {pixels.shape[1]}")


def per_image(values, pixels: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return `values` (a number, or one per image) as `(N,)` of `dtype` on the device of `pixels`."""
    values = torch.as_tensor(values, dtype=dtype, device=pixels.device)
    if values.dim() == 0:
        return values.expand(len(pixels))
    if values.shape != (len(pixels),):
        raise ValueError(
            f"expected one value for each of {len(pixels)} images, got shape {tuple(values.shape)}"
        )
    return values


def fill_colour(fill, pixels: torch.Tensor) -> torch.Tensor:
    """Return `fill` (a number, or one per channel) as `(1, C, 1, 1)` of the type of `pixels`."""
    colour = torch.as_tensor(fill, dtype=pixels.dtype, device=pixels.device)
    if colour.dim() > 1 or colour.numel() not in (1, pixels.shape[1]):
        raise ValueError(f"fill must be one number or {pixels.shape[1]} (one per channel), got {fill}")
    return colour.reshape(1, -1, 1, 1).expand(1, pixels.shape[1], 1, 1)


def horizontal_flip(pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mirror left and right where `mask` (bool `(N,)`) is set."""
    check_images(pixels)
    choice = per_image(mask, pixels, torch.bool) * len(pixels) + torch.arange(
        len(pixels), device=pixels.device
    )
    # Copying whole images from a stack of both views is ten times faster than choosing pixel by pixel.
    return torch.cat([pixels, pixels.flip(3)]).index_select(0, choice)


def pad(pixels: torch.Tensor, padding: int, mode: str = "zero", fill=0) -> torch.Tensor:
    """Add `padding` pixels on every side, `(N, C, H + 2 padding, W + 2 padding)`.

    Parameters
    ----------
    padding : int
        Pixels, at least 0.
    mode : "zero" or "reflect"
        `zero` adds the colour `fill`; `reflect` mirrors without repeating the edge, as `numpy.pad` does.
    fill : number or one per channel
        Colour of the border in mode `zero`.
    """
    check_images(pixels)
    count, channels, height, width = pixels.shape
    if padding < 0:
        raise ValueError(f"padding must be at least 0, got {padding}")
    if padding == 0:
        return pixels
    if mode not in ("zero", "reflect"):
        raise ValueError(f"padding mode must be zero or reflect, got {mode}")
    canvas = pixels.new_empty(count, channels, height + 2 * padding, width + 2 * padding)
    inner = slice(padding, -padding)
    if mode == "zero":
        canvas[:] = fill_colour(fill, pixels)
        canvas[:, :, inner, inner] = pixels
        return canvas
    if padding >= min(height, width):
        raise ValueError(f"reflect padding {padding} needs images larger than that, got {height} x {width}")
    near = torch.arange(padding, 0, -1, device=pixels.device)  # source lines of the border before the image
    far = torch.arange(2, padding + 2, device=pixels.device)  # and behind it, counted from the other end
    canvas[:, :, inner, inner] = pixels
    canvas[:, :, inner, :padding] = pixels.index_select(3, near)
    canvas[:, :, inner, -padding:] = pixels.index_select(3, width - far)
    canvas[:, :, :padding] = canvas.index_select(2, near + padding)
    canvas[:, :, -padding:] = canvas.index_select(2, height + padding - far)
    return canvas


def crop(pixels: torch.Tensor, offsets: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Cut a window from every image.

    Parameters
    ----------
    pixels : Tensor `(N, C, H, W)`
    offsets : Tensor, int64 `(N, 2)`
        Row and column of the window's first pixel; the window must lie inside the image (checked on the CPU
        only: on a GPU the check would wait for the device).
    height, width : int
        Size of the window in pixels.

    Returns
    -------
    Tensor `(N, C, height, width)`
    """
    check_images(pixels)
    if offsets.shape != (len(pixels), 2):
        raise ValueError(f"offsets must be ({len(pixels)}, 2), got {tuple(offsets.shape)}")
    if height > pixels.shape[2] or width > pixels.shape[3]:
        raise ValueError(f"window {height} x {width} is larger than {pixels.shape[2]} x {pixels.shape[3]}")
    count, channels, lines, width_in = pixels.shape
    if count and offsets.device.type == "cpu":
        room = torch.tensor([lines - height, width_in - width])
        if (offsets < 0).any() or (offsets > room).any():
            raise ValueError(
                f"window {height} x {width} leaves the image at an offset outside 0..{room.tolist()}"
            )
    row, column = offsets.to(pixels.device)[:, :, None, None].unbind(1)
    plane = torch.arange(count * channels, device=pixels.device).reshape(count, channels, 1) * lines
    start = (plane + row + torch.arange(height, device=pixels.device)) * width_in + column
    # Every run of `width` neighbours in memory, as a view: a window is `height` such runs, copied whole.
    memory = pixels.contiguous().reshape(-1)
    runs = memory.as_strided((max(len(memory) - width + 1, 0), width), (1, 1))
    return runs.index_select(0, start.reshape(-1)).reshape(count, channels, height, width)


def pad_crop(
    pixels: torch.Tensor, offsets: torch.Tensor, padding: int, mode: str = "zero", fill=0
) -> torch.Tensor:
    """Pad every side, then cut a window of the old size at `offsets` (int64 `(N, 2)`, 0 .. 2 `padding`)."""
    return crop(pad(pixels, padding, mode, fill), offsets, pixels.shape[2], pixels.shape[3])


def expand(pixels: torch.Tensor, offsets: torch.Tensor, height: int, width: int, fill=0) -> torch.Tensor:
    """Paste every image on a larger canvas of one colour.

    Parameters
    ----------
    pixels : Tensor `(N, C, H, W)`
    offsets : Tensor, int64 `(N, 2)`
        Row and column of the image's first pixel on the canvas.
    height, width : int
        Size of the canvas in pixels.
    fill : number or one per channel

    Returns
    -------
    Tensor `(N, C, height, width)`
    """
    check_images(pixels)
    margin = max(height - pixels.shape[2], width - pixels.shape[3])
    if height < pixels.shape[2] or width < pixels.shape[3]:
        raise ValueError(f"canvas {height} x {width} is smaller than {pixels.shape[2]} x {pixels.shape[3]}")
    return crop(pad(pixels, margin, "zero", fill), margin - offsets.to(pixels.device), height, width)


def cutout(pixels: torch.Tensor, corners: torch.Tensor, fill=127) -> torch.Tensor:
    """Fill a rectangle of every image.

    Parameters
    ----------
    pixels : Tensor `(N, C, H, W)`
    corners : Tensor, float or int `(N, 4)`
        x0, y0, x1, y1 in pixels. The fraction is dropped and the far corner belongs to the rectangle, as in
        Pillow's `ImageDraw.rectangle`.
    fill : number or one per channel
    """
    check_images(pixels)
    if corners.shape != (len(pixels), 4):
        raise ValueError(f"corners must be ({len(pixels)}, 4), got {tuple(corners.shape)}")
    left, top, right, bottom = corners.to(pixels.device, torch.int64).unbind(1)
    column = torch.arange(pixels.shape[3], device=pixels.device)
    row = torch.arange(pixels.shape[2], device=pixels.device)
    across = (column >= left[:, None]) & (column <= right[:, None])
    down = (row >= top[:, None]) & (row <= bottom[:, None])
    inside = down[:, None, :, None] & across[:, None, None, :]
    return torch.where(inside, fill_colour(fill, pixels), pixels)


def transform(
    pixels: torch.Tensor, matrix: torch.Tensor, interpolation: str = "nearest", fill=0
) -> torch.Tensor:
    """Resample every image through an affine map, as Pillow's `Image.transform(size, AFFINE, matrix)`.

    Parameters
    ----------
    pixels : Tensor, uint8 `(N, C, H, W)`
    matrix : Tensor, float64 `(N, 6)`
        a, b, c, d, e, f: the output pixel centre (x, y) takes its colour from (a x + b y + c, d x + e y + f).
    interpolation : "nearest" or "bilinear"
    fill : number or one per channel
        Colour of points outside the image.
    """
    check_images(pixels, integer=True)
    if matrix.shape != (len(pixels), 6):
        raise ValueError(f"matrix must be ({len(pixels)}, 6), got {tuple(matrix.shape)}")
    sample = {"nearest": _nearest, "bilinear": _bilinear}.get(interpolation)
    if sample is None:
        raise ValueError(f"interpolation must be nearest or bilinear, got {interpolation}")
    values, inside = sample(pixels, matrix.to(pixels.device, torch.float64))
    return torch.where(inside[:, None], values, fill_colour(fill, pixels))


def _nearest(pixels: torch.Tensor, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest pixel of every mapped point, and where that point lies in the image, bool `(N, H, W)`."""
    height, width = pixels.shape[2:]
    a, b, c, d, e, f = matrix.unbind(1)
    start = torch.stack([c + a * 0.5 + b * 0.5, f + d * 0.5 + e * 0.5, a, b, d, e], 1)
    # int32 holds 15-bit coordinates, which is where Pillow leaves fixed point, too.
    x0, y0, a, b, d, e = (start * FIXED + 0.5).floor().to(torch.int32)[:, :, None, None].unbind(1)
    column = torch.arange(width, device=pixels.device, dtype=torch.int32)
    row = torch.arange(height, device=pixels.device, dtype=torch.int32)[:, None]
    x = (x0 + b * row + a * column) >> 16
    y = (y0 + e * row + d * column) >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    source = (y * width + x).masked_fill_(~inside, 0).to(torch.int64)
    return _take(pixels, source), inside


def _take(pixels: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Pixels at flat positions `source`, int64 `(N, h, w)`, of every channel."""
    index = source.flatten(1)[:, None].expand(-1, pixels.shape[1], -1)
    return pixels.flatten(2).gather(2, index).reshape(*pixels.shape[:2], *source.shape[1:])


def _bilinear(pixels: torch.Tensor, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bilinear mixture of the four pixels around every mapped point; beyond the edge the edge repeats."""
    height, width = pixels.shape[2:]
    a, b, c, d, e, f = matrix[:, :, None, None].unbind(1)
    column = torch.arange(width, device=pixels.device, dtype=torch.float64) + 0.5
    row = torch.arange(height, device=pixels.device, dtype=torch.float64)[:, None] + 0.5
    x = a * column + (b * row + c)
    y = d * column + (e * row + f)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    grid = torch.stack([x.float() * (2 / width) - 1, y.float() * (2 / height) - 1], 3)
    values = functional.grid_sample(pixels.float(), grid, "bilinear", "border", align_corners=False)
    # Pillow drops the fraction; the float32 weights' error must not turn a whole 200 into 199.
    return values.add_(1e-4).to(torch.uint8), inside


def rotate(pixels: torch.Tensor, degrees, interpolation: str = "nearest", fill=0) -> torch.Tensor:
    """Rotate every image about its centre, counter-clockwise by `degrees` (`(N,)`), as `Image.rotate`."""
    height, width = pixels.shape[2:]
    angle = -torch.deg2rad(per_image(degrees, pixels) % 360.0)
    cos, sin = _round15(angle.cos()), _round15(angle.sin())
    x, y = width / 2, height / 2
    matrix = torch.stack([cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y], 1)
    return transform(pixels, matrix, interpolation, fill)


def _round15(values: torch.Tensor) -> torch.Tensor:
    """Round to 15 decimals, so that right angles give 0 and 1 (as Pillow does)."""
    return torch.round(values, decimals=15)


def shear_x(pixels: torch.Tensor, strength, fill=0) -> torch.Tensor:
    """Take column x + strength y (row y in pixels from the top; nearest pixel); `strength` `(N,)`."""
    strength = per_image(strength, pixels)
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return transform(pixels, torch.stack([one, strength, zero, zero, one, zero], 1), fill=fill)


def shear_y(pixels: torch.Tensor, strength, fill=0) -> torch.Tensor:
    """Take row y + strength x (column x in pixels from the left; nearest pixel); `strength` `(N,)`."""
    strength = per_image(strength, pixels)
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return transform(pixels, torch.stack([one, zero, zero, strength, one, zero], 1), fill=fill)


def translate(pixels: torch.Tensor, right, down, fill=0) -> torch.Tensor:
    """Take column x + `right` and row y + `down` (pixels, `(N,)` each; nearest), as Pillow's AFFINE."""
    right, down = per_image(right, pixels), per_image(down, pixels)
    one, zero = torch.ones_like(right), torch.zeros_like(right)
    return transform(pixels, torch.stack([one, zero, right, zero, one, down], 1), fill=fill)


def affine(
    pixels: torch.Tensor,
    degrees=0.0,
    shift=None,
    scale=1.0,
    shear=None,
    interpolation: str = "nearest",
    fill=0,
) -> torch.Tensor:
    """Rotate, scale, shear about the centre, then shift; the convention of torchvision's `functional.affine`.

    Parameters
    ----------
    pixels : Tensor, uint8 `(N, C, H, W)`
    degrees : number or Tensor `(N,)`
        Rotation, clockwise for positive angles.
    shift : Tensor `(N, 2)`, optional
        Pixels to the right and down.
    scale : number or Tensor `(N,)`
        Above 1 enlarges the content.
    shear : Tensor `(N, 2)`, optional
        Degrees along x and y.
    interpolation : "nearest" or "bilinear"
    fill : number or one per channel
    """
    angle, scale = torch.deg2rad(per_image(degrees, pixels)), per_image(scale, pixels)
    none = torch.zeros(len(pixels), 2, dtype=torch.float64, device=pixels.device)
    shift = none if shift is None else shift.to(none)
    shear = none if shear is None else torch.deg2rad(shear.to(none))
    if shift.shape != none.shape or shear.shape != none.shape:
        raise ValueError(f"shift and shear must be ({len(pixels)}, 2)")
    slant_x, slant_y = shear.unbind(1)
    lean = angle - slant_y
    # Forward matrix R(angle) Shear(x, y), determinant 1; the image needs its inverse, divided by the scale.
    a = lean.cos() / slant_y.cos()
    b = -lean.cos() * slant_x.tan() / slant_y.cos() - angle.sin()
    c = lean.sin() / slant_y.cos()
    d = -lean.sin() * slant_x.tan() / slant_y.cos() + angle.cos()
    a, b, c, d = d / scale, -b / scale, -c / scale, a / scale
    x, y = pixels.shape[3] * 0.5, pixels.shape[2] * 0.5
    across, down = x + shift[:, 0], y + shift[:, 1]
    matrix = torch.stack([a, b, x - a * across - b * down, c, d, y - c * across - d * down], 1)
    return transform(pixels, matrix, interpolation, fill)


def resized_crop(pixels: torch.Tensor, boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Cut a box from every image and resize it, as Pillow's `crop(box).resize(size, BILINEAR)`.

    A triangle filter as wide as the reduction. Columns are resized first, then rows, with rounding to uint8
    in between. Pillow 13 takes the other order where that is cheaper; its values then differ by at most 1.

    Parameters
    ----------
    pixels : Tensor, uint8 `(N, C, H, W)`
    boxes : Tensor, int64 `(N, 4)`
        Row, column, height and width of the box in pixels, inside the image.
    height, width : int
        Size of the result in pixels.

    Returns
    -------
    Tensor, uint8 `(N, C, height, width)`
    """
    check_images(pixels, integer=True)
    if boxes.shape != (len(pixels), 4):
        raise ValueError(f"boxes must be ({len(pixels)}, 4), got {tuple(boxes.shape)}")
    top, left, rows, columns = boxes.to(pixels.device).unbind(1)
    pixels = _resample(pixels, left, columns, width)
    return _resample(pixels.transpose(2, 3), top, rows, height).transpose(2, 3)


def _resample(pixels: torch.Tensor, start: torch.Tensor, length: torch.Tensor, size: int) -> torch.Tensor:
    """Resize columns `start .. start + length` of every image to `size` columns with a triangle filter."""
    count, channels, lines, width = pixels.shape
    scale = length.double()[:, None] / size
    support = scale.clamp(min=1.0)  # half width of the triangle in source pixels
    centre = (torch.arange(size, device=pixels.device) + 0.5) * scale
    first = (centre - support + 0.5).to(torch.int64).clamp(min=0)
    last = torch.minimum((centre + support + 0.5).to(torch.int64), length[:, None])
    # The number of taps follows from the image size alone: no wait for the device, equal on every process.
    taps = torch.arange(math.ceil(max(1.0, width / size)) * 2 + 1, device=pixels.device)
    position = first[..., None] + taps
    distance = (position - centre[..., None] + 0.5) / support[..., None]
    weight = (1.0 - distance.abs()).clamp(min=0.0) * (position < last[..., None])
    weight = (weight / weight.sum(2, keepdim=True) * (1 << WEIGHT_BITS) + 0.5).to(torch.int32)
    position = (position + start[:, None, None]).clamp(max=width - 1)
    total = torch.full((count, channels, lines, size), 1 << (WEIGHT_BITS - 1), device=pixels.device)
    total = total.to(torch.int32)
    for tap in range(len(taps)):
        source = position[:, None, None, :, tap].expand(-1, channels, lines, -1)
        total += pixels.gather(3, source).to(torch.int32) * weight[:, None, None, :, tap]
    return (total >> WEIGHT_BITS).clamp(0, 255).to(torch.uint8)
