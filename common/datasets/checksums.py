"""Published MD5 sums of data files, and the check that every file passes before it is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import UserError

#: Path below the data folder, in torchvision's layout -> MD5. The sums are those that torchvision 0.29 lists; for
#: unpacked IDX files they were computed from archives that passed their own sum.
MD5: dict[str, str] = {
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
    "MNIST/raw/train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "MNIST/raw/train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "MNIST/raw/t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "MNIST/raw/t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "MNIST/raw/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "MNIST/raw/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "MNIST/raw/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "MNIST/raw/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    "FashionMNIST/raw/train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "FashionMNIST/raw/train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "FashionMNIST/raw/t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    "KMNIST/raw/train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
    "KMNIST/raw/train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
    "KMNIST/raw/t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
    "KMNIST/raw/t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
    "KMNIST/raw/t10k-images-idx3-ubyte": "bf305b8cd328700fbc17f5acbc2856d2",
    "KMNIST/raw/t10k-labels-idx1-ubyte": "9f55f451c0988b028eccdf7d5cc265ab",
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}


def read_verified(path: Path, key: str) -> tuple[bytes, str]:
    """Return the bytes of a file and `md5:...`, after comparing the sum with the published one.

    Parameters
    ----------
    path : Path
        The file.
    key : str
        Its entry in `MD5`. A key without entry is an unpacked file that nobody published a sum for: it is read, its
        sum is recorded, and the caller checks header and counts.
    """
    blob = path.read_bytes()
    got, expected = hashlib.md5(blob).hexdigest(), MD5.get(key)
    if expected is not None and got != expected:
        raise corrupt(path, f"md5 {expected}", f"md5 {got}")
    return blob, f"md5:{got}"


def corrupt(path: Path, expected: str, got: str) -> UserError:
    """Return the error for a damaged file."""
    return UserError(f"corrupt data file {path}: expected {expected}, got {got}; delete it and fetch it again")
