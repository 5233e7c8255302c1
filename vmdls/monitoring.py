"""What an epoch shows of the open set: accuracy and macro-F1 by the mean vectors alone, and small snapshots of them.

Only for watching. No unknown image takes part in training, in the choice of an epoch or of a threshold.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from common.files import atomic
from common.inference import apply_batched
from common.metrics import macro_f1
from common.training import load_data
from vmdls.dry_run import enough_images

# Images of each side that are watched, and how many of them a snapshot keeps.
WATCHED, KEPT = 2000, 200
REST = "rest"


def watched_set(args, split, colour: bool, argv) -> str | None:
    """Name of the unknown set to watch: the flag's, else the split's unknown classes, else the README's; None: absent."""
    from common.datasets import data_root, resolve_name
    from common.datasets.catalogue import REST_OF, fold
    from common.datasets.presence import part_path

    words = sys.argv[1:] if argv is None else argv
    name = args.unknown_dataset
    if not any(str(word).startswith("--unknown_dataset") for word in words):
        if split.unknown and not split.unknown_dataset:
            return REST
        name = "imagenet-resize" if colour else "omniglot"
    if name == REST or fold(name) in REST_OF:
        return REST
    if part_path(resolve_name(name), False, data_root(args.data_dir)) is None:
        print(f"note: {name} is not here: epochs are watched on known images only")
        return None
    return name


class Monitor:
    """Watches a training run on test images of the known classes and of one unknown set.

    Parameters
    ----------
    args : Namespace
        Flags of main.py.
    data : OpenSetData
        Of the training; its test images are watched.
    devices : Devices
    directory : Path
        Of the run; snapshots go to `latents/epoch-NNN.npz` there.
    argv : sequence of str or None
        The command line, to tell a given `--unknown_dataset` from its default.
    """

    def __init__(self, args, data, devices, directory: Path, argv=None):
        self.devices, self.batch_size, self.folder = devices, args.batch_size, Path(directory) / "latents"
        self.class_names, self.first = data.class_names, devices.rank == 0
        name = watched_set(args, data.split, data.test.shape[0] == 3, argv)
        sides = [(data.test.name or args.known_dataset, data.test)]
        if name is not None:
            given = enough_images(args, len(data.class_names))
            sides += load_data(given, (name,)).unknown.items()
        chosen = np.random.default_rng(args.seed)
        kept = [chosen.permutation(len(images))[:WATCHED] for _, images in sides]
        self.parts = [images.pixels[np.sort(index)] for (_, images), index in zip(sides, kept)]
        self.target = np.concatenate([images.labels[np.sort(index)] for (_, images), index in zip(sides, kept)])
        self.name = sides[-1][0] if name is not None else None
        self.shown = np.concatenate([np.flatnonzero(side)[:KEPT] for side in (self.target >= 0, self.target < 0)])

    def watch(self, epoch: int, model, gaussians) -> dict[str, float]:
        """Figures of an epoch for the log, from the latent Gaussians of its end; prints a line, writes a snapshot."""
        model.eval()
        means = [apply_batched(self._means(model), part, self.devices.device, self.batch_size) for part in self.parts]
        mean = np.concatenate([found["mean"] for found in means])
        import torch

        points = torch.from_numpy(mean).to(gaussians.mean.device)
        best, reached = (decision.cpu().numpy() for decision in gaussians.decide(points))
        known, classes = self.target >= 0, len(self.class_names)
        accuracy = float(np.mean(best[known] == self.target[known]))
        f1 = float("nan")
        if self.name is not None:
            f1 = macro_f1(self.target, np.where(reached == classes, -1, reached), classes)
        if self.first:
            unknown = f", macro-F1 with {self.name} {f1:.4f}" if self.name is not None else ""
            print(f"epoch {epoch + 1} monitoring (mean vectors alone, nothing is chosen by it):"
                  f" known accuracy {accuracy:.4f}{unknown}", flush=True)  # fmt: skip
            self._snapshot(epoch, mean, gaussians)
        return {"monitoring_accuracy": accuracy, "monitoring_f1": f1}

    def _means(self, model):
        def function(images):
            with self.devices.autocast():
                return {"mean": model(images)[0]}

        return function

    def _snapshot(self, epoch: int, mean: np.ndarray, gaussians) -> None:
        with atomic(self.folder / f"epoch-{epoch + 1:03d}.npz") as partial, open(partial, "wb") as file:
            np.savez_compressed(
                file, mean=mean[self.shown], target=self.target[self.shown].astype(np.int16),
                class_mean=gaussians.mean.cpu().numpy().astype(np.float32), class_names=np.array(self.class_names),
            )  # fmt: skip
