"""Image files below a data folder: lists in a fixed order, reading, and checks of listed paths."""

import collections
import contextlib
import hashlib
import itertools
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging

from clipbias.data import transforms
from clipbias.data.dataset import Split, is_unicode
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.io import below, data_path, entries, is_remote, read_bytes, reason

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff", ".ppm", ".pgm"}
)
# Pictures in formats that are not supported: camera files, and some of the web and of programs.
OTHER_SUFFIXES = frozenset(
    {".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".psd", ".svg", ".tga"}
)
# Formats without compression: different pictures of one size have files of one size.
PLAIN_SUFFIXES = frozenset({".bmp", ".ppm", ".pgm", ".tif", ".tiff"})
READERS = 16  # threads that list folders, since shared storage and object stores answer slowly


def existing_folder(path: str | os.PathLike | None, *, needed_for: str) -> Path:
    """Returns an existing folder. Raises `ClipbiasError` with the purpose (`needed_for`) of a missing one."""
    if path is None:
        raise ClipbiasError(f"{needed_for} needs data_dir, the folder that holds the images.")
    folder = data_path(path)
    if not folder.is_dir():
        raise ClipbiasError(f"{needed_for}: there is no folder {folder}; check data_dir.")
    return folder


def sub_folders(folder: Path) -> list[str]:
    """Lists the visible folders in `folder`, links included, in Python's sort order (capitals first)."""
    with readable(folder):
        if is_remote(folder):
            names = [name for name, size in entries(folder).items() if size is None]
        else:
            names = next(os.walk(folder, onerror=_fail))[1]
    visible = [name for name in sorted(names) if name[0] != "."]
    for name in visible:
        if not is_unicode(name):  # it could not be written to a result file
            raise ClipbiasError(f"the name {os.fsencode(name)!r} in {folder} is not UTF-8; rename it.")
    return visible


def image_files(folder: Path) -> tuple[list[str], list[str]]:
    """Lists images below `folder`, and pictures in unsupported formats, as sorted paths with forward slashes."""
    with readable(folder):
        # Hidden files and folders are thumbnails and caches of other programs (`.ipynb_checkpoints`).
        names = below(folder) if is_remote(folder) else _local_files(os.fspath(folder))
        visible = [name for name in names if name[0] != "." and "/." not in name]
    # HEIC counts as readable only with its package: otherwise every picture of a phone would be an error at its use.
    suffixes = IMAGE_SUFFIXES | transforms.HEIF_SUFFIXES if transforms.is_installed() else IMAGE_SUFFIXES
    images = [name for name in visible if suffix_of(name) in suffixes]
    others = [name for name in visible if suffix_of(name) in (OTHER_SUFFIXES | transforms.HEIF_SUFFIXES) - suffixes]
    listed = sorted(name for name in images if is_unicode(name))
    if len(listed) < len(images):
        odd = sorted(repr(os.fsencode(name)) for name in images if not is_unicode(name))
        logging.warning(
            "%s: %d pictures are left out, since their names are not UTF-8 (%s): rename them.",
            folder,
            len(odd),
            examples(odd),
        )
    return listed, sorted(others)


def suffix_of(name: str) -> str:
    """Returns the suffix of a file's name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def describe_others(others: Sequence[str]) -> str:
    """Counts image files in unsupported formats, and adds advice: "8 .heic, 1 .dng; ..."."""
    counts = collections.Counter(map(suffix_of, others))
    words = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
    return f"{words}; {transforms.HEIF_ADVICE if transforms.HEIF_SUFFIXES & counts.keys() else 'convert them to JPEG'}"


def warn_of_others(place: Path, others: Sequence[str]) -> None:
    """Logs the pictures of a folder in unsupported formats."""
    if others:
        logging.warning(
            "%s: %d pictures are left out, since their format is not read (%s): %s.",
            place,
            len(others),
            examples(others),
            describe_others(others),
        )


def examples(names: Sequence[str]) -> str:
    """Returns the first names of a list, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _local_files(top: str) -> Iterator[str]:
    # Links to folders are not followed, as they may lead back; names of files may be links.
    for place, folders, names in os.walk(top, onerror=_fail):
        # In place: `os.walk` then does not enter hidden folders, such as caches of thousands of thumbnails.
        folders[:] = [name for name in folders if name[0] != "."]
        prefix = place[len(top) :].lstrip("/")
        yield from (f"{prefix}/{name}" if prefix else name for name in names)


def _fail(error: OSError) -> None:
    raise error  # `os.walk` would skip a folder without permission


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Raises `ClipbiasError` if a folder cannot be read within the block."""
    try:
        yield
    except OSError as error:
        raise ClipbiasError(f"cannot read the folder {folder}: {reason(error)}; check its permissions.") from error


def image_files_in_each(root: Path, folders: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Yields `image_files` of several folders in `root`, in their order."""
    # `map` keeps the order of the folders, whichever thread ends first.
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(image_files, [root / folder for folder in folders])


def check_relative(relative: str, *, listed_in: str) -> str:
    """Normalises a path below a folder. Raises `ClipbiasError` for a path that is absolute or leaves the folder."""
    # Lists come with downloaded data: a path such as ../../.ssh/id_rsa must not become an image that is published.
    parts = relative.split("/")
    plain = relative and parts[0] and ".." not in parts and "\\" not in relative and "\0" not in relative
    if not plain or not is_unicode(relative):
        raise ClipbiasError(f"{listed_in} lists the path {relative!r}, not a plain path below the image folder.")
    return posixpath.normpath(relative)


def common_folder(paths: Sequence[str]) -> str:
    """Returns the folder that holds all files, with "/" at its end; empty without such a folder."""
    prefix = os.path.commonprefix(paths)  # noqa: RUF071 (`commonpath` takes no address of a bucket)
    return prefix[: prefix.rfind("/") + 1]


def read_image(path: str | os.PathLike, *, listed_in: str = "") -> bytes:
    """Reads an image file, named in messages with the list `listed_in`. Raises `UnreadableImage`."""
    try:
        # Links are followed, but not to a device or a pipe, whose content may never end.
        if not is_remote(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(None, "it is not a file")
        return read_bytes(path)
    except (OSError, ValueError) as error:
        origin = f", listed in {listed_in}" if listed_in else ""
        raise UnreadableImage(str(path), f"cannot read the image {path}{origin}: {reason(error)}") from error


def split_of_files(
    root: Path, keys: Sequence[str], labels: np.ndarray, *, listed_in: str = "", upright: bool = False
) -> Split:
    """Returns a split with paths relative to `root` as keys; `listed_in` names the file that lists them."""
    # Links are resolved in the source, so that one folder under two names is the same data.
    keys = tuple(keys)
    return Split(
        keys,
        np.asarray(labels, np.int32),
        lambda index: read_image(root / keys[index], listed_in=listed_in),
        source=os.fspath(root) if is_remote(root) else os.path.realpath(root),
        upright=upright,
        contents=file_sizes,
    )


def file_sizes(paths: Sequence[str]) -> list[int | str]:
    """Returns each file's size in bytes, or its SHA-256 for `PLAIN_SUFFIXES`; -1 for a missing file."""
    # A bucket is asked once per folder: a request per file would take minutes.
    folders = list(dict.fromkeys(os.path.dirname(path) for path in paths if is_remote(path)))

    def sizes_in(folder: str) -> dict[str, int | None]:
        with contextlib.suppress(OSError):
            return entries(folder)
        return {}

    def size(path: str) -> int | str:
        with contextlib.suppress(OSError, ValueError):
            if suffix_of(path) in PLAIN_SUFFIXES:
                return hashlib.sha256(read_image(path)).hexdigest()
            if not is_remote(path):
                return os.stat(path).st_size
            found = remote[os.path.dirname(path)].get(os.path.basename(path))
            return -1 if found is None else found
        return -1

    each = max(1, -(-len(paths) // READERS))  # a task for every thread, not for every file
    parts = [paths[first : first + each] for first in range(0, len(paths), each)]
    with ThreadPoolExecutor(READERS) as pool:
        remote = dict(zip(folders, pool.map(sizes_in, folders), strict=True))
        return list(itertools.chain.from_iterable(pool.map(lambda part: [size(path) for path in part], parts)))
