"""The command `clipbias`: the binaries of `experiments/` by name, also where only the wheel is installed.

    clipbias train --config=configs/train.py:bias --config.model=demo --workdir=workdir/digits
    clipbias train --help

`clipbias NAME …` does what `python -m experiments.NAME …` does in a checkout. The wheel keeps `experiments` and
`configs` in a folder of its own inside this package, so that packages of these names are not put beside others'; they
are on the path of this command alone.
"""

import ast
import difflib
import runpy
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# In the order of the help.
COMMANDS = (
    "train",
    "table1",
    "evaluate",
    "predict",
    "explain",
    "interpret",
    "amounts",
    "app",
    "show",
    "export",
    "prepare_data",
)


def main() -> None:
    """Runs the command that the first argument names; without one lists them."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(overview())
    elif name == "--version":
        from clipbias import __version__

        print(__version__)
    elif name in COMMANDS:
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
    """All commands with a line each, from their docstrings: nothing is imported for it."""
    lines = ["usage: clipbias COMMAND [FLAGS]", ""]
    for name in COMMANDS:
        source = (folder() / "experiments" / f"{name}.py").read_text(encoding="utf-8")
        summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        lines.append(f"  {name:<12} {summary}")
    return "\n".join(
        [*lines, "", "clipbias COMMAND --help lists a command's configurations, settings and flags, with examples."]
    )
