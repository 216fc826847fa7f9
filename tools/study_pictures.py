"""What tools that draw over finished studies share: reading these, and writing a picture with its numbers."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from clipbias.errors import ClipbiasError
from clipbias.explain.results import SCALARS, StudyResults
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, write_csv
from clipbias.report.overview import load_studies
from experiments import common

TO = flags.DEFINE_string("to", "picture.png", "The PNG to write, with its numbers beside it, or the CSV.")


def read_studies(names: Sequence[str], tool: str) -> list[StudyResults]:
    """The studies in folders; a folder that holds several studies stands for all of them.

    Args:
      names: folders of `experiments.explain`.
      tool: the tool's name, for the message where there are none.

    Raises:
      ClipbiasError: no folder was given, or `load_studies` refuses one.
    """
    return list(load_studies(study_folders(names, tool)).values())


def study_folders(names: Sequence[str], tool: str) -> list[Path]:
    """The folders of studies, each once; a folder that holds several studies stands for all of them.

    Raises:
      ClipbiasError: no folder was given.
    """
    if not names:
        raise ClipbiasError(f"give finished studies: python -m tools.{tool} FOLDER... --to=FILE.png.")
    folders: list[Path] = []
    for folder in (Path(name).expanduser() for name in names):
        inner = sorted(path.parent for path in folder.glob(f"*/{SCALARS}"))
        folders += [folder] if (folder / SCALARS).is_file() or not inner else inner
    return list(dict.fromkeys(folders))


def save_picture(figure: CaptionedFigure) -> Path:
    """Writes the picture that `--to` names, and its numbers beside it as CSV; prints its caption."""
    picture = Path(TO.value).expanduser().with_suffix(".png")
    style.save_png(figure.figure, picture)
    write_csv(picture.with_suffix(".csv"), figure.numbers)
    common.tell(f"{picture}: {figure.caption}")
    return picture
