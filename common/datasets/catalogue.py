"""What every data set is called, where it may lie below the data folder, and what it should contain."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, nearest

# How the name of a folder of one's own images begins (`common.datasets.own`).
OWN = "folder:"
MANIFEST = Path(__file__).resolve().parents[2] / "data" / "MANIFEST.json"


@dataclass(frozen=True)
class Entry:
    """One data set.

    Parameters
    ----------
    name : str
        Canonical name.
    reader : str
        The family of readers that understands it.
    shape : tuple
        Channels and side length of its images.
    train, test : int
        Number of images of each part; 0 when the part does not exist.
    classes : int
        Number of classes; 0 for a set that can only be unknown.
    folders : tuple of str
        Places below the data folder, in the order in which they are tried.
    source : str
        What to fetch when it is missing.
    """

    name: str
    reader: str
    shape: tuple[int, int]
    train: int
    test: int
    classes: int
    folders: tuple[str, ...] = ()
    source: str = ""


_ODIN = "of github.com/facebookresearch/odin"


def _odin(name: str, archive: str, classes: str = "", count: int = 10_000) -> Entry:
    """Entry of an archive of the ODIN authors, in the folders that VMDLS and CROSR used and as a rebuilt npz file."""
    bases = ("openset/", "data/openset/", "", "odin/", "data/")
    folders = (*(base + archive for base in bases), f"odin/{name}.npz")
    return Entry(name, "outliers", (3, 32), 0, count, 0, folders, f"the archive {archive}.tar.gz {_ODIN}")


def _fixed(name: str, folder: str) -> Entry:
    """Entry of a set resized without artefacts by the authors of CSI."""
    folders = (folder, f"openset/{folder}", folder.lower(), f"odin/{name}.npz")
    return Entry(name, "outliers", (3, 32), 0, 10_000, 0, folders, f"{folder} of github.com/alinlab/CSI")


_ENTRIES = (
    Entry("digits", "digits", (1, 8), 1258, 539, 10, (), "scikit-learn (it ships the images)"),
    Entry("mnist", "idx", (1, 28), 60_000, 10_000, 10, ("MNIST/raw", "mnist/MNIST/raw"), "MNIST"),
    Entry(
        "fashion-mnist",
        "idx",
        (1, 28),
        60_000,
        10_000,
        10,
        ("FashionMNIST/raw",),
        "Fashion-MNIST",
    ),
    Entry("kmnist", "idx", (1, 28), 60_000, 10_000, 10, ("KMNIST/raw",), "Kuzushiji-MNIST (CODH)"),
    Entry(
        "omniglot",
        "omniglot",
        (1, 28),
        19_280,
        10_000,
        659,
        ("omniglot-py",),
        "images_evaluation.zip of github.com/brendenlake/omniglot",
    ),
    Entry("mnist-noise", "noise", (1, 28), 0, 10_000, 0, ("MNIST/raw", "mnist/MNIST/raw"), "MNIST"),
    Entry("noise", "noise", (1, 28), 0, 10_000, 0, (), "nothing (generated)"),
    Entry("gaussian-noise", "noise", (1, 28), 0, 10_000, 0, (), "nothing (generated)"),
    Entry(
        "cifar10",
        "cifar",
        (3, 32),
        50_000,
        10_000,
        10,
        ("cifar-10-batches-py", "cifar10/cifar-10-batches-py", "processed/cifar10/cifar-10-batches-py"),
        "cifar-10-python.tar.gz of cs.toronto.edu/~kriz/cifar.html",
    ),
    Entry(
        "cifar100",
        "cifar",
        (3, 32),
        50_000,
        10_000,
        100,
        ("cifar-100-python", "cifar100/cifar-100-python"),
        "cifar-100-python.tar.gz of cs.toronto.edu/~kriz/cifar.html",
    ),
    Entry(
        "svhn",
        "svhn",
        (3, 32),
        73_257,
        26_032,
        10,
        ("", "svhn", "SVHN"),
        "train_32x32.mat, test_32x32.mat",
    ),
    Entry(
        "tinyimagenet",
        "tinyimagenet",
        (3, 64),
        100_000,
        10_000,
        200,
        ("tiny-imagenet-200", "tinyimagenet/tiny-imagenet-200", "tinyimagenet", "TinyImageNet"),
        "tiny-imagenet-200.zip of cs231n.stanford.edu",
    ),
    _odin("imagenet-crop", "Imagenet"),
    _odin("imagenet-resize", "Imagenet_resize"),
    _odin("lsun-crop", "LSUN"),
    _odin("lsun-resize", "LSUN_resize"),
    _odin("isun", "iSUN", count=8_925),
    _fixed("imagenet-fix", "Imagenet_fix"),
    _fixed("lsun-fix", "LSUN_fix"),
    Entry(
        "imagenet30",
        "folder",
        (3, 224),
        39_000,
        3_000,
        30,
        ("ImageNet-30", "imagenet30", "ImageNet30", "imagenet-30"),
        "ImageNet-30 of github.com/hendrycks/ss-ood, as a train/ and a test/ folder of class folders",
    ),
    Entry(
        "textures",
        "textures",
        (3, 32),
        0,
        5_640,
        47,
        ("dtd/dtd", "dtd", "textures", "Textures"),
        "DTD",
    ),
    Entry(
        "places",
        "folder",
        (3, 224),
        0,
        0,
        0,
        ("places", "Places", "places365", "places365_standard", "val_256", "val_large"),
        "the Places365 validation images of places2.csail.mit.edu",
    ),
    Entry(
        "imagenet",
        "folder",
        (3, 224),
        1_281_167,
        50_000,
        1000,
        ("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "ImageNet", "imagenet-1k"),
        "ILSVRC2012 of image-net.org, as a train/ and a val/ folder of 1,000 class folders",
    ),
    Entry(
        "inaturalist",
        "folder",
        (3, 224),
        0,
        10_000,
        0,
        ("iNaturalist", "inaturalist"),
        "the iNaturalist outlier images of github.com/deeplearning-wisc/large_scale_ood",
    ),
    Entry(
        "cub",
        "fine-grained",
        (3, 224),
        5_994,
        5_794,
        200,
        ("CUB_200_2011", "cub/CUB_200_2011", "CUB/CUB_200_2011"),
        "CUB_200_2011.tgz of data.caltech.edu/records/65de6-vp158",
    ),
    Entry(
        "fgvc-aircraft",
        "fine-grained",
        (3, 224),
        6_667,
        3_333,
        100,
        ("fgvc-aircraft-2013b", "fgvc-aircraft/fgvc-aircraft-2013b"),
        "fgvc-aircraft-2013b.tar.gz of robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
    ),
    Entry(
        "stanford-cars",
        "fine-grained",
        (3, 224),
        8_144,
        8_041,
        196,
        ("stanford_cars", "StanfordCars/stanford_cars"),
        "cars_train, cars_test, devkit and cars_test_annos_withlabels.mat of Stanford Cars (the authors' page is gone)",
    ),
)

class _Catalogue(dict):
    """Entries by canonical name; that of an own data set is made when it is asked for."""

    def __missing__(self, name: str) -> Entry:
        if not is_own(name):
            raise KeyError(name)
        from .own import entry_of

        return entry_of(name)


def is_own(name: str) -> bool:
    """Whether a name is that of an own data set, `folder:PATH@SIZE`."""
    return str(name).strip().startswith(OWN)


CATALOGUE: dict[str, Entry] = _Catalogue({entry.name: entry for entry in _ENTRIES})
NAMES: tuple[str, ...] = tuple(CATALOGUE)

#: Other spellings, those of the original programs first. Capitals and underscores never matter.
ALIASES: dict[str, str] = {
    "mnist_noise": "mnist-noise",
    "cifar_known": "cifar10",
    "cifar_unknown": "cifar10",
    "cifar100_known": "cifar100",
    "cifar100_unknown": "cifar100",
    "cifarova": "cifar10",
    "oodinaturalist": "inaturalist",
    "cifar-10": "cifar10",
    "cifar-100": "cifar100",
    "fashionmnist": "fashion-mnist",
    "fmnist": "fashion-mnist",
    "kuzushiji-mnist": "kmnist",
    "omniglot-py": "omniglot",
    "uniform-noise": "noise",
    "gaussian": "gaussian-noise",
    "tiny-imagenet": "tinyimagenet",
    "tiny-imagenet-200": "tinyimagenet",
    "tinyimagenet-crop": "imagenet-crop",
    "tinyimagenet-resize": "imagenet-resize",
    "imgn-crop": "imagenet-crop",
    "imgn-resize": "imagenet-resize",
    "imgn-fix": "imagenet-fix",
    "imagenet-30": "imagenet30",
    "dtd": "textures",
    "places365": "places",
    "imagenet-1k": "imagenet",
    "imagenet1k": "imagenet",
    "ilsvrc2012": "imagenet",
    "cub200": "cub",
    "cub-200-2011": "cub",
    "aircraft": "fgvc-aircraft",
    "cars": "stanford-cars",
    "scars": "stanford-cars",
}

#: Spellings of VMDLS that mean "the classes of this set which the split leaves unknown".
REST_OF = {"cifar-unknown": "cifar10", "cifar100-unknown": "cifar100"}

_FOLDED = {alias.lower().replace("_", "-"): name for alias, name in ALIASES.items()}


def fold(name: str) -> str:
    """Return a name in lower case with hyphens, as it is compared; paths of own data sets stay as they are."""
    if is_own(name):
        return str(name).strip()
    return str(name).strip().lower().replace("_", "-").replace(" ", "-")


def resolve_name(name: str) -> str:
    """Return the canonical name of a data set from any of its spellings."""
    if is_own(name):
        from .own import canonical

        return canonical(name)
    folded = fold(name)
    if folded in CATALOGUE:
        return folded
    if folded in _FOLDED:
        return _FOLDED[folded]
    hint = nearest(folded, [*NAMES, *_FOLDED]) or f"; known: {', '.join(NAMES)}, and own images as {OWN}PATH@SIZE"
    raise UserError(f"unknown data set '{name}'{hint}")


def data_root(root=None) -> Path:
    """Return the data folder: the argument, else `$OSR_DATA_DIR`, else `data/` of the repository.

    A relative argument that does not exist here is also tried from the repository's root, so that the printed commands
    work from a paper's folder too.
    """
    repository = Path(__file__).resolve().parents[2]
    if root is None:
        chosen = os.environ.get("OSR_DATA_DIR", "")
        return Path(chosen).expanduser() if chosen else repository / "data"
    given = Path(root).expanduser()
    if not given.is_absolute() and not given.exists() and (repository / given).exists():
        return repository / given
    return given


def find(name: str, root: Path, *inside: str) -> Path | None:
    """Return the first place of a data set below `root` that exists and holds one of `inside` (if any is given)."""
    for folder in CATALOGUE[name].folders:
        path = root / folder
        if path.exists() and (not inside or any((path / item).exists() for item in inside)):
            return path
    return None


def missing(name: str, root: Path, what: str = "") -> UserError:
    """Return the error for absent data: what to fetch, where to put it, and the command when there is one."""
    entry = CATALOGUE[name]
    place = root / (entry.folders[0] if entry.folders else "")
    can_download = "download" in json.loads(MANIFEST.read_text())["datasets"].get(name, {})
    command = f", or run: python -m common.datasets download {name}" if can_download else ""
    part = f" ({what})" if what else ""
    return UserError(f"data set {name}{part} is not in {root}: fetch {entry.source} and put it into {place}{command}")
