"""The commands around training on digits: heads, best epoch, API, prediction, export, openness, deep-osr's scripts."""

import csv
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from baseline_openmax import export, openness, tuning
from baseline_openmax import main as train
from baseline_openmax import test as evaluate
from baseline_openmax.api import Detector
from baseline_openmax.presets import PRESETS
from common.datasets import prepare
from common.errors import UserError
from common.files import sha256
from common.metrics import aupr_known, aupr_unknown, auroc

ROOT = Path(__file__).resolve().parents[2]
ALL = ["kplus1", "mls", "msp", "energy", "entropy", "margin", "gen", "odin", "kl", "openmax", "openmax-simple"]


@pytest.fixture(scope="module")
def proser(tmp_path_factory):
    """A network trained for K+1 in two ways, with OpenMax fitted at the end, evaluated with every head."""
    directory = tmp_path_factory.mktemp("runs") / "proser"
    train.main(["--preset", "digits-proser", "--run_dir", str(directory), "--max_epochs", "8", "--fit_openmax", "15"])
    evaluate.main(["--run_dir", str(directory), "--score", *ALL, "--tail_size", "15", "--no_report"])
    return directory


def scores_of(directory, name=None):
    with np.load(directory / ("scores.npz" if name is None else f"scores_{name}.npz")) as stored:
        return {key: stored[key] for key in stored.files}


def test_every_head_separates_the_unknown_digits(proser):
    found = json.loads((proser / "metrics.json").read_text())["scores"]
    assert set(found) == set(ALL)
    aurocs = {name: values["all"]["auroc"] for name, values in found.items()}
    assert min(aurocs.values()) > 0.85 and max(aurocs.values()) > 0.95, aurocs
    assert len({values["all"]["closed_accuracy"] for values in found.values()}) == 1


def test_kplus1_writes_probabilities_of_which_95_percent_of_held_out_knowns_are_accepted(proser):
    scores = scores_of(proser)
    assert scores["probabilities"].shape[1] == 7 and scores["logits"].shape[1] == 6
    np.testing.assert_allclose(scores["probabilities"].sum(1), 1)
    held_out = scores["split"] == 1
    assert (scores["probabilities"][held_out].argmax(1) < 6).mean() == pytest.approx(0.95, abs=0.03)
    assert "dummy" not in scores and "odin" not in scores and "features" not in scores


def test_odin_scores_the_parts_that_are_reported(proser):
    assert set(scores_of(proser, "odin")["split"]) == {0, 1}
    assert set(scores_of(proser, "openmax-simple")["split"]) == {0, 1, 2}


def test_run_directory_holds_the_promised_files(proser):
    for name in ("config.json", "meta.json", "log.jsonl", "state.pt", "weights.safetensors", "weights_best.safetensors",
                 "calibration_info.json", "metrics.json", "scores.npz", "openmax.safetensors"):  # fmt: skip
        assert (proser / name).is_file(), name
    meta = json.loads((proser / "meta.json").read_text())
    assert {"command", "code_version", "versions", "data_checksums", "seed"} <= set(meta)
    info = json.loads((proser / "calibration_info.json").read_text())
    assert {"method", "temperature", "nll_before", "nll_after", "ece_before", "ece_after", "images"} == set(info)
    calibration = json.loads((proser / "metrics.json").read_text())["calibration"]
    assert calibration["temperature"] == info["temperature"] and 0 <= calibration["ece_after"] <= 1


def test_openmax_fitted_at_the_end_is_the_one_that_is_evaluated(proser, tmp_path, capsys):
    from common.checkpoints import load_weights

    _, header = load_weights(proser / "openmax.safetensors", paper="baseline_openmax")
    assert header["fitted_by"] == "main.py" and header["openmax"]["tail_size"] == 15
    # The training part is not scored again for it: only openmax-simple asked for it above.
    evaluate.main(["--checkpoint_path", str(proser), "--run_dir", str(tmp_path / "out"), "--score", "openmax",
                   "--tail_size", "15", "--no_report"])  # fmt: skip
    evaluate.main(["--run_dir", str(proser), "--select", "last", "--score", "openmax", "--tail_size", "15", "--no_report",
                   "--dry_run"])  # fmt: skip
    first, again = (json.loads(p.read_text())["scores"]["openmax"]["all"]["auroc"]
                    for p in (proser / "metrics.json", tmp_path / "out" / "metrics.json"))  # fmt: skip
    assert first == pytest.approx(again, abs=1e-9)


