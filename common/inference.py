"""Run a trained network over the parts of an open-set data set and lay the outputs out as `scores.npz` wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

TEST, VALIDATION, TRAIN = 0, 1, 2


@torch.no_grad()
def apply_batched(
    function: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    pixels: np.ndarray,
    device: torch.device,
    batch_size: int = 512,
    name: str = "images",
) -> dict[str, np.ndarray]:
    """Apply `function` (images `(B, C, H, W)` to a dict of tensors `(B, ...)`) to all images; float32 or int64 arrays."""
    from tqdm import tqdm

    chunks: dict[str, list[np.ndarray]] = {}
    starts = range(0, len(pixels), batch_size)
    for start in tqdm(starts, desc=name, delay=2, leave=False, disable=None):
        images = torch.from_numpy(pixels[start : start + batch_size]).to(device)
        for key, value in function(images).items():
            value = value.float() if value.is_floating_point() else value
            chunks.setdefault(key, []).append(value.cpu().numpy())
    return {key: np.concatenate(parts) for key, parts in chunks.items()}


def evaluation_parts(data, with_train: bool) -> list[tuple[str, int, object]]:
    """`(source name, split code, Images)` of all parts to score: known test, each unknown set, validation, train.

    `data` is what `common.datasets.prepare` returns. The sources of `scores.npz` are the names in this order; a rebuilt set
    says so in its name.
    """
    known = data.test.name or "known"
    parts = [(known, TEST, data.test)]
    parts += [(images.name or name, TEST, images) for name, images in data.unknown.items()]
    if data.validation is not None and len(data.validation):
        parts.append((f"{known} validation", VALIDATION, data.validation))
    if with_train:
        parts.append((f"{known} train", TRAIN, data.train))
    return parts


def outputs(function, parts, device, batch_size: int = 512) -> dict[str, np.ndarray]:
    """Apply `function` to every part; returns its outputs joined, with `target`, `split`, `source` and `sources`."""
    return joined([apply_batched(function, images.pixels, device, batch_size, name) for name, _, images in parts], parts)


def joined(collected: Sequence[Mapping[str, np.ndarray]], parts) -> dict[str, np.ndarray]:
    """Outputs of each part, one after the other, with the `target`, `split`, `source` and `sources` of the parts."""
    arrays = {key: np.concatenate([part[key] for part in collected]) for key in collected[0]}
    sizes = [len(images) for _, _, images in parts]
    arrays["target"] = np.concatenate([images.labels for _, _, images in parts]).astype(np.int64)
    arrays["split"] = np.repeat([code for _, code, _ in parts], sizes).astype(np.int8)
    arrays["source"] = np.repeat(np.arange(len(parts)), sizes).astype(np.int16)
    arrays["sources"] = np.array([name for name, _, _ in parts])
    return arrays
