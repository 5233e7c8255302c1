"""What compare.ipynb lays side by side: methods with scores of the same images, and all records' metrics and costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from evidence import NATURAL, scores_of

from common.plots import read_run
from common.plots.parts import test_part
from common.results import FAMILY, by_source, read_records, read_scores
from common.staleness import shown_recipe

# Scores of each paper that are laid side by side, its own one first.
CHOSEN = {"baseline_openmax": ("mls", "msp", "openmax-tail20"), "crosr": ("crosr", "openmax", "mls"),
          "cssr": ("pcssr-fused", "rcssr-fused", "linear-mls"), "vmdls": ("vmdls", "mean")}  # fmt: skip
REFERENCE = "baseline mls"


class Methods(dict):
    """Method to split to the test part of its scores; `where` says which data that is."""

    where = ""


def named(paper: str, method: str) -> str:
    """A method as figures name it: paper and score, each once."""
    paper = paper.removesuffix("_openmax")
    return method if method.startswith(paper) else f"{paper} {method}"


def is_one_of(method: str, names: tuple[str, ...]) -> bool:
    """Whether a recorded method is one of the scores, whatever its tail; other settings and variants are not."""
    return any(method == name or method.startswith(f"{name}-tail") for name in names)


def of_records() -> list[Methods]:
    """Methods on the same data in one recipe: where there are several splits, and on natural images; each with most papers."""
    tables: dict[tuple, dict[str, dict]] = {}
    for record in read_records():
        current = shown_recipe(record) == record["table"]
        if current and is_one_of(record["method"], CHOSEN[record["paper"]]) and record["seed"] == 0:
            unknown = "+".join(sorted(by_source(record["metrics"])))
            key = (record["data"], FAMILY.sub(r"\1", record["split"]), unknown, record["table"])
            name = named(record["paper"], record["method"])
            tables.setdefault(key, {}).setdefault(name, {})[record["split"]] = record
    complete = {}
    for key, found in tables.items():
        splits = max((frozenset(members) for members in found.values()), key=len)
        complete[key] = {name: members for name, members in found.items() if set(members) == splits}

    def rank(key):
        papers = len({record["paper"] for members in complete[key].values() for record in members.values()})
        return papers, len(complete[key])

    useful = [key for key, found in complete.items() if REFERENCE in found and len(found) > 1]
    several = [key for key in useful if len(complete[key][REFERENCE]) > 1]
    natural = [key for key in useful if key[0] in NATURAL]
    chosen = dict.fromkeys(max(keys, key=rank) for keys in (several, natural) if keys)
    return [_read(key, complete[key]) for key in chosen]


def _read(key: tuple[str, str, str, str], found: dict[str, dict]) -> Methods:
    methods = Methods({name: {split: test_part(read_scores(scores_of(record))) for split, record in sorted(members.items())}
                       for name, members in found.items()})  # fmt: skip
    count = len(methods[REFERENCE])
    methods.where = f"{key[0]} ({key[1]}, {count} split{'s' * (count > 1)}) against {key[2]}; recipe {key[3]}"
    return methods


def of_runs(folder: Path) -> Methods:
    """All scores of the runs in a folder that is laid out as the demo's."""
    found = Methods()
    for path in sorted(folder.iterdir()):
        if (path / "scores.npz").exists():
            for name, scores in read_run(path).scores.items():
                found[named(path.name, name)] = {"digits": test_part(scores)}
    found.where = "the runs given"
    return found


def metrics_of(folder: Path | None) -> list[tuple[str, str, dict, dict]]:
    """`(paper, method, metrics by unknown set, meta)` of every record, or of every score of the runs in a folder."""
    if folder is None:
        return [(record["paper"], record["method"], record["metrics"], record) for record in read_records()]
    import json

    found = []
    for path in sorted(folder.iterdir()):
        if (path / "metrics.json").exists():
            scores = json.loads((path / "metrics.json").read_text())["scores"]
            meta = json.loads((path / "meta.json").read_text())
            found += [(path.name, name, values, meta) for name, values in scores.items()]
    return found


def accuracy_and_auroc(folder: Path | None = None) -> dict[str, list[tuple[float, float]]]:
    """Closed-set accuracy and AUROC of every score and unknown set, by paper."""
    groups: dict[str, list] = {}
    for paper, _, metrics, _ in metrics_of(folder):
        groups.setdefault(paper, []).extend((v["closed_accuracy"], v["auroc"]) for v in by_source(metrics).values())
    return groups


def cost(folder: Path | None = None) -> dict[str, list[dict]]:
    """Minutes of training, images per second and AUROC of every run's own score, by method, data and family of splits.

    Of the records those whose unknown images are the classes that the split leaves out: AUROCs of other sets are not alike.
    """
    groups: dict[str, list] = {}
    for paper, method, metrics, meta in metrics_of(folder):
        # Variants of a recipe, as VMDLS's control with nothing but its heads trained, are no runs of the same thing.
        variant = f" ({meta['table']})" if str(meta.get("table")).startswith("laptop-") else ""
        name = paper if folder else " ".join((f"{method},", meta["data"], FAMILY.sub(r"\1", meta["split"]))) + variant
        left_out = set(by_source(metrics)) == {f"{meta.get('data')}-unknown"}
        if folder is None and not (left_out and is_one_of(method, CHOSEN[paper] if paper == "cssr" else CHOSEN[paper][:1])):
            continue
        if name in groups and folder is not None:
            continue
        seconds = meta["wall_seconds"]
        seconds = seconds["train"] if isinstance(seconds, dict) else seconds
        area = float(np.mean([values["auroc"] for values in by_source(metrics).values()]))
        groups.setdefault(name, []).append({"minutes": seconds / 60, "images/s": float(meta["images_per_second"]), "AUROC": area})
    return groups
