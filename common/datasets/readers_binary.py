"""Readers of data sets that come as a few binary files: CIFAR, MNIST and its kin, SVHN, the scikit-learn digits.

torchvision's layouts and checksums, but read here: torchvision refuses a folder whose other part is absent, and these
readers are faster. Every file passes its published checksum before anything in it is interpreted.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import zlib
from pathlib import Path

import numpy as np

from .catalogue import find, missing
from .checksums import corrupt, read_verified
from .images import Images, class_ranks

DIGITS = tuple("0123456789")
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

_IDX = {
    "mnist": ("MNIST/raw", DIGITS),
    "fashion-mnist": ("FashionMNIST/raw", FASHION),
    "kmnist": ("KMNIST/raw", KUZUSHIJI),
}

_CIFAR = {
    # name: folder of the checksum table, training files, test file, file of class names, its key, key of the labels
    "cifar10": (
        "cifar-10-batches-py",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test_batch",
        "batches.meta",
        "label_names",
        "labels",
    ),
    "cifar100": ("cifar-100-python", ("train",), "test", "meta", "fine_label_names", "fine_labels"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads the pickles of CIFAR: plain containers and NumPy arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str):
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _new_array
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR file")


def _new_array(subtype, shape, kind) -> np.ndarray:
    """Return the empty array that a pickle then fills; stands in for NumPy's own private function."""
    return np.ndarray.__new__(np.ndarray, shape, kind)


def _unpickle(path: Path, key: str) -> tuple[dict, str]:
    blob, digest = read_verified(path, key)
    try:
        content = _ArrayUnpickler(io.BytesIO(blob), encoding="latin1").load()
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        KeyError,
    ) as error:
        raise corrupt(path, "a CIFAR batch", f"{type(error).__name__}: {error}") from error
    return content, digest


def read_cifar(name: str, train: bool, root: Path) -> Images:
    """Read CIFAR-10 or CIFAR-100 (fine labels); one part suffices."""
    folder, train_files, test_file, meta, names_key, labels_key = _CIFAR[name]
    files = train_files if train else (test_file,)
    place = find(name, root, files[0]) or find(name, root)
    absent = [f for f in (*files, meta) if place is None or not (place / f).exists()]
    if absent:
        raise missing(name, root, f"{'training' if train else 'test'} part: {', '.join(absent)}")
    checksums, pixels, labels = {}, [], []
    for file in files:
        batch, checksums[f"{folder}/{file}"] = _unpickle(place / file, f"{folder}/{file}")
        if batch["data"].dtype != np.uint8 or batch["data"].shape != (len(batch[labels_key]), 3072):
            raise corrupt(place / file, "uint8 rows of 3072 values, one label each", f"{batch['data'].shape}")
        pixels.append(batch["data"].reshape(-1, 3, 32, 32))
        labels.append(np.asarray(batch[labels_key], dtype=np.int64))
    classes, checksums[f"{folder}/{meta}"] = _unpickle(place / meta, f"{folder}/{meta}")
    return Images(np.concatenate(pixels), np.concatenate(labels), tuple(classes[names_key]), name, checksums)


def _read_idx_file(place: Path, folder: str, stem: str, dimensions: int) -> tuple[np.ndarray, str, str]:
    """Read an IDX file; the packed one is preferred because its checksum is the published one."""
    packed = (place / f"{stem}.gz").exists()
    file = f"{stem}.gz" if packed else stem
    blob, digest = read_verified(place / file, f"{folder}/{file}")
    try:
        raw = gzip.decompress(blob) if packed else blob
    except (OSError, EOFError, zlib.error) as error:
        raise corrupt(place / file, "a gzip file", str(error)) from error
    header = 4 + 4 * dimensions
    shape = tuple(int(n) for n in np.frombuffer(raw[4:header], dtype=">i4")) if len(raw) >= header else ()
    if raw[:4] != bytes((0, 0, 8, dimensions)) or len(raw) != header + int(np.prod(shape)):
        raise corrupt(
            place / file,
            f"an IDX file of {dimensions} dimensions",
            f"{len(raw)} bytes, header {raw[:4].hex()}",
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape), f"{folder}/{file}", digest


def read_idx(name: str, train: bool, root: Path) -> Images:
    """Read MNIST, Fashion-MNIST or KMNIST, packed or unpacked; one part suffices."""
    folder, classes = _IDX[name]
    prefix = "train" if train else "t10k"
    stems = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    place = find(name, root, stems[0], f"{stems[0]}.gz")
    absent = [s for s in stems if place is None or not ((place / s).exists() or (place / f"{s}.gz").exists())]
    if absent:
        raise missing(name, root, f"{'training' if train else 'test'} part: {', '.join(f'{s}.gz' for s in absent)}")
    pixels, image_key, image_sum = _read_idx_file(place, folder, stems[0], 3)
    labels, label_key, label_sum = _read_idx_file(place, folder, stems[1], 1)
    if len(pixels) != len(labels):
        raise corrupt(place / stems[1], f"{len(pixels)} labels", f"{len(labels)}")
    checksums = {image_key: image_sum, label_key: label_sum}
    return Images(pixels[:, None].copy(), labels.astype(np.int64), classes, name, checksums)


def read_svhn(name: str, train: bool, root: Path) -> Images:
    """Read SVHN's cropped digits (`train_32x32.mat`, without the extra part); the digit 0 is stored as 10."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    file = f"{'train' if train else 'test'}_32x32.mat"
    place = find(name, root, file)
    if place is None:
        raise missing(name, root, file)
    blob, digest = read_verified(place / file, file)
    try:
        content = loadmat(io.BytesIO(blob))
        pixels, labels = content["X"].transpose(3, 2, 0, 1), content["y"].astype(np.int64).ravel() % 10
    except (MatReadError, ValueError, KeyError, OSError, TypeError, RuntimeError, zlib.error) as error:
        raise corrupt(place / file, "a MATLAB file with X and y", f"{type(error).__name__}: {error}") from error
    return Images(np.ascontiguousarray(pixels), labels, DIGITS, name, {file: digest})


def _digit_table() -> np.ndarray:
    """Return the table of scikit-learn's digits, `(1797, 65)`: 64 pixels of 0..16 and the class."""
    from importlib.util import find_spec

    # Importing sklearn.datasets takes longer than everything else a script on digits does before it trains.
    table = Path(find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
    if table.exists():
        with gzip.open(table, "rt") as lines:
            return np.loadtxt(lines, delimiter=",", dtype=np.float64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


def read_digits(name: str, train: bool, root: Path) -> Images:
    """Read scikit-learn's 1,797 scanned digits, 8x8, values 0..16 scaled to 0..255.

    The set has no published partition: 70 % of every class, drawn once with a fixed seed, are the training part
    (1,258 images) and the others (539) the test part, whatever the seed of a run.
    """
    table = _digit_table()
    pixels = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, 64].astype(np.int64)
    rank, size, _ = class_ranks(labels, seed=0)
    chosen = (rank < np.rint(0.7 * size)) == train
    digest = f"sha256:{hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()}"
    return Images(pixels[chosen], labels[chosen], DIGITS, name, {"digits of scikit-learn": digest})
