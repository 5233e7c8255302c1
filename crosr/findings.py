"""Check the findings of crosr_bda's README on an evaluated run: each statement, its published value, ours, the verdict.

    python -m crosr.findings RUN                    # a run that crosr/test.py has evaluated with --score crosr or openmax
    python -m crosr.findings RUN --score openmax --unknown imagenet-crop

Prints a table and writes `findings.json` and `findings.md` into the run. The statements are put so that they can be asked of
any data set; the limits that decide them stand in the statements.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.arguments import ROOT, ScriptParser, run_script
from common.errors import UserError, nearest
from common.metrics import (
    aupr_unknown,
    auroc,
    class_report,
    decide_argmax,
    fpr95_known_positive,
    fpr95_unknown_positive,
    one_vs_rest,
)
from common.scores import energy, mls, msp
from crosr.scores import zscore

PAPER = "crosr"
SOURCE = ("README and notebook of grobruegge/crosr_bda at 816242c (CIFAR-10 against 10,000 ImageNet-crop images);"
          " [R]: recomputed from the arrays stored there")  # fmt: skip
NEAR_ZERO = 0.01
TAILS = (20, 50, 100, 200, 500, 1000, 2000, 4000)
LATENT_CHANNELS = 32


@dataclass
class Evaluated:
    """What the findings are computed from: N test images, known and unknown; None where something is not at hand.

    `target` int `(N,)`, -1 unknown; `probabilities (N, K + 1)` of OpenMax, unknown last; `logits (N, K)`; `w (N, K)`, Weibull
    probabilities; `latent_means (K, D)`, the latent entries of the class means; `max_logit`: mean and standard deviation
    `(K,)` of the largest logits of the training images; `tails`: rows (tail size, unknown images found, known ones rejected).
    """

    target: np.ndarray
    class_names: list[str]
    probabilities: np.ndarray | None = None
    logits: np.ndarray | None = None
    w: np.ndarray | None = None
    latent_means: np.ndarray | None = None
    max_logit: tuple[np.ndarray, np.ndarray] | None = None
    tails: list[tuple[int, int, int]] | None = None

    @property
    def unknown(self) -> np.ndarray:
        return self.target < 0

    @property
    def p_unknown(self) -> np.ndarray:
        return self.probabilities[:, -1]

    @property
    def predicted(self) -> np.ndarray:
        """Predicted known class, by the logits where they are at hand."""
        return (self.probabilities[:, :-1] if self.logits is None else self.logits).argmax(1)

    @property
    def w_predicted(self) -> np.ndarray:
        return self.w[np.arange(len(self.w)), self.logits.argmax(1)]


class Answer(NamedTuple):
    """Our side of a finding: values by name, one line of text, whether the statement holds."""

    values: dict[str, float]
    text: str
    holds: bool


class Finding(NamedTuple):
    """A statement of the README, the published value, the fields of `Evaluated` it needs, the function that answers it."""

    name: str
    statement: str
    published: str
    needs: tuple[str, ...]
    answer: Callable[[Evaluated], Answer]


def ranking(one: Evaluated) -> Answer:
    """F1."""
    values = {"auroc": auroc(one.target, one.p_unknown), "aupr_unknown": aupr_unknown(one.target, one.p_unknown),
              "fpr95_unknown_positive": fpr95_unknown_positive(one.target, one.p_unknown),
              "fpr95_known_positive": fpr95_known_positive(one.target, one.p_unknown)}  # fmt: skip
    text = "AUROC {auroc:.3f}, AUPR {aupr_unknown:.3f}, FPR95 {fpr95_unknown_positive:.3f} (unknown positive)"
    return Answer(values, text.format(**values), values["auroc"] >= 0.8)


def unknown_by_argmax(one: Evaluated) -> Answer:
    """F2."""
    decision, unknown = decide_argmax(one.probabilities), one.unknown
    report = class_report(one.target, decision, len(one.class_names))
    found, alarms = int((decision[unknown] < 0).sum()), int((decision[~unknown] < 0).sum())
    values = {"f1_unknown": report.f1[-1], "found": found, "false_alarms": alarms,
              "share_found": found / unknown.sum(), "share_false_alarms": alarms / (~unknown).sum()}  # fmt: skip
    text = f"F1 {report.f1[-1]:.4f}: {found} of {unknown.sum()} unknown, {alarms} of {(~unknown).sum()} known images"
    return Answer(values, text, report.f1[-1] < 0.05)


def accuracy_by_argmax(one: Evaluated) -> Answer:
    """F3."""
    known = ~one.unknown
    report = class_report(one.target, decide_argmax(one.probabilities), len(one.class_names))
    closed = (one.predicted[known] == one.target[known]).mean()
    values = {"accuracy": report.accuracy, "closed_accuracy": closed, "share_known": known.mean()}
    for mean in ("macro", "weighted"):
        values |= dict(zip((f"{mean}_precision", f"{mean}_recall", f"{mean}_f1"), getattr(report, mean)))
    text = (f"accuracy {report.accuracy:.4f} = {closed:.4f} x {known.mean():.3f} {report.accuracy - closed * known.mean():+.4f};"
            " macro P/R/F1 {macro_precision:.2f}/{macro_recall:.2f}/{macro_f1:.2f}, weighted"
            " {weighted_precision:.2f}/{weighted_recall:.2f}/{weighted_f1:.2f}".format(**values))  # fmt: skip
    return Answer(values, text, abs(report.accuracy - closed * known.mean()) <= 0.02)


def unknown_by_threshold(one: Evaluated) -> Answer:
    """F4."""
    table = one_vs_rest(one.target, one.probabilities)
    values = {name: getattr(table, name)[-1] for name in ("youden_cut", "tpr_at_cut", "fpr_at_cut", "f1_at_cut", "f1_argmax")}
    text = ("F1 {f1_at_cut:.4f} at p(unknown) >= {youden_cut:.4g} (TPR {tpr_at_cut:.3f}, FPR {fpr_at_cut:.3f});"
            " arg max {f1_argmax:.4f}")  # fmt: skip
    return Answer(values, text.format(**values), values["f1_at_cut"] > values["f1_argmax"] + 0.1)


def largest_logit(one: Evaluated) -> Answer:
    """F5."""
    target, logits, unknown = one.target, one.logits, one.unknown
    largest = logits.max(1)
    values = {"mean_known": largest[~unknown].mean(), "mean_unknown": largest[unknown].mean(),
              **{f"auroc_{score.__name__}": auroc(target, score(logits)) for score in (mls, energy, msp)}}  # fmt: skip
    text = ("mean {mean_known:.1f} known, {mean_unknown:.1f} unknown; AUROC largest logit {auroc_mls:.3f}, energy"
            " {auroc_energy:.3f}, MSP {auroc_msp:.3f}")  # fmt: skip
    if one.max_logit is not None:
        of_predicted, as_released = logits.argmax(1), np.where(unknown, logits.argmax(1), target)
        for name, classes in (("", of_predicted), ("_released", as_released)):
            for sides, two_sided in (("two_sided", True), ("one_sided", False)):
                score = zscore(logits, *one.max_logit, classes, two_sided)
                values[f"auroc_z_{sides}{name}"] = auroc(target, score)
        text += (", z {auroc_z_two_sided:.3f}, one-sided z {auroc_z_one_sided:.3f} (with the true class of the knowns, as"
                 " released: {auroc_z_two_sided_released:.3f}, {auroc_z_one_sided_released:.3f})")  # fmt: skip
    if one.probabilities is not None:
        values["auroc_p_unknown"] = auroc(target, one.p_unknown)
        text += "; p(unknown) {auroc_p_unknown:.3f}"
    return Answer(values, text.format(**values), values["mean_unknown"] < values["mean_known"] and values["auroc_mls"] >= 0.8)


def w_of_predicted(one: Evaluated) -> Answer:
    """F6."""
    w, unknown = one.w_predicted, one.unknown
    others = np.delete(one.w.ravel(), np.arange(len(w)) * one.w.shape[1] + one.logits.argmax(1)).reshape(len(w), -1)
    values = {"share_unknown": (w[unknown] < NEAR_ZERO).mean(), "share_known": (w[~unknown] < NEAR_ZERO).mean(),
              "auroc": auroc(one.target, w), "others_known": others[~unknown].mean(),
              "others_unknown": others[unknown].mean()}  # fmt: skip
    text = ("below .01: {share_unknown:.3f} of the unknown, {share_known:.3f} of the known; AUROC of it alone {auroc:.2f};"
            " mean of the other classes {others_known:.2f} known, {others_unknown:.2f} unknown")  # fmt: skip
    return Answer(values, text.format(**values), values["share_unknown"] > 0.5)


def dead_latents(one: Evaluated) -> Answer:
    """F7."""
    near = np.abs(one.latent_means) < NEAR_ZERO
    levels = near.reshape(len(near), -1, LATENT_CHANNELS).mean((0, 2))
    count = len(levels)
    values = {"share": near.mean(), **{f"share_z{count - index}": share for index, share in enumerate(levels)}}
    text = f"{near.mean():.2f} of {near.shape[1]} entries: " + ", ".join(
        f"z{count - index} {share:.2f}" for index, share in enumerate(levels)
    )
    return Answer(values, text, near.mean() > 0.5)


def tail_sizes(one: Evaluated) -> Answer:
    """F8."""
    found, alarms = np.array([row[1] for row in one.tails]), np.array([row[2] for row in one.tails])
    values = {f"found_{tail}": n for tail, n, _ in one.tails} | {f"false_alarms_{tail}": n for tail, _, n in one.tails}
    text = "; ".join(f"tail {tail}: {n} found, {m} false alarms" for tail, n, m in one.tails)
    grow = (np.diff(found) >= 0).all() and (np.diff(alarms) >= 0).all()
    return Answer(values, text, bool(grow and found[-1] > found[0] and alarms[-1] > alarms[0]))


def weakest_class(one: Evaluated) -> Answer:
    """F9."""
    predicted, unknown, classes = one.predicted, one.unknown, len(one.class_names)
    taken = np.bincount(predicted[unknown], minlength=classes)
    right = np.bincount(one.target[~unknown], predicted[~unknown] == one.target[~unknown], minlength=classes)
    accuracy = right / np.bincount(one.target[~unknown], minlength=classes)
    most, weakest = int(taken.argmax()), int(np.nanargmin(accuracy))
    values = {"most_predicted": most, "taken": int(taken[most]), "weakest": weakest, "accuracy": accuracy[weakest]}
    text = (f"{taken[most]} of {unknown.sum()} into {one.class_names[most]}; weakest: {one.class_names[weakest]},"
            f" accuracy {accuracy[weakest]:.3f}")  # fmt: skip
    holds = most == weakest
    if one.logits is not None:
        largest, known = one.logits.max(1), ~unknown
        with np.errstate(invalid="ignore"):
            means = np.bincount(predicted[known], largest[known], minlength=classes)
            means = means / np.bincount(predicted[known], minlength=classes)
        lowest = int(np.nanargmin(means))
        values |= {"lowest_logits": lowest, "mean_largest_logit": means[lowest]}
        text += f"; lowest largest logits: {one.class_names[lowest]}, mean {means[lowest]:.1f}"
        holds = holds and most == lowest
    return Answer(values, text, holds)


def alike(one: Evaluated) -> Answer:
    """F10."""
    from scipy.stats import spearmanr

    values = {"spearman_one_minus_known": float(spearmanr(one.p_unknown, 1 - one.probabilities[:, :-1].max(1))[0])}
    text, holds = "Spearman {spearman_one_minus_known:.2f}", values["spearman_one_minus_known"] >= 0.7
    if one.w is not None and one.logits is not None:
        values["pearson_w"] = float(np.corrcoef(one.p_unknown, one.w_predicted)[0, 1])
        text, holds = f"correlation {{pearson_w:.2f}}, {text}", bool(holds and values["pearson_w"] >= 0.5)
    return Answer(values, text.format(**values), holds)


FINDINGS = (
    Finding("F1", "p(unknown) ranks unknown images above known ones fairly well (AUROC at least .8)",
            "~90 % / 88.3 %; [R] AUROC .8834, AUPR .8106, FPR95 .335", ("probabilities",), ranking),
    Finding("F2", 'arg max over K+1 almost never says "unknown" (F1 of unknown below .05)',
            "F1 .01 / .0055; [R] 28 of 10,000 unknown, 82 of 10,000 known images", ("probabilities",), unknown_by_argmax),
    Finding("F3", "so arg max over all images is right where the classifier of the known ones is (accuracy = closed accuracy x"
            " share of known images, within .02)",
            "accuracy .45, macro P/R/F1 .49/.81/.58, weighted .38/.45/.32; [R] .4474 = .8998 x .5 - .0025",
            ("probabilities",), accuracy_by_argmax),
    Finding("F4", "a threshold on p(unknown) separates what arg max does not (F1 of unknown at the Youden cut more than .1"
            " above arg max)", "F1 .8326 at .0004; [R] cut 3.70e-4, TPR .8887, FPR .246", ("probabilities",),
            unknown_by_threshold),
    Finding("F5", "the largest logit is lower for unknown images and a threshold on it is a strong baseline (AUROC at least .8)",
            "z-score ~82 %; [R] mean 14.0 known, 5.8 unknown; AUROC largest logit .914, energy .916, MSP .867, z .819,"
            " one-sided z .895: above OpenMax's .883", ("logits",), largest_logit),
    Finding("F6", "the w-score of the predicted class is near 0 for most unknown images (below .01 for more than half)",
            "figure; [R] on the logits, tail 100: .898 of the unknown, .967 of the known; AUROC of it alone .54",
            ("w", "logits"), w_of_predicted),
    Finding("F7", "almost all latent entries of the class means are near 0 (more than half below .01)",
            "figure of class 7: z3 and z2 all 0, z1 at 14 of 32 (.81 of 96)", ("latent_means",), dead_latents),
    Finding("F8", "a larger tail finds more unknown images and rejects more known ones (both grow over the tail sizes)",
            "text; [R] on the logits: tail 20: 0, 19; 100: 49, 88; 200: 820, 209; 500: 3,007, 676; 1000: 5,180, 1,410",
            ("tails",), tail_sizes),
    Finding("F9", "more unknown images go into the weakest class, which has the lowest logits, than into any other",
            "figure; [R] 3,530 of 10,000 into class 3, accuracy .76-.78, mean largest logit 9.8", ("probabilities",),
            weakest_class),
    Finding("F10", "p(unknown) looks like the w-score of the predicted class (correlation at least .5), and orders the images"
            " like 1 - largest known probability (Spearman at least .7)", "text; [R] Spearman .86", ("probabilities",), alike),
)  # fmt: skip


def check(one: Evaluated) -> list[dict]:
    """Every finding on one evaluation: name, statement, published value, ours, values, verdict."""
    rows = []
    for finding in FINDINGS:
        missing = [name for name in finding.needs if getattr(one, name) is None]
        row = {"name": finding.name, "statement": finding.statement, "published": finding.published}
        if missing:
            row |= {"ours": f"no {' and '.join(missing).replace('_', ' ')}", "verdict": "not applicable", "values": {}}
        else:
            answer = finding.answer(one)
            row |= {"ours": answer.text, "verdict": "holds" if answer.holds else "does not hold", "values": answer.values}
        rows.append(row)
    return rows


def markdown(rows: list[dict], title: str) -> str:
    """The findings as a markdown table."""
    columns = ("name", "statement", "published", "ours", "verdict")
    lines = [f"# {title}", "", f"Published: {SOURCE}.", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(row[column] for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def evaluated_run(directory: Path, score: str | None = None, unknown: str | None = None) -> tuple[Evaluated, str]:
    """What the findings need of an evaluated run, and the score's name.

    Raises
    ------
    UserError
        The run was not evaluated with an OpenMax score, or its weights have changed since; no such score or unknown set.
    """
    from common.checkpoints import find, load_weights
    from common.files import sha256
    from common.results import read_scores
    from crosr.features import WITH_LATENTS, FeatureFile, stored_statistics
    from crosr.scores import Variant, fit, statistics_for, stored_tail

    again = f"python crosr/test.py --run_dir {directory} --score crosr"
    if not (directory / "calibration_info.json").exists() or not (directory / "metrics.json").exists():
        raise UserError(f"{directory} has not been evaluated: {again}")
    info, found = (json.loads((directory / name).read_text()) for name in ("calibration_info.json", "metrics.json"))
    if not info["scores"]:
        raise UserError(f"{directory} was evaluated without an OpenMax score: {again}")
    name = score or next(iter(info["scores"]))
    if name not in info["scores"]:
        raise UserError(f"no OpenMax score {name!r}, choose from {', '.join(info['scores'])}{nearest(name, info['scores'])}")
    tensors, _ = load_weights(directory, paper=PAPER)
    features = FeatureFile(directory / info["feature_file"], info["network"])
    if info["network"].split()[0] != sha256(find(directory)[0]) or any(key not in features.sets for _, key in info["parts"]):
        raise UserError(f"weights or {info['feature_file']} are not those of the evaluation: {again}")
    own = next(iter(found["scores"])) == name
    arrays = read_scores(directory / ("scores.npz" if own else f"scores_{name}.npz"))
    sets = [features.sets[key] for _, key in info["parts"]]
    arrays |= {key: np.concatenate([one[key] for one in sets]) for key in sets[0]}
    settings = dict(info["scores"][name])
    settings.pop("weibull")
    variant = Variant(settings.pop("features"), settings.pop("pooling"), settings)
    class_names = [str(one) for one in arrays["class_names"]]
    statistics = statistics_for(stored_statistics(tensors), arrays, [settings["tail_size"]])
    model = fit(statistics, variant, class_names)

    rows = test_rows(arrays, unknown)
    vectors = variant.vectors({key: value[rows] for key, value in arrays.items() if key in sets[0]})
    target, classes = arrays["target"][rows], len(class_names)
    tails = []
    for tail in (t for t in TAILS if t <= min(stored_tail(statistics), statistics["used"].min())):
        decision = decide_argmax(fit(statistics, variant._replace(settings=settings | {"tail_size": tail}), class_names)
                                 .probabilities(vectors))  # fmt: skip
        tails.append((tail, int(((decision < 0) & (target < 0)).sum()), int(((decision < 0) & (target >= 0)).sum())))
    return Evaluated(
        target, class_names, arrays["probabilities"][rows], arrays["logits"][rows], model.tail_probabilities(vectors),
        model.means[:, classes:] if variant.features == WITH_LATENTS else None,
        (statistics["max_logit_mean"], statistics["max_logit_std"]), tails if len(tails) > 1 else None,
    ), name  # fmt: skip


def test_rows(arrays, unknown: str | None) -> np.ndarray:
    """Mask of the test images: the known ones and those of the unknown set (all where none is named)."""
    from common.metrics import by_unknown_source

    sources = dict(by_unknown_source(arrays))
    if unknown is None:
        return np.logical_or.reduce(list(sources.values()))
    if unknown not in sources:
        raise UserError(f"no unknown set {unknown!r} was evaluated, choose from {', '.join(sources)}{nearest(unknown, sources)}")
    return sources[unknown]


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(prog="python -m crosr.findings", description=__doc__.split("\n")[0])
    parser.add_argument("run", help="run directory or name of an evaluated run")
    parser.add_argument("--score", help="OpenMax score of the evaluation; else the first")
    parser.add_argument("--unknown", metavar="SET", help="unknown set of the evaluation; else all of them together")
    parser.add_argument("--record", metavar="NAME", help="also write results/findings/crosr/NAME.json, for the tables")
    return parser


def main(argv=None) -> None:
    args = get_args_parser().parse_args(argv)
    from common.files import atomic, write_json
    from common.run import find_run

    directory = find_run(PAPER, args.run)
    one, score = evaluated_run(directory, args.score, args.unknown)
    rows = check(one)
    title = f"Findings of crosr_bda on {directory.name}: {score}, unknown {args.unknown or 'sets of the evaluation'}"
    for row in rows:
        print(f"{row['name']:4} {row['verdict']:14}  {row['statement']}")
        print(f"     published: {row['published']}\n     ours:      {row['ours']}")
    write_json(directory / "findings.json", {"score": score, "unknown": args.unknown, "source": SOURCE, "findings": rows})
    with atomic(directory / "findings.md") as partial:
        partial.write_text(markdown(rows, title))
    print(f"written: {directory / 'findings.md'}")
    if args.record:
        path = ROOT / "results" / "findings" / PAPER / f"{args.record}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        command = f"python -m crosr.findings {' '.join(sys.argv[1:] if argv is None else argv)}"
        write_json(path, {"title": f"{args.record}: {args.unknown or 'all unknown sets'}", "run": directory.name, "score": score,
                          "command": command, "source": SOURCE,
                          "findings": [{key: row[key] for key in ("name", "statement", "published", "ours", "verdict")}
                                       for row in rows]})  # fmt: skip
        print(f"written: {path.relative_to(ROOT)}; python -m common.reproduce table fills the tables")


if __name__ == "__main__":
    run_script(main)
