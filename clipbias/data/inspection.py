"""Looking at the images of a dataset before they are used: whether they are there, whole, and images at all.

An image's beginning says what it is, and its end whether it is cut short, as a download that was broken off leaves it.
Only one whose end is not what its format ends with is decoded. Each is read whole, once: from the same bytes comes the
digest that tells it from its replacement (`contents`), and while its file stays as it is it is not read again.
"""

import hashlib
import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image

from clipbias import hosts
from clipbias.data import digests, transforms
from clipbias.data.dataset import Split
from clipbias.errors import ClipbiasError
from clipbias.io import reason

# How much of every image is looked at.
HOW = ("headers", "all", "none")
READERS = 16  # threads: shared storage takes long to answer
CHUNK = 64  # images that one of them is given at once
BLOCK = 1 << 16  # images whose digests are kept at once
TAIL = 64
# A file that was changed so recently may be changed again without its times telling.
SETTLED_SECONDS = 2.0

_T = TypeVar("_T")


def unreadable(
    splits: Iterable[Split], *, how: str = "headers", advance: Callable[[int], None] = lambda count: None
) -> dict[str, str]:
    """The images of some splits that cannot be read.

    What lies in one file with others, such as the records of TFDS, was looked at when that was opened.

    Args:
      splits: images that several of them have are looked at once.
      how: "headers" looks at the beginning and the end of each, "all" decodes each; "none" looks at nothing.
      advance: is told how many were looked at since it was told last.

    Returns:
      What is wrong, by the image's key.
    """
    found: dict[str, str] = {}
    for split, chosen in _distinct(splits) if how != "none" else ():
        wrong = examine(split, chosen, how=how, advance=advance)
        found.update((split.keys[index], _words(error)) for index, error in wrong.items())
    return found


def count(splits: Iterable[Split]) -> int:
    """How many images `unreadable` looks at."""
    return sum(len(chosen) for _, chosen in _distinct(splits))


def _distinct(splits: Iterable[Split]) -> list[tuple[Split, np.ndarray]]:
    """Of images that have files of their own, the splits that others were chosen from, and which are meant there."""
    chosen: dict[int, tuple[Split, list[np.ndarray]]] = {}
    for split in splits:
        base, places = split.origin()
        if base.path is not None:
            chosen.setdefault(id(base), (base, []))[1].append(places)
    return [(base, np.unique(np.concatenate(places))) for base, places in chosen.values()]


def examine(
    split: Split, chosen: np.ndarray, *, how: str = "none", advance: Callable[[int], None] = lambda count: None
) -> dict[int, ClipbiasError]:
    """Reads images that were not read before, notes their digests (`Split.digests`), and looks at them.

    Args:
      split: that was chosen from no other.
      chosen: numbers of its images, int64 [k], each once.
      how: of `HOW`; with "all" images are read and decoded that were read before, too.
      advance: is told how many were looked at since it was told last.

    Returns:
      What is wrong, by number.
    """
    found, known = split.digests()
    todo = chosen if how == "all" else chosen[~known[chosen]]
    stamps, settled = _stamps(split, todo)
    if settled.any() and how != "all":
        kept, is_kept = digests.Known().find(stamps)
        found[todo[is_kept]], known[todo[is_kept]] = kept[is_kept], True
        todo, stamps, settled = todo[~is_kept], stamps[~is_kept], settled[~is_kept]
    advance(len(chosen) - len(todo))
    wrong: dict[int, ClipbiasError] = {}
    whole = np.zeros(len(todo), bool)  # what is kept is known to be: nobody will look again

    def look(rows: np.ndarray) -> int:
        for row in rows.tolist():
            index = int(todo[row])
            try:
                content = split.read(index)
                found[index], known[index] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8), True
                if how != "none" or settled[row]:
                    check_whole(content, split.keys[index], decode=how == "all")
                    whole[row] = True
            except ClipbiasError as error:
                wrong[index] = error
        return len(rows)

    for first in range(0, len(todo), BLOCK):
        block = np.arange(first, min(first + BLOCK, len(todo)))
        try:
            for looked_at in _in_threads(look, _chunks(block, CHUNK)):
                advance(looked_at)
        finally:
            kept_rows = block[(whole & settled)[block]]
            digests.keep(stamps[kept_rows], found[todo[kept_rows]])
    return dict(sorted(wrong.items()))


def check_whole(content: bytes, key: str, *, decode: bool = False) -> None:
    """Raises `ClipbiasError` unless bytes begin and end as an image of a format does.

    With `decode`, and where a format has no end of its own, unless they can be decoded.
    """
    if not content:
        raise ClipbiasError(f"the image {key} cannot be decoded (it is empty); replace the file.")
    if decode or not _is_complete(content):
        transforms.decode(content, key)


def _words(error: ClipbiasError) -> str:
    """Why an image cannot be read, in a few words: what the system or the decoder says, without the image's name."""
    if isinstance(error.__cause__, OSError) and error.__cause__.strerror:
        return reason(error.__cause__)
    return str(error).partition(" cannot be decoded (")[2].rpartition("); ")[0] or str(error)


def _stamps(split: Split, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What changes when an image does, uint8 [k, STAMP], and whether that can be relied on, bool [k]."""
    settled_before = time.time() - SETTLED_SECONDS
    stamp = split.stamp

    def read(indices: np.ndarray) -> tuple[bytes, list[bool]]:
        stamps, settled = [], []
        for index in indices.tolist():
            try:
                text, changed = ("", np.inf) if stamp is None else stamp(index)
            except (OSError, ValueError):  # whoever reads it says what is wrong
                text, changed = "", np.inf
            stamps.append(digests.stamp_digest(text))
            settled.append(changed <= settled_before)
        return b"".join(stamps), settled

    found = list(_in_threads(read, _chunks(chosen, 8 * CHUNK))) if stamp is not None else []
    if not found:
        return np.zeros((len(chosen), digests.STAMP), np.uint8), np.zeros(len(chosen), bool)
    stamps = np.frombuffer(b"".join(one for one, _ in found), np.uint8).reshape(-1, digests.STAMP)
    return stamps, np.array([one for _, some in found for one in some], bool)


def _chunks(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[first : first + size] for first in range(0, len(indices), size)]


def _in_threads(run: Callable[[np.ndarray], _T], chunks: Sequence[np.ndarray]) -> Iterator[_T]:
    """`run` of each chunk, in order. Between some of them a notice to stop is heeded."""
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(chunks), READERS):
            hosts.check()
            yield from pool.map(run, chunks[first : first + READERS])


def _is_complete(content: bytes) -> bool:
    """Whether an image begins and ends as one of a format does; false where that says nothing either way."""
    try:
        with Image.open(io.BytesIO(content), formats=transforms.FORMATS) as image:
            form = image.format
    except Exception:  # the decoder tells what is wrong
        return False
    tail = content[-TAIL:]
    if form == "JPEG":
        return b"\xff\xd9" in tail
    if form == "PNG":
        return b"IEND" in tail
    if form == "WEBP":
        return int.from_bytes(content[4:8], "little") + 8 <= len(content)
    return form == "GIF" and tail.rstrip(b"\0").endswith(b";")
