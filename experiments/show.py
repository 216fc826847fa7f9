"""Lists runs, finished or not: progress, results, and the settings in which they differ.

    python -m experiments.show --config.runs=workdir/digits,workdir/demo
    python -m experiments.show --config.runs='workdir/*' --config.every_run --config.format=markdown

Reads work folders of `train`, `table1`, `evaluate`, `explain` and `predict`. For each folder that cannot be read it
prints a sentence, and its exit status is 1.
"""

import sys

from clipbias.errors import ClipbiasError
from clipbias.report.runs import Workdir, read_workdir, render_runs
from clipbias.terminal import printable
from configs.show import ShowSettings
from experiments import common
from experiments.command_line import matching, split


def main(settings: ShowSettings) -> int:
    """Prints the tables; returns the exit status."""
    paths = [path for part in split(settings.runs) for path in matching(part)]
    if not paths:
        raise ClipbiasError("no runs to show; give --config.runs=FOLDERS, separated by commas.")
    workdirs: list[Workdir] = []
    problems: list[str] = []
    for path in paths:
        try:
            workdirs.append(read_workdir(path))
        except ClipbiasError as error:
            problems.append(str(error))
    if text := render_runs(workdirs, problems, form=settings.format, every_run=settings.every_run):
        common.tell(*text.removesuffix("\n").split("\n"))
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    common.run(main)
