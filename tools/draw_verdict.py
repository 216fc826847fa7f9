"""Draws, over finished studies, what carries each method's gain and what the mean of what its blocks add keeps.

    python -m tools.draw_verdict workdir/why/demo_digits workdir/why/demo_fashion --to=docs/images/verdict.png

The arguments are folders of `experiments.explain`, one for each dataset, with all methods and seeds; a folder that
holds several studies stands for all of them. Prints the confirmatory conclusions, a table per method and what follows
from it, or why a method has none, and writes the picture, and its numbers beside it as CSV.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from clipbias.errors import ClipbiasError
from clipbias.explain.results import SCALARS
from clipbias.report import style
from clipbias.report.answer_figure import overview_figure
from clipbias.report.captioned import write_csv
from clipbias.report.endpoint_table import endpoint_table
from clipbias.report.methods import left_out, load_studies, study_methods, summarize_methods
from clipbias.report.table import render
from clipbias.report.verdict_tables import summary_sentences, summary_table, why_no_constants, why_no_effects
from clipbias.terminal import printable
from experiments import common

_TO = flags.DEFINE_string("to", "verdict.png", "The PNG to write; its numbers go beside it.")


def main(names: Sequence[str]) -> int:
    """Draws; returns the exit status."""
    if not names:
        raise ClipbiasError("give finished studies: python -m tools.draw_verdict FOLDER... --to=FILE.png.")
    studies = list(load_studies(_folders(names)).values())
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
    picture = Path(_TO.value).expanduser().with_suffix(".png")
    style.save_png(figure.figure, picture)
    write_csv(picture.with_suffix(".csv"), figure.numbers)
    print(f"{printable(picture)}: {printable(figure.caption)}")
    return 0


def _folders(names: Sequence[str]) -> list[Path]:
    folders: list[Path] = []
    for folder in (Path(name).expanduser() for name in names):
        inner = sorted(path.parent for path in folder.glob(f"*/{SCALARS}"))
        folders += [folder] if (folder / SCALARS).is_file() or not inner else inner
    return list(dict.fromkeys(folders))


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
