"""Looking at the images of a dataset before they are used: whether they are there, whole, and images at all.

A file's beginning says what it is, and its end whether it is cut short, as a download that was broken off leaves it.
Only a file whose end is not what its format ends with is decoded. What lies in one file with others, such as the
records of TFDS, was looked at when that was opened.
"""

import os
import stat
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from clipbias.data import transforms
from clipbias.data.dataset import Split
from clipbias.data.files_on_disk import read_image
from clipbias.data.pipeline import default_workers
from clipbias.errors import ClipbiasError
from clipbias.files import reason

# How much of every image is looked at.
HOW = ("headers", "all", "none")
CHUNK = 512  # files that threads are given at once: between two such the caller may be told to stop
TAIL = 64


def unreadable(
    splits: Iterable[Split], *, how: str = "headers", advance: Callable[[int], None] = lambda count: None
) -> dict[str, str]:
    """The images of some splits that cannot be read.

    Args:
      splits: images that several of them have are looked at once.
      how: "headers" reads the beginning and the end of each, "all" decodes each; "none" looks at nothing.
      advance: is told how many were looked at since it was told last.

    Returns:
      What is wrong, by the image's key.
    """
    files = paths(splits)
    keys, found = list(files), dict[str, str]()

    def look(key: str) -> str | None:
        return what_is_wrong(files[key], key, whole=how == "all")

    with ThreadPoolExecutor(default_workers()) as pool:
        for start in range(0, len(keys) if how != "none" else 0, CHUNK):
            chunk = keys[start : start + CHUNK]
            found.update((key, said) for key, said in zip(chunk, pool.map(look, chunk), strict=True) if said)
            advance(len(chunk))
    return found


def paths(splits: Iterable[Split]) -> dict[str, Path]:
    """The files of images by their keys, of those splits whose images have files of their own."""
    return {key: path(index) for split in splits if (path := split.path) for index, key in enumerate(split.keys)}


def what_is_wrong(path: Path, key: str, *, whole: bool = False) -> str | None:
    """Why an image cannot be read, in a few words; `None` where it can, as far as was looked."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "it is not a file"
        with open(path, "rb") as file:
            if not file.read(1):
                return "it is empty"
            if not whole and _is_complete(file):
                return None
        transforms.decode(read_image(path), key)
    except (OSError, ValueError) as error:
        if isinstance(error, ClipbiasError):  # what the decoder says, without the key
            return str(error).partition("(")[2].rpartition(")")[0] or str(error)
        return reason(error)
    return None


def _is_complete(file: BinaryIO) -> bool:
    """Whether a file begins and ends as an image of a format does; false where that says nothing either way."""
    file.seek(0)
    try:
        with Image.open(file, formats=transforms.FORMATS) as image:
            form = image.format
    except Exception:  # the decoder tells what is wrong
        return False
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL))
    tail = file.read()
    if form == "JPEG":
        return b"\xff\xd9" in tail
    if form == "PNG":
        return b"IEND" in tail
    if form == "WEBP":
        file.seek(4)
        return int.from_bytes(file.read(4), "little") + 8 <= size
    return form == "GIF" and tail.rstrip(b"\0").endswith(b";")
