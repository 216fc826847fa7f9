"""What is in the images of a split, as one digest: neither names nor labels tell a picture from its replacement.

The digest is SHA-256 over every byte of every image, in order. Results name the images that they are of by it. It costs
one reading of images that are, with few exceptions, read anyway, a small part of what decoding them costs. And it is
paid once: the digest of a split is kept in the user's cache folder under the sizes, the times of the last change and
the inodes of all its files, as long as none of these changes.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from clipbias import interruption
from clipbias.data.dataset import Split
from clipbias.errors import ClipbiasError
from clipbias.files import cache_folder, read_text, write_text

# A file that was changed so recently may be changed again without its times telling.
SETTLED_SECONDS = 2.0
READERS = 16

_T = TypeVar("_T")


def contents(split: Split, *, on_error: str = "raise") -> str:
    """The digest of the encoded images of a split, in hexadecimal.

    Args:
      split: the images.
      on_error: "raise", or "skip" to take those that cannot be read for one and the same.

    Raises:
      ClipbiasError: an image cannot be read, and `on_error` is "raise".
    """
    found: dict[str, str] = split.__dict__.setdefault("_contents", {})
    if on_error not in found:
        place = _place(split)
        kept = _kept(place)
        if kept is None:
            kept, whole = _digest(split, on_error)
            if place is not None and whole:
                _keep(place, kept)
        found[on_error] = kept
    return found[on_error]


def _digest(split: Split, on_error: str) -> tuple[str, bool]:
    """The digest, and whether all images could be read."""

    def one(index: int) -> bytes | None:
        try:
            return hashlib.sha256(split.read(index)).digest()
        except ClipbiasError:
            if on_error == "raise":
                raise
            return None

    digest, whole = hashlib.sha256(), True
    for own in _each(one, len(split)):
        whole &= own is not None
        digest.update(own or b"cannot be read")
    return digest.hexdigest(), whole


def _place(split: Split) -> Path | None:
    """Where the digest is kept; `None` where nothing tells that the images are those of another time."""
    if split.stamp is None or not len(split):
        return None
    try:
        stamps, settled = hashlib.sha256(), time.time() - SETTLED_SECONDS
        for stamp, changed in _each(split.stamp, len(split)):
            if changed > settled:
                return None
            stamps.update(f"{stamp}\n".encode())
    except OSError:
        return None
    name = stamps.hexdigest()
    return cache_folder() / "images" / name[:2] / name


def _each(run: Callable[[int], _T], count: int) -> Iterator[_T]:
    """`run` of all numbers below `count`, in order, several at a time: shared storage takes long to answer."""
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, count, 1024):
            interruption.check()
            yield from pool.map(run, range(first, min(first + 1024, count)))


def _kept(place: Path | None) -> str | None:
    if place is None or not place.is_file():
        return None
    try:
        found = read_text(place).strip()
    except ClipbiasError:
        return None
    return found if len(found) == 64 else None  # a file system that lost the end of it


def _keep(place: Path, digest: str) -> None:
    with contextlib.suppress(ClipbiasError):  # it is made again the next time
        write_text(place, digest + "\n")


def stamp_of(path: str | os.PathLike) -> tuple[str, float]:
    """What changes when a file does, and when it changed last, in seconds. Raises `OSError` where there is none."""
    found = os.stat(path)
    stamp = [os.path.abspath(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    return ascii(stamp), max(found.st_mtime, found.st_ctime)
