"""One run: its directory, seeds, log, exact resume and time limit.

A training script reads::

    run = Run.create("baseline_openmax", args, devices, data_checksums)
    run.track(model=model, optimizer=optimizer)
    for epoch in run.epochs(args.max_epochs):
        for images, labels in run.steps(batches, epoch):
            ...
            run.add(loss=loss)
        run.end_epoch(accuracy=...)
    run.finish(tensors, header)

`state.pt` holds everything a resume needs and is replaced atomically every `--save_every` seconds, in mid-epoch too.
Batches depend on (seed, epoch, number) alone, so the interrupted run continues with the batches it would have had.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from common.arguments import ROOT
from common.checkpoints import continuation, save_weights
from common.devices import Devices
from common.errors import TimeUp, UserError
from common.files import atomic, file_name, plain, write_json

# Flags that may differ between a run and its continuation: they change where and how long it computes, not what.
FREE_FLAGS = {
    "resume", "overwrite", "time_limit", "save_every", "device", "gpu", "data_dir", "run_dir", "save", "tensorboard"
}  # fmt: skip


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import random

    import numpy

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def code_version() -> str:
    """Commit of the repository, `+changes` when tracked programs or configurations differ; the package version outside git."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        program = ["--", "*.py", "*/configs/*.json", "*/exps/*.json", ":!tests", ":!benchmarks"]
        changed = subprocess.run([*git, "status", "--porcelain", "-uno", *program], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return f"version {metadata.version('open-set-recognition')}"
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def command_line(script: str, argv=None) -> str:
    """The command as it can be typed again from the repository's root; `argv` defaults to this process's own."""
    return shlex.join(["python", script, *(sys.argv[1:] if argv is None else argv)])


def run_directory(paper: str, args) -> Path:
    """`--run_dir`, else `runs/<paper>/<--save>`, else preset or data set and the time."""
    if args.run_dir:
        return args.run_dir
    name = args.save or f"{getattr(args, 'preset', None) or file_name(args.known_dataset)}-{time.strftime('%Y%m%d-%H%M%S')}"
    return ROOT / "runs" / paper / name


def find_run(paper: str, where: str | Path) -> Path:
    """A run directory given as a path, or as the name it was saved under."""
    named = ROOT / "runs" / paper / str(where)
    for path in (Path(where), named):
        if (path / "config.json").exists():
            return path
    raise UserError(f"no run {str(where)!r} here or in runs/{paper}; python {paper}/main.py --save {where} trains one")

# Held by the process that trains in a run's directory.
LOCK = ".lock"


class Run:
    """See the module's docstring; use `Run.create`."""

    def __init__(self, directory: Path, paper: str, args, devices: Devices):
        self.directory, self.paper, self.args, self.devices = Path(directory), paper, args, devices
        self.started = self.last_save = time.monotonic()
        self.epoch = self.step = self.images_seen = 0
        self.seconds_before = 0.0
        self.tracked: dict[str, object] = {}
        self.sums: dict[str, torch.Tensor] = {}
        self.epoch_seconds = 0.0
        self.state = None
        self.writer = self.lock = None

    @classmethod
    def create(
        cls, paper: str, args, devices: Devices, checksums: dict | None = None, argv=None, started_from: str | None = None
    ) -> Run:
        """Make the run's directory, or open it with `--resume`; seeds every generator.

        `started_from`: SHA-256 of the weights that training starts from (`common.checkpoints.origin`), for the records.

        Raises
        ------
        UserError
            The directory exists and neither `--resume` nor `--overwrite` is given; or a resumed run had other flags.
        """
        run = cls(run_directory(paper, args), paper, args, devices)
        seed_everything(args.seed)
        config = plain(vars(args))
        if devices.rank == 0:
            run._claim(config)
            if args.resume and not (run.directory / "config.json").exists():
                print("note: there is no run of this name to resume: it begins", flush=True)
        devices.barrier()
        if args.resume and (run.directory / "config.json").exists():
            run._read_state(config)
        if devices.rank == 0:
            run._note_changes()
            write_json(run.directory / "config.json", config)
            begun_with = {"started_from": started_from} if started_from else {}
            run._write_meta(command=command_line(f"{paper}/main.py", argv), data_checksums=checksums or {}, **begun_with)
            print(f"run: {run.directory}", flush=True)
        return run

    def _claim(self, config: dict) -> None:
        exists = self.directory.exists() and any(path.name != LOCK for path in self.directory.iterdir())
        config_file = self.directory / "config.json"
        if exists and not config_file.exists():
            raise UserError(f"{self.directory} holds files but no run (no config.json): give another --run_dir or --save")
        if exists:
            self._lock()
        # What a dry run leaves is worth nothing, so the real command needs no flag to replace it.
        if exists and (self.args.overwrite or json.loads(config_file.read_text()).get("dry_run")):
            self.lock.release(force=True)  # Windows does not delete a file that is open
            shutil.rmtree(self.directory)
        elif exists and not self.args.resume:
            raise UserError(f"run {self.directory} exists: --resume continues it, --overwrite deletes it first,"
                            " --save NAME makes another")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock()
        for torn in self.directory.glob("state.pt.*.part"):
            torn.unlink()  # of a process that was killed while it wrote

    def _lock(self) -> None:
        # Of this process, for as long as it lives: two trainings in one directory would overwrite each other's state.
        if self.lock is None:
            # One lock a process: where a training was interrupted in a notebook, the next may begin.
            self.lock = FileLock(self.directory / LOCK, is_singleton=True)
        try:
            self.lock.acquire(blocking=False)
        except Timeout:
            raise UserError(f"another process is training {self.directory}: wait for it, or give another --save") from None

    def _read_state(self, config: dict) -> None:
        old = json.loads((self.directory / "config.json").read_text())
        differing = [k for k in config if k not in FREE_FLAGS and old.get(k) != config[k]]
        if differing:
            said = ", ".join(f"--{k} {old.get(k)} then, {config[k]} now" for k in differing)
            raise UserError(f"cannot resume {self.directory} with other flags: {said}")
        if not (self.directory / "state.pt").exists():
            (self.directory / "log.jsonl").unlink(missing_ok=True)  # nothing was saved yet: the run begins anew
            return
        self.state = torch.load(self.directory / "state.pt", weights_only=True, map_location="cpu")
        precision = self.state.get("precision", self.devices.precision)
        if precision != self.devices.precision:
            print(f"note: continuing in {precision} as the run began")
            self.devices.precision = precision
        threads = self.state["threads"]
        if self.devices.device.type == "cpu" and threads != torch.get_num_threads():
            print(f"note: continuing with {threads} threads as the run began; other counts give other rounding")
            torch.set_num_threads(threads)

    def _note_changes(self) -> None:
        # A continued run computes as it began; with which program and where each part was computed stands in `sessions`.
        path = self.directory / "meta.json"
        self.meta = json.loads(path.read_text()) if self.state is not None and path.exists() else {}
        then, now = self.meta.get("code_version"), code_version()
        if then not in (None, now):
            print(f"note: the run began with program {then} and goes on with {now}; meta.json keeps both", flush=True)
        session = {"start": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "code_version": now, **self.devices.describe()}
        self.meta["sessions"] = [*self.meta.get("sessions", []), session]

    def _write_meta(self, **values) -> None:
        self.meta |= values
        if "start" not in self.meta:
            libraries = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "safetensors", "pillow")
            versions = {name: metadata.version(name) for name in libraries}
            self.meta |= {
                "paper": self.paper,
                "seed": self.args.seed,
                "start": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "code_version": code_version(),
                "versions": {"python": sys.version.split()[0], **versions},
                **self.devices.describe(),
            }
        write_json(self.directory / "meta.json", self.meta)

    def track(self, **objects) -> None:
        """Name the objects (with `state_dict`, `load_state_dict`) that a resume must restore; restores them now."""
        self.tracked |= objects
        if self.state is None:
            return
        for name, thing in objects.items():
            thing.load_state_dict(self.state["objects"][name])
        self.epoch, self.step = self.state["epoch"], self.state["step"]
        self.sums = dict(self.state["sums"])
        self.images_seen, self.epoch_seconds = self.state["images_seen"], self.state["epoch_seconds"]
        self.seconds_before = self.state["seconds"]
        torch.set_rng_state(self.state["rng"])
        if self.devices.device.type == "cuda" and "cuda_rng" in self.state:
            torch.cuda.set_rng_state(self.state["cuda_rng"], self.devices.device)
        self._truncate_log()

    def _truncate_log(self) -> None:
        # A kill between the log line and the state leaves a line of an epoch that is done again.
        path = self.directory / "log.jsonl"
        if path.exists() and self.devices.rank == 0:
            # A whole line ends with a newline; a torn last one is dropped as well.
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            lines = [line for line in whole if json.loads(line)["epoch"] < self.epoch]
            with atomic(path) as partial:
                partial.write_text("".join(lines))

    def seconds(self) -> float:
        """Seconds of work in this run, all its sessions together."""
        return self.seconds_before + time.monotonic() - self.started

    def save_state(self) -> None:
        """Write `state.pt` (all that `--resume` needs; tensors and plain values only)."""
        self.last_save = time.monotonic()
        if self.devices.rank:
            return
        state = {
            "objects": {name: thing.state_dict() for name, thing in self.tracked.items()},
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "images_seen": self.images_seen,
            "epoch_seconds": self.epoch_seconds,
            "seconds": self.seconds(),
            "threads": torch.get_num_threads(),
            "precision": self.devices.precision,
            "rng": torch.get_rng_state(),
        }
        if self.devices.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.devices.device)
        with atomic(self.directory / "state.pt") as partial:
            torch.save(state, partial)

    def epochs(self, max_epochs: int) -> Iterator[int]:
        """Epoch numbers that are still to do, from 0; one with `--dry_run`."""
        self.max_epochs = 1 if self.args.dry_run else max_epochs
        while self.epoch < self.max_epochs:
            yield self.epoch

    def steps(self, batches, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images and labels of the epoch's remaining batches; saves the state between them and keeps the time limit."""
        from tqdm import tqdm

        begun = time.monotonic() - self.epoch_seconds
        bar = tqdm(total=len(batches), initial=self.step, desc=f"epoch {epoch + 1}/{self.max_epochs}", delay=2,
                   leave=False, disable=None if self.devices.rank == 0 else True)  # fmt: skip
        for number, images, labels in batches.epoch(epoch, start=self.step):
            yield images, labels
            self.step = number + 1
            self.images_seen += len(labels) * self.devices.world_size
            self.epoch_seconds = time.monotonic() - begun
            bar.update()
            if self.args.dry_run:
                break
            self._between_steps()
        bar.close()
        self.devices.synchronise()
        self.epoch_seconds = time.monotonic() - begun

    def _between_steps(self) -> None:
        limit = self.args.time_limit
        if limit is not None and self.devices.agree(time.monotonic() - self.started > 60 * limit):
            self.save_state()
            raise TimeUp(f"time limit reached, state saved; continue with: {continuation(self.directory)}")
        if time.monotonic() - self.last_save >= self.args.save_every:
            self.save_state()

    def add(self, **values: torch.Tensor) -> None:
        """Add this step's values to the epoch's means (kept on the device: no waiting for it)."""
        for name, value in values.items():
            value = value.detach().double()
            self.sums[name] = self.sums.get(name, torch.zeros((), dtype=torch.float64)).to(value.device) + value

    def end_epoch(self, **values) -> dict:
        """Log the epoch (means of `add`, `values`, images/s), save the state, print one line."""
        done, seconds = self.step, max(self.epoch_seconds, 1e-9)
        line = {"epoch": self.epoch, "steps": done}
        line |= {name: float(self.devices.mean(total) / max(done, 1)) for name, total in self.sums.items()}
        line |= {name: float(value) for name, value in values.items()}
        line["seconds"] = round(seconds, 3)
        if not math.isfinite(line.get("loss", 0.0)):
            raise UserError(f"the loss is {line['loss']} in epoch {self.epoch + 1}: nothing can be learned from here; train anew"
                            " with a smaller learning rate")
        self.epoch, self.step, self.sums, self.epoch_seconds = self.epoch + 1, 0, {}, 0.0
        if self.devices.rank == 0:
            with open(self.directory / "log.jsonl", "a") as log:
                log.write(json.dumps(plain(line)) + "\n")
            self._tensorboard(line)
            last = self.epoch >= self.max_epochs
            if last or seconds > 2 or self.epoch % max(self.max_epochs // 4, 1) == 0:
                shown = "  ".join(f"{k} {v:.4g}" for k, v in line.items() if k not in ("epoch", "steps"))
                print(f"epoch {self.epoch}/{self.max_epochs}  {shown}", flush=True)
        # Short runs need no state between epochs: writing it would take longer than the epoch.
        if self.epoch >= self.max_epochs or time.monotonic() - self.last_save >= self.args.save_every:
            self.save_state()
        return line

    def _tensorboard(self, line: dict) -> None:
        if not self.args.tensorboard:
            return
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.directory / "tensorboard")
        for name, value in line.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, line["epoch"])
        self.writer.flush()

    def finish(self, tensors: dict, header: dict) -> None:
        """Write `weights.safetensors` and complete `meta.json`."""
        if self.devices.rank:
            return
        save_weights(self.directory / "weights.safetensors", tensors, {"paper": self.paper, **header})
        seconds = self.seconds()
        self._write_meta(wall_seconds=round(seconds, 2), images_per_second=round(self.images_seen / seconds, 1),
                         peak_memory_bytes=peak_memory(self.devices), finished=True)  # fmt: skip


def peak_memory(devices: Devices) -> int:
    """Largest memory this process held: on the GPU if it used one, else resident in main memory; bytes."""
    if devices.device.type == "cuda":
        return torch.cuda.max_memory_allocated(devices.device)
    try:
        import resource
    except ImportError:  # Windows
        return 0

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
