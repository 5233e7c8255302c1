"""Draw the figures of runs: `python -m common.plots RUN [RUN ...]`."""

from common.arguments import run_script
from common.plots.drawing import main

if __name__ == "__main__":
    run_script(main)
