"""Draws, over finished studies, what attention and tokens give alone of each method's gain, and a constant.

    python -m tools.draw_verdict workdir/why/demo_digits workdir/why/demo_fashion --to=docs/images/verdict.png

The arguments are folders of `experiments.explain`, one for each dataset, with all methods and seeds; a folder that
holds several studies stands for all of them. Methods may be in studies of their own. Prints the confirmatory
conclusions, a table per method and what follows from it, or why a method has none, and writes the picture, and beside
it its numbers as CSV and, as `…_confirmed.csv`, the conclusions.
"""

from collections.abc import Sequence

import pandas as pd
from absl import app

from clipbias.errors import ClipbiasError
from clipbias.report.answer_figure import overview_figure
from clipbias.report.captioned import write_csv
from clipbias.report.endpoint_table import endpoint_table
from clipbias.report.methods import left_out, study_methods, summarize_methods
from clipbias.report.table import render
from clipbias.report.verdict_tables import summary_sentences, summary_table, why_no_constants, why_no_effects
from clipbias.terminal import printable
from experiments import common
from tools.study_pictures import read_studies, save_picture


def main(names: Sequence[str]) -> int:
    """Draws; returns the exit status."""
    studies = read_studies(names, "draw_verdict")
    summaries = summarize_methods(studies)
    figure = overview_figure(summaries, left_out(studies))
    if figure is None:
        raise ClipbiasError("none of these studies has a verdict; run them with --config.sections=all.")
    if confirmed := endpoint_table(studies):
        print(render(confirmed, "text"))
        print(printable(confirmed.caption))
        print()
    for summary in summaries:
        print(printable(summary.name))
        print(render(summary_table(summary), "text"))
        for sentence in summary_sentences(summary):
            print(printable(sentence))
        print()
    # Those that are in no study's picture stand in its caption.
    reasons: list[str] = []
    for study in studies:
        methods = study_methods(study)
        reasons += [*why_no_effects(methods), *why_no_constants(study, methods)]
    for sentence in dict.fromkeys(reasons):
        if sentence.partition(": ")[2] not in figure.caption:
            print(printable(sentence))
    picture = save_picture(figure)
    if confirmed:
        rows = pd.DataFrame(confirmed.rows, columns=confirmed.columns)
        write_csv(picture.with_name(f"{picture.stem}_confirmed.csv"), rows)
    return 0


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