def test_best_epoch_is_chosen_on_known_images_and_reported_apart(proser):
    evaluate.main(["--run_dir", str(proser), "--select", "best", "--score", "mls", "--no_report"])
    assert (proser / "best" / "scores.npz").is_file()
    from common.checkpoints import load_weights

    _, header = load_weights(proser / "weights_best.safetensors", paper="baseline_openmax")
    log = [json.loads(line) for line in (proser / "log.jsonl").read_text().splitlines()]
    assert 1 <= header["selection"]["epoch"] <= len(log) == 8 and header["selection"]["accuracy"] > 0.9
    with pytest.raises(UserError, match="leave out --select best"):
        evaluate.main(["--run_dir", str(proser), "--select", "best", "--record", "check"])


def test_calibrated_scores_move_msp_and_not_the_ranks_of_mls(proser, tmp_path):
    info = json.loads((proser / "calibration_info.json").read_text())
    flags = ["--checkpoint_path", str(proser), "--score", "mls", "msp", "--calibrated_scores", "--no_report"]
    evaluate.main([*flags, "--run_dir", str(tmp_path / "calibrated")])
    plain, calibrated = scores_of(proser, "mls"), scores_of(tmp_path / "calibrated")
    test = plain["split"] == 0
    moved = calibrated["unknown_score"][calibrated["split"] == 0]
    np.testing.assert_allclose(moved * info["temperature"], plain["unknown_score"][test], atol=1e-5)
    assert auroc(plain["target"][test], moved) == pytest.approx(auroc(plain["target"][test], plain["unknown_score"][test]))


def test_three_lines_of_python_give_the_scores_of_test_py(proser):
    from common.datasets import prepare

    data = prepare("digits", "first-6")
    for score in ("kplus1", "mls", "kl", "openmax-simple", "openmax", "odin"):
        detector = Detector(proser, score=score)
        stored = scores_of(proser, None if score == "kplus1" else score)
        expected = stored["unknown_score"][(stored["split"] == 0) & (stored["target"] < 0)]
        unknown = data.unknown["digits-unknown"].pixels
        np.testing.assert_allclose(detector(unknown), expected, atol=1e-4)
    decided = detector.decide(unknown)
    assert decided.min() == -1 and (decided == -1).mean() > 0.5
    np.testing.assert_allclose(detector.probabilities(unknown).sum(1), 1)
    with pytest.raises(UserError, match=r"expected images uint8 \(N, 1, 8, 8\)"):
        detector(unknown.astype(np.float32))
    with pytest.raises(UserError, match="nearest: mls"):
        Detector(proser, score="mlss")


def test_predict_names_class_score_threshold_and_confidence(run, proser, tmp_path):
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number in (0, 9):
        image = digits.images[list(digits.target).index(number)]
        Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((64, 64)).save(tmp_path / f"{number}.png")
    done = run("predict.py", "--checkpoint", proser, tmp_path / "0.png", tmp_path / "9.png")
    assert done.returncode == 0, done.stderr
    zero, _ = [line for line in done.stdout.splitlines() if ".png" in line]
    assert zero.split()[1] == "0" and "kplus1" in zero and "threshold" in zero
    assert 0.8 < float(zero.split()[-1]) <= 1
    done = run("predict.py", "--checkpoint", proser, tmp_path / "none.png")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "none.png is not there" in done.stderr


