"""Data sets by name, known/unknown splits, and the data of one open-set experiment.

Importing this package loads NumPy only; torch, torchvision, Pillow and SciPy are imported where they are needed.
"""

from .catalogue import ALIASES, CATALOGUE, NAMES, data_root, resolve_name
from .images import Images, match_shape, stratified_subset
from .preparation import OpenSetData, hold_out, prepare
from .readers import fetch, load
from .splits import Split, class_count, find_split, split_names
from .streaming import open_folder

__all__ = [
    "ALIASES",
    "CATALOGUE",
    "NAMES",
    "Images",
    "OpenSetData",
    "Split",
    "class_count",
    "data_root",
    "fetch",
    "find_split",
    "hold_out",
    "load",
    "match_shape",
    "open_folder",
    "prepare",
    "resolve_name",
    "split_names",
    "stratified_subset",
]
