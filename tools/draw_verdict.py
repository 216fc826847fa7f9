"""Draws the verdicts of finished studies, datasets side by side.

    python -m tools.draw_verdict workdir/why/demo_digits workdir/why/demo_fashion --to=docs/images/verdict.png

The arguments are folders of `experiments.explain`, one for each dataset, with all methods and seeds; a folder that
holds several studies stands for all of them. Methods may be in studies of their own. Prints a sentence and two rows for
each method and dataset, and writes the picture, and beside it its numbers as CSV.
"""

from collections.abc import Sequence

from absl import app

from clipbias.errors import ClipbiasError
from clipbias.report.published import dataset_name
from clipbias.report.table import Table, render
from clipbias.report.verdict import COLUMNS, overview_figure, verdict_rows
from clipbias.terminal import printable
from experiments import common
from tools.study_pictures import read_studies, save_picture


def main(names: Sequence[str]) -> int:
    """Draws; returns the exit status."""
    studies = read_studies(names, "draw_verdict")
    figure = overview_figure(studies)
    if figure is None:
        raise ClipbiasError("none of these studies has a sure gain; run them with --config.sections=all.")
    for study in studies:
        rows = verdict_rows(study.methods)
        print(render(Table(dataset_name(study.dataset.name), "", COLUMNS, tuple(rows), words={1}), "text"))
        for method in study.methods:
            print(printable(method.sentence))
        print()
    save_picture(figure)
    return 0


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