def test_openood_columns(proser, tmp_path):
    export.main(["openood", str(proser), "--out", str(tmp_path / "table.csv")])
    with open(tmp_path / "table.csv") as source:
        rows = list(csv.DictReader(source))
    assert list(rows[0]) == ["run", "score", *export.OPENOOD] and {row["score"] for row in rows} == set(ALL)
    scores = scores_of(proser, "mls")
    test = scores["split"] == 0
    row = next(row for row in rows if row["score"] == "mls")
    assert float(row["AUROC"]) == pytest.approx(100 * auroc(scores["target"][test], scores["unknown_score"][test]), abs=0.01)
    assert row["dataset"] == "digits-unknown" and 0 <= float(row["CCR_4"]) <= float(row["CCR_1"]) <= float(row["ACC"]) <= 100


def test_deep_osr_names_say_the_polarity_they_have():
    target, u = np.array([0, 1, 0, -1]), np.array([0.1, 0.2, 0.6, 0.5])
    scores = {"target": target, "prediction": np.array([0, 1, 0, 0]), "unknown_score": u, "split": np.zeros(4, int)}
    found = export.deep_osr_metrics(scores)
    assert found["aupr_in"] == aupr_known(target, u) == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found["aupr_out"] == aupr_unknown(target, u) == pytest.approx(1 / 2)
    assert found["acc_known"] == 1.0 and len(found["u_recall_at_95_seen_prec"]) == 3


def test_deep_osr_scripts_train_evaluate_and_plot(tmp_path):
    python = ROOT / "baseline_openmax" / "scripts"
    environment = os.environ | {"PYTHON": os.sys.executable}

    def call(script, *words):
        done = subprocess.run([python / script, *words], capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("run_train.sh", "experiment/digits", "--max_epochs", "3")
    (run,) = (tmp_path / "outputs" / "runs").iterdir()
    call("run_eval.sh", str(run.relative_to(tmp_path)), "--no_report")
    metrics = json.loads((run / "eval_outputs" / f"metrics_{run.name}.json").read_text())
    assert metrics["auroc"] > 0.8 and metrics["acc_known"] > 0.9
    with np.load(run / "eval_outputs" / f"scores_{run.name}.npz") as scores:
        assert scores["probs"].shape[1] == 6 and len(scores["feats"]) == len(scores["y_true"]) == len(scores["osr_scores"])
    call("gen_plots.sh", str(run.relative_to(tmp_path)))
    assert {p.name for p in (run / "plots").glob("*.png")} == {f"{run.name}_{kind}.png" for kind in ("oscr", "roc", "tsne", "cm")}


def test_openness_sweep_draws_and_tabulates(tmp_path):
    openness.main(["--known_counts", "2", "6", "--max_epochs", "3", "--save", "sweep", "--run_dir", str(tmp_path / "sweep")])
    with open(tmp_path / "sweep" / "openness.csv") as source:
        rows = list(csv.DictReader(source))
    assert [(row["known"], row["score"]) for row in rows] == [("2", "mls"), ("2", "msp"), ("6", "mls"), ("6", "msp")]
    assert float(rows[0]["openness"]) > float(rows[2]["openness"]) and set(rows[0]["classes"].split(",")) < set("0123456789")
    assert (tmp_path / "sweep" / "openness.png").read_bytes().startswith(b"\x89PNG")


def test_tuning_scores_left_out_known_classes_only(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "ROOT", tmp_path)
    short = ["--candidates", "label_smoothing=0.2", "max_epochs=1", "--max_epochs", "5", "--draws", "2"]
    tuning.main([*short, "--score", "mls", "--run_dir", str(tmp_path / "tuning"), "--save", "x", "--record", "x"])
    with open(tmp_path / "tuning" / "tuning.csv") as source:
        rows = list(csv.DictReader(source))
    assert [(row["candidate"], row["draw"]) for row in rows] == [
        (name, draw) for draw in "01" for name in ("as-given", "label_smoothing=0.2", "max_epochs=1")
    ]
    assert all(set(row["left_out"].split(",")) < set("012345") for row in rows), "digits 6 to 9 are the split's unknown classes"
    assert float(rows[0]["auroc"]) > float(rows[2]["auroc"]) > 0 and float(rows[0]["closed_accuracy"]) > 0.8
    record = json.loads((tmp_path / "results" / "tuning" / "x.json").read_text())
    assert [row["auroc"] for row in record["rows"]] == [float(row["auroc"]) for row in rows]
    # The AUROC again, from the run and images prepared by hand.
    left_out = [int(k) for k in rows[0]["left_out"].split(",")]
    detector = Detector(tmp_path / "tuning" / "as-given-0", "mls")
    known = prepare("digits", sorted(set(range(6)) - set(left_out)), (), validation_share=0.1, seed=0).validation
    unknown = prepare("digits", left_out, (), validation_share=0.0).train
    target = np.r_[np.zeros(len(known)), np.ones(len(unknown))]
    scores = np.r_[detector(known.pixels), detector(unknown.pixels)]
    assert float(rows[0]["auroc"]) == pytest.approx(roc_auc_score(target, scores))
    assert "label_smoothing=0.2" in capsys.readouterr().out


def test_readme_quotes_the_committed_tuning():
    record = json.loads((ROOT / "results" / "tuning" / "laptop.json").read_text())
    text = " ".join((ROOT / "baseline_openmax" / "README.md").read_text().split())
    aurocs, accuracies = ([f"{row[name]:.3f}".lstrip("0") for row in record["rows"]] for name in ("auroc", "closed_accuracy"))
    quoted = "{} with the smoothing and eight epochs (four of them short), {} without, {} with the seven epochs as they are"
    assert quoted.format(*aurocs) in text and "accuracy was {}, {}, {}".format(*accuracies) in text
    assert "--preset laptop" in record["command"] and {row["score"] for row in record["rows"]} == {"mls"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--candidates", "=3"], "expects NAME=VALUE"),
        (["--candidates", "split=0-3"], "must not change"),
        (["--candidates", "rate=0.1", "--left_out", "5"], "--left_out must be 1 to 4"),
        (["--candidates", "label_smothing=0.1"], "label_smothing"),
    ],
)
def test_tuning_refuses_what_would_not_compare(flags, said, capsys):
    with pytest.raises((UserError, SystemExit)) as raised:
        tuning.main([*flags, "--save", "x"])
    assert said in str(raised.value) + capsys.readouterr().err


