"""Read a user's own pictures, of any size, mode and depth that Pillow reads, as a network wants them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError

# A 16-bit value v is 257 times the 8-bit value it stands for (65535 = 255 * 257).
SIXTEEN_BIT = 257.0


def read_images(paths: Sequence[str | Path], shape: tuple[int, int, int]) -> tuple[list[str], np.ndarray]:
    """Read files and folders of pictures into the shape of a network's images.

    Orientation tags are obeyed, transparency is laid on white, of animations the first frame counts; 16-bit and float
    pictures are scaled to 8 bits. The longer side is cut to a centred square, which is resized (bilinear). A one-channel
    network gets ITU-R 601 luma, as it is: dark ink on white paper is not inverted.

    Parameters
    ----------
    paths : sequence of path
        Files, or folders whose pictures (not those of folders within) are taken in alphabetical order.
    shape : tuple of int
        `(C, H, W)` with C 1 or 3.

    Returns
    -------
    (names, pixels)
        Paths as given or found, and uint8 `(N, C, H, W)`.

    Raises
    ------
    UserError
        A path that is not there, a folder without pictures, or a file that is no picture.
    """
    from PIL import Image

    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
            pictures = [p for p in inside if p.suffix.lower() in Image.registered_extensions()]
            if not pictures:
                raise UserError(f"folder {path} holds no pictures (folders within it are not searched)")
            if len(pictures) < len(inside):
                print(f"note: {len(inside) - len(pictures)} of {len(inside)} files in {path} have no picture's name: left out")
            files += pictures
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path} is not there; expected a picture or a folder of pictures")
    return [str(file) for file in files], np.stack([_read(file, shape) for file in files])


def _read(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            picture = _eight_bit(ImageOps.exif_transpose(opened))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} is not a picture that Pillow reads ({error})") from None
    channels, height, width = shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _eight_bit(picture):
    """An L or RGB picture of 8 bits a channel."""
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it holds values that are not finite")
        if picture.mode == "F":
            values = values * (255.0 if values.max() <= 1 else 1.0)
        elif picture.mode.startswith("I;16") or values.max() > 255:
            values = values / SIXTEEN_BIT
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def verdict_lines(
    names: Sequence[str],
    prediction: np.ndarray,
    unknown_score: np.ndarray,
    threshold: float,
    class_names: Sequence[str],
    score_name: str,
) -> list[str]:
    """One line per picture: class or "unknown", score, threshold; the class it would have been in brackets."""
    width = max(map(len, names))
    lines = []
    for name, number, score in zip(names, prediction, unknown_score):
        known = class_names[number]
        said = f"unknown ({known})" if score >= threshold else known
        lines.append(f"{name:{width}}  {said:24}  {score_name} {score:12.6g}  threshold {threshold:12.6g}")
    return lines
