"""How many images a dry run loads: enough for a batch and a Gaussian of every class."""

from __future__ import annotations

import argparse

IMAGES, PER_CLASS = 64, 4


def enough_images(args, classes: int):
    """The flags that loading data looks at: as they are, or in a dry run a subset of at least 4 images a class."""
    if not args.dry_run:
        return args
    return argparse.Namespace(**{**vars(args), "dry_run": False, "subset": max(IMAGES, PER_CLASS * classes)})
