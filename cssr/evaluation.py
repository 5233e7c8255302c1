"""Evaluation while CSSR trains: training statistics, scores of the test data, and `hist.json`."""

from __future__ import annotations

import json
import time

import numpy as np
import torch

from common.inference import apply_batched, evaluation_parts, outputs
from cssr.expressions import point_score, scored_by, terms_of
from cssr.history import History, evaluated, last_and_best
from cssr.scores import PREFIX, SCORES
from cssr.scoring import collect_statistics, score_function


def no_statistics(classes: int, channels: int) -> dict[str, torch.Tensor]:
    """Statistics of a network whose own score needs none: NaN, so that S1 and S2 are undefined."""
    share, constants = torch.full((classes, channels), torch.nan), torch.full((len(SCORES),), torch.nan, dtype=torch.float64)
    found = {"class_share": share, "gram_mean": share[:, :0], "class_count": torch.zeros(classes)}
    return {PREFIX + name: value for name, value in (found | {"mean": constants, "std": constants.clone()}).items()}


def statistics_of(model, data, devices, batches, args, header) -> dict[str, torch.Tensor]:
    """The `statistics.*` tensors that the network's scores need; constants of a released expression go into the header."""
    own = header.get("score", {})
    frozen, terms = getattr(model, "frozen", False), terms_of(model.kind, own)
    if frozen and terms == [0]:
        head = header["model"]
        return no_statistics(head["classes"], head["projection_dim"] if head["projection_dim"] > 0 else model.backbone.channels)
    with_gram = args.enable_gram and (not frozen or 2 in terms)
    statistics = collect_statistics(
        model.eval(), data.train.pixels, devices, batches if args.released_statistics else None, with_gram
    )
    if "score" in own:
        values = point_scores(model, own["score"], statistics, data.train.pixels, devices)
        own |= {"mean": float(values.mean()), "std": float(values.std())}
    return statistics


def point_scores(model, expression: str, statistics, pixels, devices) -> np.ndarray:
    """S0 of images by a released expression, `(N,)`; reduced batch by batch: logits of a large set would take gigabytes."""
    function, channels = score_function(model, statistics, devices), statistics[f"{PREFIX}class_share"].shape[1]

    def reduced(images):
        arrays = {key: value.cpu().numpy() for key, value in function(images).items()}
        values = point_score(model.kind, expression, arrays, abs(model.head.scale), channels)
        return {"score": torch.from_numpy(values)}

    return apply_batched(reduced, pixels, devices.device)["score"].astype(np.float64)


def arrays_of(model, statistics, parts, devices, batch_size: int = 512) -> dict:
    """What the scores of some parts of the data are made of, and the predicted classes (see `scoring.scored`)."""
    arrays = outputs(score_function(model, statistics, devices), parts, devices.device, batch_size)
    arrays["prediction"] = arrays["logits"].argmax(1)
    return arrays


class Evaluation:
    """Evaluates every `--test_interval` epochs and after the last one, and writes the entries of `hist.json`.

    Parameters
    ----------
    run : Run
    args : Namespace
    header : dict
        The checkpoint's.
    data, devices, model, batches
        Of the training loop.
    """

    def __init__(self, run, args, header: dict, data, devices, model, batches):
        self.run, self.args, self.header, self.data = run, args, header, data
        self.devices, self.model, self.batches = devices, model, batches
        self.interval = args.test_interval or 0
        self.history = History(run.directory / "hist.json", run.epoch) if self.interval and devices.rank == 0 else None
        self.collected = None

    def add_step(self, log_p: torch.Tensor, labels: torch.Tensor, waited: float) -> None:
        """Add a step's training accuracy, and the seconds waited for its batch, to the epoch's means."""
        if self.interval:
            accuracy = (log_p.detach().argmax(1) == labels).double().mean()
            self.run.add(train_accuracy=accuracy, data_seconds=torch.tensor(waited))

    def end_epoch(self, line: dict, rate: float) -> None:
        """Evaluate when it is time to, and write the epoch's entry; `line` is that of the log, `rate` the last one."""
        self.collected = None
        if self.history is not None:
            self._add(line, rate, self.run.max_epochs)
        if self.interval:
            self.devices.barrier()

    def make_up(self, max_epochs: int, rate: float) -> None:
        """Write the entry of the last finished epoch where a run was interrupted before it; `rate` is that epoch's."""
        done = self.run.epoch
        if self.history is not None and done and [entry["epoch"] for entry in self.history.entries[-1:]] != [done - 1]:
            log = (self.run.directory / "log.jsonl").read_text().splitlines()
            self._add(json.loads(log[-1]), rate, max_epochs)
        if self.interval:
            self.devices.barrier()

    def _add(self, line: dict, rate: float, max_epochs: int) -> None:
        """Evaluate when it is time to, and write the epoch's entry."""
        epoch = line["epoch"]
        due = epoch % self.interval == self.interval - 1 or epoch + 1 == max_epochs
        self.history.add(epoch, _loss(line, rate), self._evaluate() if due else None)

    def finish(self) -> None:
        """Print the closing line."""
        if self.history is None:
            return
        entries = self.history.entries
        found = [last_and_best(entries, name) for name in ("close acc", "open_detection.auroc")]
        (last_accuracy, best_accuracy), (last_auroc, best_auroc) = found
        print(f"LastAcc {last_accuracy:.4f}  LastAuroc {last_auroc:.4f}  BestAcc {best_accuracy:.4f}"
              f"  BestAuroc {best_auroc:.4f}  (best: selected on the test set)")  # fmt: skip

    def _evaluate(self) -> dict:
        begun = time.monotonic()
        statistics = self.statistics()
        arrays = arrays_of(self.model.eval(), statistics, evaluation_parts(self.data, False), self.devices)
        found = evaluated(scored_by("fused", self.header, statistics, arrays), self.header["model"]["classes"])
        auroc = found["open_detection"]["auroc"]
        seconds = time.monotonic() - begun
        print(f"  test: closed accuracy {found['close acc']:.4f}, AUROC {auroc:.4f}, {seconds:.1f} s", flush=True)
        return found

    def statistics(self) -> dict[str, torch.Tensor]:
        """Statistics of the network as it is after the last epoch, collected once."""
        if self.collected is None:
            self.collected = statistics_of(
                self.model, self.data, self.devices, self.batches, self.args, self.header
            )
        return self.collected


def _loss(line: dict, rate: float) -> dict[str, float]:
    """The original's `loss` part of an entry, from a line of the log; times in seconds."""
    return {"Loss": line["loss"], "TrainAcc": line["train_accuracy"], "Learn Rate": rate, "DataTime": line["data_seconds"],
            "BatchTime": line["seconds"] / max(line["steps"], 1)}  # fmt: skip
