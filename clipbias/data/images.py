"""Decoded images of a split, their cache in memory, and the threads that read and decode them."""

import itertools
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from absl import logging
from numpy.typing import DTypeLike
from PIL import Image

from clipbias import hosts
from clipbias.data import transforms
from clipbias.data.dataset import Split
from clipbias.errors import UnreadableImage

# Elements to prepare ahead of the current one, and their bytes. If all threads are busy only with more elements, these
# may take up to `MAX_BUSY_BYTES`. One element of any size is always prepared.
AHEAD = 4
AHEAD_BYTES = 64 << 20
MAX_BUSY_BYTES = 256 << 20
# Seconds between two checks whether the device has finished.
POLL_SECONDS = 1e-3

_T = TypeVar("_T")
# Pieces of an element, which threads call in any order, and the function that returns the finished element.
ElementWork = tuple[Sequence[Callable[[], None]], Callable[[], _T]]


class Workers(ThreadPoolExecutor):
    """Threads that concurrent consumers share. Default count: the processors that this process may use."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count or processors()
        super().__init__(self.count, thread_name_prefix="images")


def processors() -> int:
    """Returns the number of processors that this process may use, by its affinity and its container's quota."""
    # `os.cpu_count` counts the whole machine, of which a container may have a part: too many threads slow one another.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # "max": the container has no limit
        return count


