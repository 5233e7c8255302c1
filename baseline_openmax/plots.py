"""Draw every figure of a run, or of several runs on one axis, from their scores alone.

    python baseline_openmax/plots.py NAME                   # all figures into runs/baseline_openmax/NAME/figures
    python baseline_openmax/plots.py NAME-s0 NAME-s1 OTHER  # curves together; runs that differ in seed or split: a band
"""

from __future__ import annotations

from common.arguments import run_script

PAPER = "baseline_openmax"


def main(argv=None) -> None:
    from common.plots.drawing import main as draw

    draw(argv, PAPER)


if __name__ == "__main__":
    run_script(main)
