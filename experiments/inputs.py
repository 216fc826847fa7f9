"""Reading what a user names on a command line."""

from pathlib import Path

import clipbias
from clipbias.errors import ClipbiasError
from clipbias.training.single import ADAPTER
from clipbias.tuning.adapter import Adapter


def split(text: str) -> list[str]:
    """The parts of a list separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def find_adapter(path: str) -> tuple[Adapter, str]:
    """An adapter file, or the one in a folder of `experiments.train`; and where it was.

    Raises:
      ClipbiasError: there is none, or it is damaged.
    """
    found = Path(path).expanduser()
    if found.is_dir():
        found = found / ADAPTER
        if not found.exists():
            raise ClipbiasError(
                f"the folder {path} holds no {ADAPTER}; give an adapter file or a finished run's folder."
            )
    return clipbias.load_adapter(found), str(found)
