"""The command `clipbias`: the binaries of `experiments/` by name, also where only the wheel is installed.

    clipbias train --config=configs/train.py:bias --config.model=demo --workdir=workdir/digits
    clipbias train --help

`clipbias NAME …` runs `python -m experiments.NAME …` of a checkout. The wheel keeps `experiments` and `configs` in a
folder inside this package, on the path of this command only: names so common may belong to other packages.
"""

import difflib
import runpy
import sys
from pathlib import Path

from clipbias.terminal import quiet_when_closed

PACKAGE = Path(__file__).resolve().parent
COMMANDS = {
    "train": "Tunes one method on one dataset and evaluates it.",
    "table1": "Trains methods x datasets x shots x seeds, and writes the table of their accuracies.",
    "lab": "Runs all that the paper asks: every shot, dataset and seed, base-to-new, and the causal test.",
    "evaluate": "Evaluates a tuned adapter, or zero-shot CLIP.",
    "predict": "Classifies images with zero-shot CLIP or a tuned adapter.",
    "explain": "Studies why tuning works: zero-shot CLIP against tuned adapters.",
    "app": "Opens a page that shows predictions and relevancy for your pictures.",
    "show": "Lists and compares runs.",
    "export": "Writes an adapter for other programs.",
    "distil": "Turns an adapter into a plain CLIP that predicts as it does.",
    "import_adapter": "Makes an adapter of another trainer's checkpoint.",
    "prepare_data": "Checks datasets on disk, and builds shards of them.",
}


def main() -> None:
    """Runs the command that the first argument names; without an argument lists the commands."""
    name, *arguments = sys.argv[1:] or ["--help"]
    with quiet_when_closed():
        if name in ("--help", "-h", "help"):
            print(overview())
        elif name == "--version":
            from clipbias import __version__

            print(__version__)
        elif name in COMMANDS:
            # As a binary that was started itself: its flags come from `sys.argv`, and its messages bear this name.
            sys.path.insert(0, str(folder()))
            sys.argv = [f"clipbias {name}", *arguments]
            runpy.run_module(f"experiments.{name}", run_name="__main__")
        else:
            close = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(COMMANDS)}."
            sys.exit(f"error: there is no command {name!r}{hint}")


def folder() -> Path:
    """Where `experiments` and `configs` lie: in this package where it is installed, beside it in a checkout."""
    installed = PACKAGE / "_commands"
    return installed if installed.is_dir() else PACKAGE.parent


def overview() -> str:
    """All commands with one line each."""
    lines = [f"  {name:<14} {summary}" for name, summary in COMMANDS.items()]
    end = "clipbias COMMAND --help shows a command's flags and settings, with examples."
    return "\n".join(["usage: clipbias COMMAND [FLAGS]", "", *lines, "", end])
