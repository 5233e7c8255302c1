"""Trained networks of all four folders in own code; the sign is pytorch-ood's: larger = more likely unknown.

    from common.detector import load
    detector = load("cssr-mnist-cssr-a-rcssr-convnet28")     # run, weights file, or a name of checkpoints/MANIFEST.json
    unknown_score = detector(images)                         # uint8 (N, C, H, W)
    classes = detector.decide(images)                        # 0..K-1, or -1: unknown

    python -m common.detector NAME photo.jpg folder/         # the same, as lines
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from common.arguments import ROOT, ScriptParser, run_script
from common.errors import UserError, nearest
from common.evaluation import Trained

# The best epoch's weights and their results, inside a run of baseline_openmax.
BEST_WEIGHTS = ("best", "weights_best.safetensors")


class Detector(ABC):
    """A trained network and one of its scores; every folder's `api.py` has its own.

    Attributes
    ----------
    trained : common.evaluation.Trained
    score : str
    class_names : list of str
    shape : tuple of int
        `(C, H, W)` of the images that it takes.
    device : torch.device
    batch_size : int
        Images at a time.
    """

    trained: Trained
    score: str
    device: torch.device
    batch_size: int = 512

    @property
    def class_names(self) -> list[str]:
        return list(self.trained.header["class_names"])

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.trained.header["model"]["shape"])

    @abstractmethod
    def network(self) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
        """The function of a batch of images whose outputs the score is made of."""

    @abstractmethod
    def score_outputs(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Unknown score of what `outputs` returned, float64 `(N,)`; larger = more likely unknown."""

    def judge(self, outputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Unknown score and predicted known class 0..K-1 of what `outputs` returned, float64 and int64 `(N,)`."""
        return self.score_outputs(outputs), outputs["logits"].argmax(1)

    def outputs(self, images) -> dict[str, np.ndarray]:
        """What the score is made of, for uint8 images `(N, C, H, W)`; a `UserError` for anything else."""
        from common.inference import apply_batched

        pixels = images.cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != self.shape or not len(pixels):
            raise UserError(f"expected images uint8 (N, {', '.join(map(str, self.shape))}), got {pixels.dtype} {pixels.shape}")
        return apply_batched(self.network(), pixels, self.device, self.batch_size)

    def predict(self, images) -> np.ndarray:
        """Unknown score of each image, float64 `(N,)`; larger = more likely unknown."""
        return self.score_outputs(self.outputs(images))

    __call__ = predict

    def threshold(self) -> float:
        """Threshold of the last evaluation: 95 % of the held-out (else the training) known images lie below it.

        Raises
        ------
        UserError
            The score was not evaluated yet.
        """
        return self.trained.threshold(self.score)

    def decide(self, images) -> np.ndarray:
        """Known class 0..K-1, or -1 where the score reaches the threshold, int64 `(N,)`."""
        threshold = self.threshold()
        unknown_score, classes = self.judge(self.outputs(images))
        return np.where(unknown_score >= threshold, -1, classes)


class FlagDetector(Detector):
    """A detector that opens itself from the flags of its folder's `test.py`."""

    @classmethod
    def from_arguments(cls, args) -> FlagDetector:
        """The detector that the flags name; of several scores the first counts."""
        detector = cls.__new__(cls)
        detector._open(args)
        return detector

    @abstractmethod
    def _open(self, args) -> None:
        """Load what the flags name; sets the attributes of a `Detector`."""


def paper_of(where: str | Path) -> str:
    """Folder whose `main.py` trained what `where` names: a run (path or name), a weights file, or a manifest name.

    Raises
    ------
    UserError
        Nothing there, runs of several folders have that name, or a file of another program.
    """
    from common.checkpoints import find, is_torch_file, read_header
    from common.ledger import PAPERS

    path = Path(where)
    if is_torch_file(path):
        raise UserError(f"{where} is a file of another program: name the folder that reads it, as in crosr.api.Detector(...)")
    if path.is_file():
        return read_header(path)["paper"]
    run = path.parent if path.name in BEST_WEIGHTS else path
    if (run / "config.json").exists():
        return read_header(find(run)[0])["paper"]
    named = [paper for paper in PAPERS if (ROOT / "runs" / paper / run / "config.json").exists()]
    if len(named) > 1:
        said = ", ".join(f"runs/{paper}/{where}" for paper in sorted(named))
        raise UserError(f"several runs are named {str(where)!r}, say which: {said}")
    return named[0] if named else read_header(find(where)[0])["paper"]


def load(where: str | Path, score: str | None = None, device: str = "auto") -> Detector:
    """The detector that a trained network of any folder makes.

    Parameters
    ----------
    where : str or path
        Run directory, name of a run, weights file, or name in `checkpoints/MANIFEST.json`.
    score : str, optional
        One of the folder's scores (`test.py --help`); else its own. It is computed with the settings of the last evaluation.
    device : str
        `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises
    ------
    UserError
        Nothing there, or a score that the network cannot give.
    """
    return import_module(f"{paper_of(where)}.api").Detector(where, score, device)


def arguments_of(paper: str, where: str | Path, device: str, *words: str) -> list[str]:
    """The words of a folder's `test.py` that evaluate `where` on a device, and further ones."""
    from common.run import find_run

    with suppress(UserError):  # a file, or a name of the manifest
        where = find_run(paper, where)
    return ["--checkpoint_path", str(where), "--device", device, *words]


def require_score(score: str, choices: Sequence[str]) -> str:
    """The score, or a `UserError` that names the nearest of the choices."""
    if score not in choices:
        raise UserError(f"no score {score!r}, choose from {', '.join(choices)}{nearest(score, choices)}")
    return score


def verdicts(detector: Detector, pictures: Sequence[str | Path]) -> list[str]:
    """One line for each of the user's own pictures: class or "unknown", at the threshold of the last evaluation."""
    from common.own_images import read_images, verdict_lines

    threshold = detector.threshold()
    names, pixels = read_images(pictures, detector.shape)
    unknown_score, classes = detector.judge(detector.outputs(pixels))
    return verdict_lines(names, classes, unknown_score, threshold, detector.class_names, detector.score)


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description="Class or unknown for own pictures, by a trained network of any folder.")
    parser.add_argument("where", metavar="NAME", help="run, weights file, or name in checkpoints/MANIFEST.json")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures, or folders of pictures")
    parser.add_argument("--score", help="unknown score; else the folder's own")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def main(argv=None) -> None:
    args = get_args_parser().parse_args(argv)
    print("\n".join(verdicts(load(args.where, args.score, args.device), args.images)))


if __name__ == "__main__":
    run_script(main)
