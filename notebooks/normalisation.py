"""Train VMDLS on digits with normalised and with Euclidean distances and keep what vmdls.ipynb shows of it.

    python notebooks/normalisation.py              # ten trainings of seconds; writes results/notebooks/vmdls-normalisation.npz
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from common.arguments import ScriptParser, run_script

SEEDS = 5
COLUMNS = ("auroc", "closed_accuracy")


def trained(flags: list[str], seed: int, directory: Path) -> tuple[list[float], dict[str, np.ndarray]]:
    """Metrics of the ensemble's score, and the run's evidence."""
    import gather

    from vmdls import main, test

    with contextlib.redirect_stdout(io.StringIO()):
        main.main(["--preset", "digits", "--seed", str(seed), "--run_dir", str(directory), "--overwrite", *flags])
        test.main(["--run_dir", str(directory), "--no_report"])
    metrics = json.loads((directory / "metrics.json").read_text())["scores"]["vmdls"]["all"]
    return [metrics[name] for name in COLUMNS], gather.vmdls(directory) if seed == 0 else {}


def main(argv=None) -> None:
    ScriptParser(description=__doc__.split("\n")[0]).parse_args(argv)
    import evidence

    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in (("normalised", []), ("euclidean", ["--euclidean"])):
            found = [trained(flags, seed, Path(folder) / name) for seed in range(SEEDS)]
            latent, target = found[0][1]["latent"], found[0][1]["target"]
            centre = latent[target >= 0].mean(0)
            plane = (latent - centre) @ np.linalg.svd(latent[target >= 0] - centre, full_matrices=False)[2][:2].T
            arrays |= {name: np.array([values for values, _ in found]), f"plane_{name}": plane.astype(np.float32)}
            arrays |= {"target": target, "class_names": found[0][1]["class_names"]}
    evidence.write_evidence(evidence.FOLDER / "vmdls-normalisation.npz", arrays, {})
    for name in ("normalised", "euclidean"):
        print(f"{name}: {dict(zip(COLUMNS, arrays[name].mean(0).round(4).tolist()))}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    run_script(main)
