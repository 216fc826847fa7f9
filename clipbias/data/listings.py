"""What lies in each folder of a large image set, kept in the user's cache folder as long as no folder changes.

A file that comes, goes or gets another name changes the times of its folder, so that a start asks the system for the
times of a thousand folders instead of the names of a million files. Below `FEWEST` files that is not worth keeping.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.io import atomic_path, cache_folder, reason

FEWEST = 10_000
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
# Those that most have, written as most write them: looked for first.
IMAGE_ENDINGS = (".jpg", ".JPEG", ".png", ".jpeg", ".JPG")
# A folder that was changed so recently may be changed again without its times telling.
SETTLED_SECONDS = 2.0

# Names of the visible folders and images in a folder, each with a zero byte behind it; what changes when they do.
_Listed = tuple[str, str, tuple[int, ...]]


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


class Listings:
    """The folders below one, each listed by the system, or as it was listed when it was last changed."""

    def __init__(self, root: str | os.PathLike) -> None:
        """Reads what is kept of the folders below `root`."""
        name = hashlib.sha256(os.path.abspath(root).encode("utf-8", "surrogatepass")).hexdigest()
        self._path = cache_folder() / "listings" / f"{name}.npz"
        self._kept: Mapping[str, _Listed] = _read(self._path)
        self._found: dict[str, _Listed] = {}
        self._settled = time.time() - SETTLED_SECONDS

    def inside(self, place: str) -> tuple[list[str], list[str]]:
        """The names of the visible folders and of the visible images in a folder. Links to folders are neither.

        Raises:
          ClipbiasError: it cannot be read.
        """
        try:
            status = os.stat(place)
            stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
            kept = self._kept.get(place)
            if kept is None or kept[2] != stamp:
                folders, images = _scan(place)
                listed = "".join(f"{name}\0" for name in folders), "".join(f"{name}\0" for name in images)
                if max(status.st_mtime, status.st_ctime) < self._settled:
                    self._found[place] = (*listed, stamp)
                return folders, images
        except OSError as error:
            raise ClipbiasError(f"cannot read the folder {place}: {reason(error)}; check its permissions.") from error
        self._found[place] = kept
        return kept[0].split("\0")[:-1], kept[1].split("\0")[:-1]

    def keep(self) -> None:
        """Keeps what was listed, if it is new and much; it does not matter if it cannot be kept."""
        if self._found != self._kept and sum(images.count("\0") for _, images, _ in self._found.values()) >= FEWEST:
            with contextlib.suppress(ClipbiasError, UnicodeEncodeError):
                _write(self._path, self._found)


def _scan(place: str) -> tuple[list[str], list[str]]:
    folders, images = [], []
    with os.scandir(place) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif (name.endswith(IMAGE_ENDINGS) or os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES) and not (
                entry.is_symlink() and is_folder(entry)
            ):
                images.append(name)
    return folders, images


def _write(path: Path, found: Mapping[str, _Listed]) -> None:
    encoded = [
        "\0".join([place, str(folders.count("\0")), folders + images]).encode()
        for place, (folders, images, _) in found.items()
    ]
    arrays: dict[str, Any] = {
        "text": np.frombuffer(b"".join(encoded), np.uint8),
        "lengths": np.array([len(one) for one in encoded], np.int64),
        "stamps": np.array([stamp for _, _, stamp in found.values()], np.uint64),
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _read(path: Path) -> dict[str, _Listed]:
    found: dict[str, _Listed] = {}
    if not path.is_file():
        return found
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            text, lengths, stamps = stored["text"].data, stored["lengths"].tolist(), stored["stamps"].tolist()
        start = 0
        for length, stamp in zip(lengths, stamps, strict=True):
            place, count, names = str(text[start : start + length], "utf-8").split("\0", 2)
            start += length
            parts = names.split("\0", int(count))
            found[place] = "".join(f"{name}\0" for name in parts[:-1]), parts[-1], tuple(stamp)
    except Exception:  # a damaged archive raises nearly anything
        return {}
    return found