class Ahead(Iterator[_T], Generic[_T]):
    """Iterator over elements in the order of their numbers; shared threads prepare them in pieces, ahead of use."""

    def __init__(
        self,
        workers: Workers,
        numbers: range,
        begin: Callable[[int], ElementWork[_T]],
        *,
        pieces: int,
        size: int = 0,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepares nothing before the first `next`; an element has `pieces` and `size` bytes.

        `begin` returns the pieces of an element by its number, in the consumer's thread; `busy` tells whether the
        consumer's device still has work, so that waiting costs nothing.
        """
        self._workers = workers
        self._numbers = iter(numbers)
        self._begin = begin
        self._busy = busy
        # One thread of its own waits for pieces: in the pool, waiting threads could leave none to work.
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="batches")
        # Enough elements that all threads have work while one element is ready.
        needed = 1 + -(-workers.count // max(pieces, 1))
        size = max(size, 1)
        self._depth = max(1, min(needed, MAX_BUSY_BYTES // size), min(AHEAD, AHEAD_BYTES // size))
        self._elements: deque[tuple[Future[_T], list[Future[None]]]] = deque()
        self._waiting = 0.0  # seconds in `next` since the second call, while the device had no work
        self._count = 0  # calls of `next`
        self._second_call = 0.0  # its time

    def __next__(self) -> _T:
        self._refill()
        if not self._elements:
            raise StopIteration
        # The program is compiled between the first two calls, so that the share counts from the second on.
        if self._count == 1:
            self._second_call = time.perf_counter()
            self._waiting = 0.0
        self._count += 1
        element, _ = self._elements.popleft()
        self._refill()
        # Waiting counts only from when the device is idle: before that, it costs no time of the training.
        while self._busy() and not element.done():
            wait([element], POLL_SECONDS)
        idle = time.perf_counter()
        try:
            return element.result()
        finally:
            self._waiting += time.perf_counter() - idle

    def _refill(self) -> None:
        while len(self._elements) < self._depth and (number := next(self._numbers, None)) is not None:
            pieces, finish = self._begin(number)
            futures = [self._workers.submit(piece) for piece in pieces]
            self._elements.append((self._finisher.submit(_finished, futures, finish), futures))

    @property
    def waiting_share(self) -> float:
        """Share of the time since the second `next` that was spent waiting, from 0 to 1."""
        return 0.0 if self._count < 2 else min(1.0, self._waiting / max(time.perf_counter() - self._second_call, 1e-9))

    def close(self) -> None:
        """Drops the elements that are prepared."""
        self._numbers = iter(())
        while self._elements:
            element, pieces = self._elements.pop()
            element.cancel()
            for piece in pieces:
                piece.cancel()
        self._finisher.shutdown(wait=False)

    def __del__(self) -> None:
        if hasattr(self, "_elements"):
            self.close()


def _finished(pieces: list[Future[None]], finish: Callable[[], _T]) -> _T:
    # For all of them, also after an error: no piece may write into the element of a consumer that has gone on.
    wait(pieces)
    for piece in pieces:
        piece.result()
    return finish()


# The path of an image, and its resizing; `None` for the whole image.
_Name = tuple[str, transforms.Resizing | None]
ALIGNMENT = 64  # of JAX's arrays on CPUs, in bytes
# Images to read before training: more would take minutes.
MOST_CHECKED = 20_000


def unset(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Returns an uninitialised array, aligned so that JAX uses it as a CPU array without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    first = -buffer.ctypes.data % ALIGNMENT
    return buffer[first : first + size].view(dtype).reshape(shape)


def pictures(split: Split, indices: Sequence[int] | np.ndarray, resizing: transforms.Resizing) -> np.ndarray:
    """Reads the images at `indices` as a model sees them, uint8 `[K, R, R, 3]`. Raises `UnreadableImage`."""
    # One at a time: pictures are used by explanations, which need few.
    subset = Images(split.subset(indices))
    images = np.zeros((len(subset), resizing.side, resizing.side, 3), np.uint8)
    for i in range(len(subset)):
        images[i] = subset.evaluated(i, resizing)
    return images


class ImageCache:
    """Images in memory, at most `limit` bytes of `expected` images (0: unknown), for all threads and consumers."""

    # An image is stored as pixels if these fit beside the files of all images to come, else as its file: a photograph's
    # file takes a fifth of its pixels, so that each file is read once if all files fit. Pixels keep their full size: a
    # random crop may cover the whole image, and a smaller copy would give other values.
    # Nothing is evicted: an epoch reads every image once, so the least recently used image is the next one needed.
    def __init__(self, limit: int, expected: int = 0) -> None:
        self.limit = limit
        self._expected = expected
        self._images: dict[_Name, np.ndarray | bytes] = {}
        self._bytes = 0
        self._files = 0
        self._file_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    def get(self, name: _Name) -> np.ndarray | bytes | None:
        """Returns the pixels or the file of an image, or `None`."""
        return self._images.get(name)

    def add(self, name: _Name, encoded: bytes, picture: transforms.Picture) -> transforms.Picture:
        """Stores an image if it fits; returns it, as pixels if these may be stored."""
        height, width = transforms.height_and_width(picture)
        size = 3 * height * width
        # A user's picture in memory is a PPM file already: its pixels would be a second copy.
        as_pixels = not encoded.startswith(b"P6") and self._fits_as_pixels(size, encoded)
        if isinstance(picture, Image.Image) and as_pixels and transforms.is_plain(picture):
            picture = np.asarray(transforms.as_rgb(picture))  # before the lock, since decoding takes long
        with self._lock:
            if name not in self._images:
                image: np.ndarray | bytes = encoded
                if isinstance(picture, np.ndarray) and self._fits_as_pixels(size, encoded):
                    image = picture
                self._files += 1
                self._file_bytes += len(encoded)
                if self._bytes + _size(image) <= self.limit:
                    self._images[name] = image
                    self._bytes += _size(image)
        return picture

    def _fits_as_pixels(self, size: int, encoded: bytes) -> bool:
        # Images to come are assumed to have the mean size of the files so far.
        room = self.limit - self._bytes
        waiting = max(0, self._expected - len(self._images) - 1)
        others = waiting * (self._file_bytes + len(encoded)) // (self._files + 1)
        return size <= room and (size <= len(encoded) or size + others <= room)

    def keep_only(self, splits: Sequence[Split] = ()) -> None:
        """Drops all images except those of `splits`, which are read next."""
        names = {path for split in splits for path in split.paths}
        with self._lock:
            self._expected = len(names)
            self._images = {name: image for name, image in self._images.items() if name[0] in names}
            self._bytes = sum(map(_size, self._images.values()))


def _size(image: np.ndarray | bytes) -> int:
    return len(image) if isinstance(image, bytes) else image.nbytes


class Images:
    """Decodes the images of a split, for many threads; `unreadable` has messages by path for skipped images."""

    def __init__(self, split: Split, cache: ImageCache | None = None) -> None:
        self.split = split
        self.labels = split.labels
        self.cache = ImageCache(0) if cache is None else cache
        self.unreadable: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.split)

    def decoded(self, index: int) -> transforms.Picture:
        """Returns image `index` in its mode, or pixels from the cache. Raises `UnreadableImage`."""
        return self._load(index, None)

    def evaluated(self, index: int, resizing: transforms.Resizing) -> np.ndarray:
        """Returns image `index` as it is evaluated, uint8 `[R, R, 3]`. Raises `UnreadableImage`."""
        return np.asarray(self._load(index, resizing))

    def _load(self, index: int, resizing: transforms.Resizing | None) -> transforms.Picture:
        name = (self.split.path(index), resizing)
        cached = self.cache.get(name)
        if isinstance(cached, np.ndarray):
            return cached
        encoded = self.split.read(index) if cached is None else cached
        picture: transforms.Picture = self.split.decode(encoded, index)
        if resizing is not None:
            picture = transforms.test_image(picture, resizing)
        return self.cache.add(name, encoded, picture) if cached is None else picture

    def note_unreadable(self, error: UnreadableImage) -> None:
        """Logs and records a skipped image, once for each image."""
        if error.path not in self.unreadable:
            self.unreadable[error.path] = error.reason
            logging.warning("Skipped: %s.", error.reason)


def check_readable(
    lists: Sequence[Images],
    resizing: transforms.Resizing | None,
    workers: Workers,
    checked: set[str],
    *,
    skip: bool = False,
) -> None:
    """Decodes images into their caches, at most `MOST_CHECKED`, except the paths in `checked`, and adds them there.

    `resizing` is that of training without augmentation; `None` keeps images whole. Raises `UnreadableImage` for all
    unreadable ones together; with `skip` their lists note them.
    """
    # Before the first step: an error after hours of training would lose them.
    places = {images.split.path(index): (images, index) for images in lists for index in range(len(images))}
    todo = {path: place for path, place in itertools.islice(places.items(), MOST_CHECKED) if path not in checked}

    # Errors are returned, not raised: the first one would end `map`, and the others stay unknown until the next run.
    def error_of(place: tuple[Images, int]) -> UnreadableImage | None:
        images, index = place
        try:
            _ = images.decoded(index) if resizing is None else images.evaluated(index, resizing)
        except UnreadableImage as error:
            return error
        return None

    errors: dict[str, UnreadableImage] = {}
    for path, error in zip(todo, workers.map(error_of, todo.values()), strict=True):
        hosts.check()
        if error is None:
            checked.add(path)
        else:
            errors[path] = error
    if errors and not skip:
        first, *others = errors.values()
        raise UnreadableImage(first.path, first.reason, [error.reason for error in others]) from first
    # Runs of several seeds may hold the same image.
    for images in lists if errors else ():
        for error in (errors[path] for path in images.split.paths if path in errors):
            images.note_unreadable(error)
