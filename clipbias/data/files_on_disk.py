"""Reading images below a data folder: which files count, in which order, and never outside the folder."""

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from clipbias.data.contents import stamp_of
from clipbias.data.dataset import Split, is_unicode
from clipbias.errors import ClipbiasError
from clipbias.files import reason, user_path

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def existing_folder(path: str | os.PathLike | None, *, needed_for: str) -> Path:
    """`path` as a folder that exists. Raises `ClipbiasError` saying what it is needed for."""
    if path is None:
        raise ClipbiasError(f"{needed_for} needs data_dir, the folder that holds the images.")
    folder = user_path(path)
    if not folder.is_dir():
        raise ClipbiasError(f"{needed_for}: there is no folder {folder}; check data_dir.")
    return folder


def sub_folders(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, in Python's sort order (capitals first); links count."""
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise ClipbiasError(f"cannot read the folder {folder}: {reason(error)}; check its permissions.") from error
    names = sorted(entry.name for entry in entries if _is_folder(entry))
    return [readable_name(name, folder) for name in names]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def image_files(folder: Path) -> list[str]:
    """Visible image files below `folder`, as sorted relative paths with forward slashes."""
    found = []
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        relative = Path(place).relative_to(folder)
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                found.append((relative / readable_name(name, Path(place))).as_posix())
    return sorted(found)


def readable_name(name: str, place: Path) -> str:
    """`name`, refused where its bytes are not UTF-8: it could not be written to a result file."""
    if not is_unicode(name):
        raise ClipbiasError(f"the name {os.fsencode(name)!r} in {place} is not UTF-8; rename it.")
    return name


def inside(relative: str, *, listed_in: str) -> str:
    """`relative` if it stays below its folder. Raises `ClipbiasError` for an absolute or climbing path."""
    path = PurePosixPath(relative)
    plain = relative and not path.is_absolute() and ".." not in path.parts and not set(relative) & {"\\", "\0"}
    if not plain or not is_unicode(relative):
        raise ClipbiasError(
            f"{listed_in} lists the path {relative!r}, which is not a plain path below the image folder; correct it."
        )
    return relative


def read_image(path: Path, *, listed_in: str = "") -> bytes:
    """The content of an image file; `listed_in` names the file that lists it, for the message.

    Links are followed, but not to what has no end, such as a device or a pipe.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(None, "it is not a file")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        named = f", listed in {listed_in}" if listed_in else ""
        raise ClipbiasError(f"cannot read the image {path}{named}: {reason(error)}.") from error


def split_of_files(
    root: Path, keys: Iterable[str], labels: Sequence[int] | np.ndarray, *, listed_in: str = ""
) -> Split:
    """A split whose keys are paths relative to `root`; `listed_in` names the file that lists them, for messages."""
    keys = tuple(keys)

    def read(index: int) -> bytes:
        return read_image(root / keys[index], listed_in=listed_in)

    def path(index: int) -> Path:
        return root / keys[index]

    return Split(keys, np.asarray(labels, np.int32), read, lambda index: stamp_of(path(index)), path)
