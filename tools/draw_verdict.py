"""Draws, over finished studies, what carries each method's gain and what the mean of what its blocks add keeps.

    python -m tools.draw_verdict workdir/why/demo_digits workdir/why/demo_fashion --to=docs/images/verdict.png

The arguments are folders of `experiments.explain`, one for each dataset, with all methods and seeds; a folder that
holds several studies stands for all of them. Prints the confirmatory conclusions, a table per method and what follows
from it, or why a method has none, and writes the picture, and its numbers beside it as CSV.
"""

from collections.abc import Sequence

from absl import app

from clipbias.errors import ClipbiasError
from clipbias.report.answer_figure import overview_figure
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
    save_picture(figure)
    return 0


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
