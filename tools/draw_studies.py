"""Draws finished studies of several datasets side by side: verdicts, and what can stand in each method's place.

    python -m tools.draw_studies workdir/why --to=docs/images
    python -m tools.draw_studies workdir/why_siglip --to=docs/images --suffix=_siglip

The arguments are folders of `experiments.explain`, one for each dataset, with all methods and seeds; a folder that
holds several studies stands for all of them. Methods may be in studies of their own. Writes `verdict.png`,
`reading.png`, `replacements.png` and `rank_curve.png`, of whatever the studies have, each with its numbers beside it as
CSV. Prints the sentences. `--methods=IVLP,VPT` draws these replacements; the CSV has all.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from clipbias.analysis.replacement import REPLACEMENT
from clipbias.analysis.results import StudyResults
from clipbias.analysis.results_file import SCALARS
from clipbias.errors import ClipbiasError
from clipbias.report import style
from clipbias.report.names import dataset_name
from clipbias.report.pages import CaptionedFigure, write_csv
from clipbias.report.rank import rank_figure
from clipbias.report.study_page import load_studies
from clipbias.report.table import render
from clipbias.report.verdict import overview_figure, reading_figure, replacement_figure, verdict_table
from clipbias.terminal import printable
from experiments import common

TO = flags.DEFINE_string("to", ".", "The folder to write to.")
SUFFIX = flags.DEFINE_string("suffix", "", "The end of the files' names, before the dot.")
METHODS = flags.DEFINE_list("methods", [], "Methods whose replacements are drawn, by name; without it all.")


def main(names: Sequence[str]) -> int:
    """Draws; returns the exit status."""
    if not names:
        raise ClipbiasError("give finished studies: python -m tools.draw_studies FOLDER... --to=FOLDER.")
    folders: list[Path] = []
    for folder in (Path(name).expanduser() for name in names):
        inner = sorted(path.parent for path in folder.glob(f"*/{SCALARS}"))
        folders += [folder] if (folder / SCALARS).is_file() or not inner else inner
    studies = list(load_studies(list(dict.fromkeys(folders))).values())
    drawn = [draw_verdicts(studies), draw_replacements(studies), draw_rank_curves(studies)]
    if not any(drawn):
        raise ClipbiasError("these studies have neither verdicts nor replacements; take --config.sections=all.")
    return 0


def draw_verdicts(studies: Sequence[StudyResults]) -> bool:
    """Where each method acts and what it adds, with tables and sentences; whether any has a sure gain."""
    figure = overview_figure(studies)
    if figure is None:
        return False
    for study in studies:
        if table := verdict_table(study, study.methods, dataset_name(study.dataset.name)):
            print(render(table, "text"))
        for method in study.methods:
            print(printable(method.sentence))
        print()
    save_picture("verdict", figure)
    if curves := reading_figure(studies):
        save_picture("reading", curves)
    return True


def draw_replacements(studies: Sequence[StudyResults]) -> bool:
    """What can stand in each method's place, with sentences; whether anything was fitted."""
    figure = replacement_figure(studies, METHODS.value)
    if figure is None:
        return False
    for study in studies:
        if (replacement := REPLACEMENT.of(study)) is not None:
            sentences = [method.sentence for method in replacement.methods]
            common.tell(*(f"{dataset_name(study.dataset.name)}: {sentence}" for sentence in sentences))
    save_picture("replacements", figure)
    return True


def draw_rank_curves(studies: Sequence[StudyResults]) -> bool:
    """How large a map stands for each method; whether any was fitted."""
    if figure := rank_figure(studies):
        save_picture("rank_curve", figure)
    return figure is not None


def save_picture(name: str, figure: CaptionedFigure) -> Path:
    """Writes a picture and its numbers beside it as CSV; prints its caption."""
    picture = Path(TO.value).expanduser() / f"{name}{SUFFIX.value}.png"
    style.save_png(figure.figure, picture)
    write_csv(picture.with_suffix(".csv"), figure.numbers)
    common.tell(f"{picture}: {figure.caption}")
    return picture


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