def test_openness_formula_and_nested_draws():
    assert openness.openness(10, 10) == 0 and openness.openness(6, 10) == pytest.approx(1 - (12 / 16) ** 0.5)
    small, large = openness.draws_of(10, 3, 2, 0), openness.draws_of(10, 7, 2, 0)
    assert all(set(a) < set(b) for a, b in zip(small, large)) and small[0] != small[1]
    with pytest.raises(UserError, match="1 to 10, got 11"):
        openness.openness(11, 10)


def test_fine_tuning_starts_from_a_run_and_adds_the_dummies(proser, tmp_path):
    train.main(["--run_dir", str(tmp_path / "plain"), "--max_epochs", "2"])
    train.main(["--run_dir", str(tmp_path / "tuned"), "--start_from", str(tmp_path / "plain"), "--kplus1", "placeholder",
                "--rate", "0", "--weight_decay", "0", "--max_epochs", "1"])  # fmt: skip
    from common.checkpoints import load_weights

    (plain, _), (tuned, header) = (load_weights(tmp_path / n, paper="baseline_openmax") for n in ("plain", "tuned"))
    started = json.loads((tmp_path / "tuned" / "meta.json").read_text())["started_from"]
    assert started == sha256(tmp_path / "plain" / "weights.safetensors")
    assert header["kplus1"] == ["placeholder"] and set(tuned) - set(plain) == {"dummy.weight", "dummy.bias"}
    assert (plain["classifier.weight"] == tuned["classifier.weight"]).all()
    with pytest.raises(UserError, match="give its --split"):
        train.main(["--run_dir", str(tmp_path / "x"), "--start_from", str(tmp_path / "plain"), "--split", "first-4"])
    with pytest.raises(UserError, match="another network"):
        train.main(["--run_dir", str(tmp_path / "y"), "--start_from", str(tmp_path / "plain"), "--neck", "mlp"])


