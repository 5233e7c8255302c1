"""Small data folders written for a test, and the checks that several test files share."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.datasets import checksums, data_root
from common.datasets.presence import part_path
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def real(name, train=False):
    """Skip unless a part of a real data set is here."""
    if part_path(name, train, data_root()) is None:
        pytest.skip(f"{name} ({'train' if train else 'test'}) is not in {data_root()}; see data/README.md")


def refused(words, function, *arguments, **options):
    """Assert a one-line UserError that holds all `words`."""
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message and all(str(word) in message for word in words), message


def noise_image(random, height, width=None):
    return Image.fromarray(random.integers(0, 256, (height, width or height, 3), dtype=np.uint8))


def write_images(folder, count, height, width=None, suffix=".png", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        noise_image(random, height, width).save(folder / f"{i}{suffix}")


def command(*arguments, data_dir):
    return subprocess.run(
        [sys.executable, "-m", "common.datasets", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OSR_DATA_DIR": str(data_dir)},
    )


def write_idx(folder, prefix, pixels, labels, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in ((f"{prefix}-images-idx3-ubyte", pixels), (f"{prefix}-labels-idx1-ubyte", labels)):
        header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">i4").tobytes()
        blob = header + array.tobytes()
        (folder / (f"{stem}.gz" if packed else stem)).write_bytes(gzip.compress(blob) if packed else blob)


def write_svhn(root, monkeypatch, count=20):
    from scipy.io import savemat

    for part in ("train", "test"):
        monkeypatch.delitem(checksums.MD5, f"{part}_32x32.mat", raising=False)
        random = np.random.default_rng(0)
        labels = (np.arange(count) % 10 + 1)[:, None].astype(np.uint8)  # 1..10, where 10 is the digit 0
        savemat(
            root / f"{part}_32x32.mat", {"X": random.integers(0, 256, (32, 32, 3, count), dtype=np.uint8), "y": labels}
        )
