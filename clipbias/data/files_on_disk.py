"""Reading images below a data folder: which files count, in which order, and never outside the folder."""

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from clipbias import io as files
from clipbias.data.dataset import Split, is_unicode
from clipbias.data.keys import Keys
from clipbias.data.listings import IMAGE_SUFFIXES, Listings, is_folder
from clipbias.errors import ClipbiasError
from clipbias.io import data_path, reason

READERS = 16  # threads that list folders of an object store


def existing_folder(path: str | os.PathLike | None, *, needed_for: str) -> Path:
    """`path` as a folder that exists. Raises `ClipbiasError` saying what it is needed for."""
    if path is None:
        raise ClipbiasError(f"{needed_for} needs data_dir, the folder that holds the images.")
    folder = data_path(path)
    if not folder.is_dir():
        raise ClipbiasError(f"{needed_for}: there is no folder {folder}; check data_dir.")
    return folder


def sub_folders(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, in Python's sort order (capitals first); links count."""
    try:
        if files.is_remote(folder):
            names = [name for name, size in files.entries(folder).items() if size is None]
        else:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries if entry.name[0] != "." and is_folder(entry)]
    except OSError as error:
        raise ClipbiasError(f"cannot read the folder {folder}: {reason(error)}; check its permissions.") from error
    return [readable_name(name, folder) for name in sorted(names) if not name.startswith(".")]


def image_files(folder: Path, listings: Listings | None = None) -> list[str]:
    """Visible image files below `folder`, as sorted relative paths with forward slashes.

    Links to folders inside are not followed. `listings` are of a folder that it lies in.

    Raises:
      ClipbiasError: a folder cannot be read, or a name in it is not UTF-8.
    """
    if files.is_remote(folder):
        return _remote_images(folder)
    listings = listings or Listings(folder)
    found: list[str] = []
    inner = [""]
    for prefix in inner:  # grows while it is walked through
        folders, images = listings.inside(os.path.join(folder, prefix))
        inner += [f"{prefix}{name}/" for name in folders]
        if not is_unicode(prefix + "".join(images)):
            for name in (*prefix.split("/"), *images):
                readable_name(name, folder)
        found += [prefix + name for name in images] if prefix else images
    return sorted(found)


def _remote_images(folder: Path) -> list[str]:
    try:
        names = files.below(folder)
    except OSError as error:
        raise ClipbiasError(f"cannot read the folder {folder}: {reason(error)}; check its permissions.") from error
    visible = [name for name in names if not name.startswith(".") and "/." not in name]
    return sorted(name for name in visible if posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES)


def in_each(root: Path, folders: Sequence[str]) -> Iterator[list[str]]:
    """`image_files` of several folders in `root`, in their order.

    In an object store, which takes long to answer, it asks for several at a time. On a disk what is listed is kept.
    """
    if files.is_remote(root):
        with ThreadPoolExecutor(READERS) as pool:
            yield from pool.map(image_files, [root / folder for folder in folders])
        return
    listings = Listings(root)
    for folder in folders:
        yield image_files(root / folder, listings)
    listings.keep()


def readable_name(name: str, place: Path) -> str:
    """`name`, refused where its bytes are not UTF-8: it could not be written to a result file."""
    if not is_unicode(name):
        raise ClipbiasError(f"the name {os.fsencode(name)!r} in {place} is not UTF-8; rename it.")
    return name


def inside(relative: str, *, listed_in: str) -> str:
    """`relative` if it stays below its folder. Raises `ClipbiasError` for an absolute or climbing path."""
    parts = relative.split("/")
    plain = relative and parts[0] and ".." not in parts and "\\" not in relative and "\0" not in relative
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
        if files.is_remote(path):
            return files.read_bytes(path)
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
    names = Keys.of(keys)
    place = os.path.join(root if files.is_remote(root) else os.path.abspath(root), "")

    def read(index: int) -> bytes:
        return read_image(root / names[index], listed_in=listed_in)

    def path(index: int) -> Path:
        return root / names[index]

    return Split(names, np.asarray(labels, np.int32), read, lambda index: stamp_of(place + names[index]), path)


def stamp_of(path: str | os.PathLike) -> tuple[str, float]:
    """What changes when a file does, and when it changed last, in seconds. Raises `OSError` where there is none."""
    if files.is_remote(path):
        return files.stamp(path)
    found = os.stat(path)
    stamp = f"{path}\n{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
    return stamp, max(found.st_mtime, found.st_ctime)
