"""The flags every script has, presets, and the frame that turns a `UserError` into one line and exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.errors import TimeUp, UserError, nearest

ROOT = Path(__file__).resolve().parent.parent
# NumPy takes seeds below 2^32; parts that draw their own images add up to 10,000 to the run's.
LARGEST_SEED = 2**32 - 1 - 10_000


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show the default of every flag, except where there is none to show."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.const is False:
            return action.help
        return super()._get_help_string(action)


class ScriptParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, **options):
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **options)

    def error(self, message):
        known = [flag for action in self._actions for flag in action.option_strings]
        if message.startswith("unrecognized arguments:"):
            flags = [word for word in message.split() if word.startswith("-")]
            message += nearest(flags[0], known) if flags else ""
        self.exit(2, f"error: {message} (see --help)\n")


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return value


def share(text: str) -> float:
    """argparse type: a share in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 up to but not including 1, got {text}")
    return value


def non_negative(text: str) -> float:
    """argparse type: a number of at least 0."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value


def seed_number(text: str) -> int:
    """argparse type: a seed that NumPy takes, and takes with the offsets that some parts add to theirs."""
    value = int(text)
    if not 0 <= value <= LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {LARGEST_SEED}, got {text}")
    return value


def add_common_arguments(parser: argparse.ArgumentParser, presets: Mapping[str, Mapping] = (), train: bool = True):
    """Add the flags that every script shares (DESIGN: common flags)."""
    run = parser.add_argument_group("run")
    if presets:
        run.add_argument("--preset", choices=sorted(presets), help="set the flags of a named row; flags beside it win")
    run.add_argument("--data_dir", type=Path, help="folder of the data sets; else $OSR_DATA_DIR, else data/")
    run.add_argument("--run_dir", type=Path, help="directory of this run; else runs/<paper>/<--save>")
    run.add_argument("--save", metavar="NAME", help="name of this run; else preset or data set, and the time")
    run.add_argument("--seed", type=seed_number, default=0, help="seed of every random choice")
    run.add_argument("--subset", type=positive_int, metavar="N", help="use N images of each part, seeded and stratified")
    run.add_argument("--dry_run", action="store_true", help="one small batch of every phase, to see that it runs")
    device = parser.add_argument_group("device")
    device.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; auto takes a GPU when there is one")
    device.add_argument("--gpu", "--gpus", dest="gpu", metavar="N", help='GPU number in the originals\' spelling: 0 or "0,"')
    device.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="fp32",
                        help="arithmetic of the network; auto takes bf16 where the hardware has it")
    device.add_argument("--compile", action="store_true", help="compile the network with torch.compile")
    if not train:
        return
    device.add_argument("--devices", type=positive_int, default=1, help="processes on this node, one device each")
    device.add_argument("--num_nodes", type=positive_int, default=1, help="number of nodes")
    device.add_argument("--strategy", default="ddp", help="Lightning Fabric strategy for several processes")
    run.add_argument("--resume", action="store_true", help="go on with the run of this name where it stopped")
    run.add_argument("--overwrite", action="store_true", help="delete an existing run of this name first")
    run.add_argument("--time_limit", type=float, metavar="MINUTES", help="save and stop after this long; resumable")
    run.add_argument("--save_every", type=non_negative, default=60, metavar="SECONDS",
                     help="how often the state for --resume is written")
    run.add_argument("--validation_share", type=share, default=0.1,
                     help="share of the training part held out for thresholds and model selection")
    run.add_argument("--tensorboard", action="store_true", help="write the log for TensorBoard too")


def parse(parser: ScriptParser, argv: Sequence[str] | None, presets: Mapping[str, Mapping] = ()) -> argparse.Namespace:
    """Parse the command line; a preset replaces the defaults, flags on the command line replace the preset."""
    if presets:
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--preset", nargs="?")  # without a value: left to the full parser's message
        name = first.parse_known_args(argv)[0].preset
        if name is not None and name not in presets:
            parser.error(f"unknown preset {name!r}, choose from {', '.join(sorted(presets))}{nearest(name, presets)}")
        parser.set_defaults(**dict(presets.get(name, {})))
    args = parser.parse_args(argv)
    if getattr(args, "resume", False) and getattr(args, "overwrite", False):
        parser.error("--resume and --overwrite exclude each other: one continues the run, the other deletes it")
    if getattr(args, "resume", False) and not (args.save or args.run_dir):
        parser.error("--resume needs --save NAME or --run_dir DIR to know which run to continue")
    return args


def run_script(main: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None) -> None:
    """Run a script's `main`: a `UserError` is one line on stderr and exit code 2, a reached time limit 0, Ctrl-C 130."""
    try:
        main(argv)
    except TimeUp as reached:
        print(reached, flush=True)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output (head, less) has seen enough; Python's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on from the last saved state (--save_every), if it names its run"
              " with --save or --run_dir", file=sys.stderr)
        sys.exit(130)