BAD = [
    (["--backbone", "vit_b16"], "patches of 16 pixels, these have 8"),
    (["--backbone", "dinov2_s14", "--image_size", "32"], "--image_size 28 or 42"),
    (["--backbone", "speednet"], "at least 27 pixels"),
    (["--backbone", "resnet_50"], "nearest: resnet50"),
    (["--osr_head", "kplus1", "--kplus1", "oe"], "--kplus1 oe needs --outliers"),
    (["--kplus1", "oe", "--outliers", "digits"], "known data set itself"),
    (["--kplus1", "oe", "--outliers", "nosie"], "nearest: noise"),
    (["--osr_head", "mls", "--outliers", "noise"], "--outliers needs --osr_head"),
    (["--osr_head", "energy", "--kplus1", "mixup"], "--osr_head is energy"),
    (["--kplus1", "mixup", "--compile"], "leave out --compile"),
    (["--kplus1", "mixup", "--mixup_alpha", "0"], "--mixup_alpha must be above 0"),
    (["--osr_head", "energy", "--outliers", "noise", "--known_margin", "-4", "--unknown_margin", "-8"], "must lie below"),
    (["--preset"], "expected one argument"),
    (["--frozen"], "--frozen keeps random weights"),
    (["--pretrained", "perhaps"], "expected true or false"),
    (["--pretrained", "true"], "is a plain net"),
    (["--schedule", "restarts", "--warmup_epochs", "30"], "do not fit"),
    (["--augment", "shift4+randaugment", "--randaugment_m", "31"], "strength of 30"),
    (["--start_from", "no-such-run"], "trains one"),
    (["--preset", "laptop-proser"], "name it with --start_from RUN"),
]


@pytest.mark.parametrize(("flags", "expected"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input_is_one_line_and_writes_nothing(flags, expected, tmp_path, capsys):
    from common.arguments import run_script

    with pytest.raises(SystemExit) as stopped:
        run_script(train.main, ["--run_dir", str(tmp_path / "run"), *flags])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and expected in said
    assert not (tmp_path / "run").exists()


def test_a_temperature_out_of_bounds_ends_training_loudly_and_keeps_the_weights(tmp_path):
    with pytest.raises(UserError, match=r"outside \[0.05, 20.0\]: .*the weights are in"):
        train.main(["--run_dir", str(tmp_path / "run"), "--logit_scale", "1e-4", "--max_epochs", "1"])
    assert (tmp_path / "run" / "weights.safetensors").exists() and not (tmp_path / "run" / "calibration_info.json").exists()


def test_bad_evaluation_input(proser, trained, tmp_path):
    with pytest.raises(UserError, match="needs a network trained with --kplus1"):
        evaluate.main(["--run_dir", str(trained), "--score", "kplus1"])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_parses_and_describes_a_network(preset):
    from baseline_openmax.backbones import check_size, is_plain

    args = train.parse_arguments(["--preset", preset, "--start_from", "a-run"])
    size = args.image_size or {"digits": 8, "mnist": 28, "tinyimagenet": 64}.get(args.known_dataset, 32)
    if args.backbone:
        check_size(args.backbone, size, "small", is_plain(args.backbone))
    if preset.startswith("strong"):
        assert (args.backbone, args.max_epochs, args.batch_size, args.weight_decay) == ("classifier32", 600, 128, 1e-4)


def test_restart_schedule_rises_then_falls_three_times():
    import torch

    from baseline_openmax.recipe import RestartSchedule

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = RestartSchedule(optimizer, total=310, restarts=2, warmup=10)
    factors = np.array([schedule.set(step) for step in range(310)])
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    assert (factors[[10, 110, 210]] == 1).all() and (factors[[109, 209, 309]] < 0.001).all()
    assert factors[60] == pytest.approx(0.5) and optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * factors[-1])
