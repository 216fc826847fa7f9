"""Draws, over finished studies, what carries each method's gain and what a constant keeps of it.

    python -m tools.draw_verdict workdir/why/demo_digits workdir/why/demo_fashion --to=docs/images/verdict.png

The arguments are folders of `experiments.explain`, of as many datasets, methods and seeds as there are; a folder that
holds several studies stands for all of them. Studies of one dataset count as seeds, and are averaged. Prints a table
per method and what follows from it, or why a method has none, and writes the picture, and its numbers beside it as CSV.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from clipbias.errors import ClipbiasError
from clipbias.explain.results import SCALARS, load_results
from clipbias.report import style
from clipbias.report.captioned import write_csv
from clipbias.report.study_results import StudyResults
from clipbias.report.summary_figures import summary_figure
from clipbias.report.table import render
from clipbias.report.verdict_summary import left_out, sentences, summarize_verdicts
from clipbias.report.verdict_tables import summary_table, why_no_effects, why_nothing_kept
from clipbias.terminal import printable
from experiments import common

_TO = flags.DEFINE_string("to", "verdict.png", "The PNG to write; its numbers go beside it.")


def main(names: Sequence[str]) -> int:
    """Draws; returns the exit status."""
    if not names:
        raise ClipbiasError("give finished studies: python -m tools.draw_verdict FOLDER... --to=FILE.png.")
    studies = [StudyResults(load_results(folder)) for folder in _folders(names)]
    summaries = summarize_verdicts(studies)
    figure = summary_figure(summaries, left_out(studies))
    if figure is None:
        raise ClipbiasError("none of these studies has a verdict; run them with --config.sections=all.")
    for summary in summaries:
        print(printable(summary.label))
        print(render(summary_table(summary), "text"))
        for sentence in sentences(summary):
            print(printable(sentence))
        print()
    # Those that are in no study's picture stand in its caption.
    for sentence in dict.fromkeys(
        line for study in studies for line in (*why_no_effects(study), *why_nothing_kept(study))
    ):
        if sentence.partition(": ")[2] not in figure.caption:
            print(printable(sentence))
    picture = Path(_TO.value).expanduser().with_suffix(".png")
    style.save_png(figure.figure, picture)
    write_csv(picture.with_suffix(".csv"), figure.numbers)
    print(f"{printable(picture)}: {printable(figure.caption)}")
    return 0


def _folders(names: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for folder in (Path(name).expanduser() for name in names):
        inner = sorted(path.parent for path in folder.glob(f"*/{SCALARS}"))
        found += [folder] if (folder / SCALARS).is_file() or not inner else inner
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
