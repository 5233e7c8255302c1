"""Anonymous memory while 3,000 streamed images of 96 pixels are trained on, evaluated and turned into features, as JSON.

A program of its own: in a process that ran other tests, memory which those left behind comes and goes.
"""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from common.datasets import Images
from common.datasets.streaming import FileList
from cssr.features import FeatureCache
from cssr.streaming import HostBatches, StreamedPixels

COUNT, SIZE, BATCH = 3000, 96, 100


def anonymous_memory() -> float:
    """Memory of this process in MB without mapped files, which the system takes back when it needs them."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def measure(folder: Path) -> dict[str, dict]:
    """For each way through the set: the memory at every batch, and the images that came by."""
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (16, 16, 3)).astype(np.uint8)).save(folder / "0.jpg")
    files = FileList([(folder / "0.jpg", k % 1000) for k in range(COUNT)], tuple(map(str, range(1000))), "many")
    images = Images(StreamedPixels(files, SIZE, SIZE), np.arange(COUNT) % 1000, files.classes, "many")
    counts, peaks = [], []

    def watch(batch):
        counts.append(len(batch))
        peaks.append(anonymous_memory())
        return torch.as_tensor(batch).float()

    net = SimpleNamespace(eval=lambda: net, backbone=torch.nn.Identity(), normalise=torch.nn.Identity(), backbone_map=watch)
    devices = SimpleNamespace(
        device=torch.device("cpu"), precision="fp32", autocast=lambda: torch.autocast("cpu", enabled=False)
    )
    batches = HostBatches(images.pixels, torch.from_numpy(images.labels), BATCH)
    passes = {
        "training": lambda: [watch(batch).sum() for _, batch, _ in batches.epoch(0)],
        "evaluation": lambda: [watch(images.pixels[start : start + BATCH]).sum() for start in range(0, COUNT, BATCH)],
        "features": lambda: FeatureCache(folder / "features", net, devices).features_of(images),
        "array": lambda: [watch(images.pixels[start : start + BATCH]) for start in range(0, COUNT, BATCH)],
    }
    found = {}
    for name, passed in passes.items():
        counts.clear(), peaks.clear()
        kept = passed()
        watch([])
        found[name] = {"images": sum(counts), "peaks": list(peaks), "kept": len(kept)}
        del kept
    return found


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
