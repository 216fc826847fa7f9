"""Lists and compares runs: what they were, how far they are, what came out, on what, and where their settings differ.

    python -m experiments.show workdir/digits workdir/demo
    python -m experiments.show workdir/* --cells --format=markdown --output=curves.png

Reads work folders of `train`, `table1`, `evaluate`, `explain`, `predict` and `interpret`, finished or not. With
--output it draws the training curves. For each folder that cannot be read it prints one sentence, and its exit status
is 1.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from clipbias.errors import ClipbiasError
from clipbias.report.run_tables import FORMATS, render_runs
from clipbias.report.runs import RunRecord, read_workdir
from clipbias.terminal import printable
from experiments import common

_FORMAT = flags.DEFINE_enum("format", "text", FORMATS, "How to print the tables.")
_OUTPUT = flags.DEFINE_string("output", "", "PNG file for the training curves; empty draws none.")
_CELLS = flags.DEFINE_bool("cells", False, "List every run of a sweep that ended.")


def main(folders: Sequence[str]) -> int:
    """Prints the tables; returns the exit status."""
    if not folders:
        raise ClipbiasError("no runs to show; give one or more work folders.")
    rows: list[RunRecord] = []
    shown: list[RunRecord] = []
    problems: list[str] = []
    for folder in folders:
        try:
            found = read_workdir(folder)
            rows += read_workdir(folder, cells=True) if _CELLS.value else found
            shown.append(found[0])
        except ClipbiasError as error:
            problems.append(str(error))
    if text := render_runs(rows, shown, problems, form=_FORMAT.value):
        common.tell(*text.removesuffix("\n").split("\n"))
    curves = []
    if _OUTPUT.value:
        from clipbias.report.curves import read_curves, save_curves

        for run in shown:
            try:
                curves += read_curves(run)
            except ClipbiasError as error:
                problems.append(str(error))
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    if _OUTPUT.value:
        print(f"curves: {save_curves(curves, Path(_OUTPUT.value))}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    common.run_arguments(main, "FOLDER …")
