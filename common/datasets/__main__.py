"""`python -m common.datasets list|verify|splits|download`: what is here, whether it is sound, what can be split."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import UserError
from .catalogue import CATALOGUE, NAMES, data_root, is_own, missing, resolve_name
from .own import class_names, part_of
from .presence import part_path
from .readers import fetch, load
from .splits import find_split, format_classes, split_names
from .streaming import open_folder

PARTS = ((True, "train"), (False, "test"))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the four commands."""
    parser = argparse.ArgumentParser(prog="python -m common.datasets", description=__doc__.split(": ", 1)[1])
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data_dir", help="data folder (default: $OSR_DATA_DIR, else data/ of the repository)")
    commands.add_parser("list", parents=[shared], help="every data set: size, classes, whether and where it is here")
    verify = commands.add_parser("verify", parents=[shared], help="check checksums, counts and that all images decode")
    verify.add_argument("names", nargs="*", metavar="NAME", help="data sets (default: all that are here)")
    splits = commands.add_parser("splits", help="the published known/unknown splits and their sources")
    splits.add_argument("dataset", nargs="?", metavar="NAME", help="one known data set (default: all)")
    download = commands.add_parser("download", parents=[shared], help="fetch data sets; only files of the right checksum arrive")
    download.add_argument("names", nargs="+", metavar="NAME", help="data sets")
    download.add_argument(
        "--base_url",
        metavar="URL",
        help="web server with the same files under the same names, tried first (default: $OSR_DATA_URL)",
    )
    return parser


def list_datasets(root: Path) -> int:
    """Print one line per data set."""
    print(f"data folder: {root}{'' if root.is_dir() else ' (does not exist)'}")
    print(f"{'name':<16} {'train':>9} {'test':>7} {'image':>9} {'classes':>7}  status")
    for name, entry in CATALOGUE.items():
        places = {part: part_path(name, train, root) for train, part in PARTS if train is False or entry.train}
        here = [part for part, place in places.items() if place is not None]
        image = f"{entry.shape[0]}x{entry.shape[1]}x{entry.shape[1]}"
        print(
            f"{name:<16} {entry.train or '-':>9} {entry.test or '-':>7} {image:>9} {entry.classes or '-':>7}  "
            f"{_status(entry, places, here, root)}"
        )
    return 0


def _status(entry, places: dict, here: list[str], root: Path) -> str:
    if not entry.folders:
        return "ready (shipped with scikit-learn)" if entry.reader == "digits" else "ready (generated)"
    if not here:
        looked = ", ".join(folder or "." for folder in entry.folders[:3])
        return f"missing: looked for {looked}" + (" and more" if len(entry.folders) > 3 else "")
    where = places[here[0]]
    shown = where.relative_to(root).as_posix() if where.is_relative_to(root) else where.as_posix()
    if entry.name == "tinyimagenet" and "train" in here:
        count = sum(1 for p in (where / "train").glob("n*") if p.is_dir())
        if count < entry.classes:
            return f"partly: {shown}, {count} of {entry.classes} training classes"
    if len(here) < len(places):
        return f"partly: {shown}, {here[0]} part only"
    return f"ready: {shown}"


def verify_datasets(names: list[str], root: Path) -> int:
    """Read every part that is here; return 1 if one is damaged or incomplete, or a named set is absent."""
    wanted = [resolve_name(name) for name in names] or list(NAMES)
    failed = 0
    for name in wanted:
        found = False
        for train, part in PARTS:
            if part_path(name, train, root) is None:
                continue
            found = True
            try:
                problem, summary = check_part(name, train, root)
            except UserError as error:
                problem, summary = str(error), ""
            failed += bool(problem)
            print(f"{'BAD' if problem else 'ok':<4} {name:<16} {part:<6} {problem or summary}", flush=True)
        if names and not found:
            failed += 1
            print(f"BAD  {name:<16} {'':<6} {missing(name, root)}")
    print(f"{failed} problem{'s' if failed != 1 else ''}")
    return int(failed > 0)


def check_part(name: str, train: bool, root: Path) -> tuple[str, str]:
    """Return the problem of one part (empty if it is sound) and what it holds."""
    entry = CATALOGUE[name]
    expected = 0 if is_own(name) else entry.train if train else entry.test
    if entry.reader == "folder":
        # Too many images to decode them all here.
        count = len(open_folder(name, train, root))
        summary = f"{count} files (not decoded)"
    else:
        images = load(name, train, root)
        count, summary = len(images), f"{len(images)} images, {_digests(images)}"
        if name == "tinyimagenet" and train:
            present = len(set(images.labels.tolist()))
            expected = expected // entry.classes * present
            summary = f"{count} images, {present} of {entry.classes} classes, {_digests(images)}"
    problem = f"{expected} images expected, {count} found" if expected and count != expected else ""
    return problem, summary


def _digests(images) -> str:
    kinds = [value.split(":")[0] for value in images.checksums.values()]
    files = f"{len(kinds)} file{'s' if len(kinds) > 1 else ''}"
    return f"{files} of published md5" if set(kinds) == {"md5"} else f"sha256 {images_digest(images)[:16]}"


def images_digest(images) -> str:
    """Return the first SHA-256 of a set, without its prefix."""
    return next(value.split(":")[1] for value in images.checksums.values() if value.startswith("sha256:"))


def list_splits(dataset: str | None) -> int:
    """Print every published split of one data set or of all."""
    for name in [resolve_name(dataset)] if dataset else NAMES:
        first: dict[tuple, str] = {}
        for split in split_names(name):
            row = find_split(name, split)
            same = first.setdefault((split.rpartition("-")[0], row.known, row.unknown, row.unknown_dataset), split)
            again = "" if same == split else f" | the same classes as {same}"
            unknown = format_classes(row.unknown) or "all"
            other = f" of {row.unknown_dataset}" if row.unknown_dataset else ""
            print(f"{name} {split}: known {format_classes(row.known)} | unknown {unknown}{other} | {row.source}{again}")
        if dataset and is_own(name) and CATALOGUE[name].classes:
            labels = class_names(part_of(name, True))
            print(f"{name}: classes {', '.join(f'{k} {label}' for k, label in enumerate(labels))}; lists may name them")
        if dataset:
            print(f"{name}: also all, first-K, and lists such as 0-5,8")
    return 0


def download_datasets(names: list[str], root: Path, base_url: str | None) -> int:
    """Fetch data sets one after another; return 2 if one failed, whose error does not keep the others from coming."""
    failed = 0
    for name in [resolve_name(name) for name in names]:
        try:
            arrived = fetch(name, root, base_url)
        except UserError as error:
            failed = 2
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            print(f"{name}: downloaded into {root}" if arrived else f"{name}: nothing to download", flush=True)
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        if options.command == "list":
            return list_datasets(data_root(options.data_dir))
        if options.command == "verify":
            return verify_datasets(options.names, data_root(options.data_dir))
        if options.command == "splits":
            return list_splits(options.dataset)
        return download_datasets(options.names, data_root(options.data_dir), options.base_url)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; no incomplete file is left", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
