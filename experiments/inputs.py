"""Reading what a user names on a command line."""

import glob
from pathlib import Path

import clipbias
from clipbias.errors import ClipbiasError
from clipbias.io import user_path
from clipbias.training.workdir import ADAPTER
from clipbias.tuning.adapter import Adapter


def split(text: str) -> list[str]:
    """The parts of a list separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def find_adapter(path: str) -> tuple[Adapter, str]:
    """An adapter file, or the one in a folder of `experiments.train`; and where it was.

    Raises:
      ClipbiasError: there is none, or it is damaged.
    """
    found = user_path(path)
    if found.is_dir():
        found = found / ADAPTER
        if not found.exists():
            raise ClipbiasError(
                f"the folder {path} holds no {ADAPTER}; give an adapter file or a finished run's folder."
            )
    return clipbias.load_adapter(found), str(found)


def find_adapters(text: str) -> list[tuple[Adapter, str]]:
    """Several adapters and where they were, from parts separated by commas, each once.

    A part is an adapter file, a folder of `experiments.train` or `experiments.table1`, a folder of adapter files, or a
    pattern with `*`.

    Raises:
      ClipbiasError: a part names no adapter, or one is damaged.
    """
    files: list[Path] = []
    for part in split(text):
        path = user_path(part)
        if "*" in part:
            found = sorted(Path(name) for name in glob.glob(str(path)))
        elif path.is_dir() and not (path / ADAPTER).exists():
            found = sorted([*path.glob("adapters/*.safetensors"), *path.glob("*.safetensors")])
        else:
            found = [path]
        if not found:
            raise ClipbiasError(f"{part} holds no adapter; give adapter files, or folders of finished runs.")
        files += found
    if not files:
        raise ClipbiasError("no adapters; give --config.adapters=FILES_OR_FOLDERS.")
    return [find_adapter(str(path)) for path in dict.fromkeys(files)]
