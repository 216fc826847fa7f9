"""Lists and compares runs: what they were, how far they are, what came out, on what, and where their settings differ.

    python -m experiments.show --config.runs=workdir/digits,workdir/demo
    python -m experiments.show --config.runs='workdir/*' --config.every_run --config.format=markdown
    python -m experiments.show --config.runs=workdir/digits --config.output=curves.png

Reads work folders of `train`, `table1`, `evaluate`, `explain` and `predict`, finished or not. With `output` it draws
the training curves. For each folder that cannot be read it prints one sentence, and its exit status is 1.
"""

import sys
from pathlib import Path

from clipbias.errors import ClipbiasError
from clipbias.report.run_tables import render_runs
from clipbias.report.runs import RunRecord, read_workdir
from clipbias.terminal import printable
from configs.show import ShowSettings
from experiments import common
from experiments.command_line import matching, split

_CONFIG = "configs/show.py"


def main(settings: ShowSettings) -> int:
    """Prints the tables; returns the exit status."""
    folders = [folder for part in split(settings.runs) for folder in matching(part)]
    if not folders:
        raise ClipbiasError("no runs to show; give --config.runs=FOLDERS, separated by commas.")
    rows: list[RunRecord] = []
    shown: list[RunRecord] = []
    problems: list[str] = []
    for folder in folders:
        try:
            records = read_workdir(folder)
            rows += read_workdir(folder, cells=True) if settings.every_run else records
            shown.append(records[0])
        except ClipbiasError as error:
            problems.append(str(error))
    if text := render_runs(rows, shown, problems, form=settings.format):
        common.tell(*text.removesuffix("\n").split("\n"))
    curves = []
    if settings.output is not None:
        from clipbias.report.curves import read_curves, save_curves

        for run in shown:
            try:
                curves += read_curves(run)
            except ClipbiasError as error:
                problems.append(str(error))
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    if settings.output is not None:
        print(f"curves: {save_curves(curves, Path(settings.output))}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    common.run(main, _CONFIG)
