"""Decoded images of a split, the cache that holds them in memory, and the threads that read and decode them."""

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

# Elements made ahead of the current one, and the bytes that they may take. If more are needed to keep all threads busy,
# these may take up to `MOST_BYTES`. One is always made ahead, whatever its size.
AHEAD = 4
AHEAD_BYTES = 64 << 20
MOST_BYTES = 256 << 20
# Seconds between two checks whether the device is done.
POLL_SECONDS = 1e-3

_T = TypeVar("_T")
# The pieces of an element, which any threads call in any order, and the function that returns the finished element.
ElementWork = tuple[Sequence[Callable[[], None]], Callable[[], _T]]


class Workers(ThreadPoolExecutor):
    """A fixed `count` of threads; consumers that run at the same time share them.

    `None` takes one for each processor that this process may use.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or processors()
        super().__init__(self.count, thread_name_prefix="images")

    @classmethod
    def of(cls, workers: "Workers | int | None") -> "Workers":
        """`workers` itself, or as many new threads; `None` takes one for each processor."""
        return workers if isinstance(workers, Workers) else cls(workers)


def processors() -> int:
    """Number of processors that this process may use: by its affinity and by its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # "max": the container has no limit
        return count


class Ahead(Iterator[_T], Generic[_T]):
    """Elements in the order of their numbers, each made in pieces by shared threads ahead of its use."""

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
        """Makes nothing yet.

        Args:
          begin: returns an element's pieces, given its number; called in the consumer's thread.
          pieces, size: number of pieces and bytes of an element.
          busy: whether the consumer's device still has work, so that waiting for the next element costs nothing.
        """
        self._workers = workers
        self._numbers = iter(numbers)
        self._begin = begin
        self._busy = busy
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="batches")
        # All threads have work while the consumer holds one element and the next is ready.
        needed = 1 + -(-workers.count // max(pieces, 1))
        size = max(size, 1)
        self._depth = max(1, min(needed, MOST_BYTES // size), min(AHEAD, AHEAD_BYTES // size))
        self._elements: deque[tuple[Future[_T], list[Future[None]]]] = deque()
        self.seconds_waiting = 0.0  # in `next`, while nothing else could be done
        self._count = 0  # of calls of `next`
        self._second_call = 0.0  # its time, and what was waited before it
        self._waited_before = 0.0

    def __next__(self) -> _T:
        self._refill()
        if not self._elements:
            raise StopIteration
        if self._count == 1:
            self._second_call = time.perf_counter()
            self._waited_before = self.seconds_waiting
        self._count += 1
        element, _ = self._elements.popleft()
        self._refill()
        while self._busy() and not element.done():
            wait([element], POLL_SECONDS)
        idle = time.perf_counter()
        try:
            return element.result()
        finally:
            self.seconds_waiting += time.perf_counter() - idle

    def _refill(self) -> None:
        while len(self._elements) < self._depth and (number := next(self._numbers, None)) is not None:
            pieces, finish = self._begin(number)
            futures = [self._workers.submit(piece) for piece in pieces]
            self._elements.append((self._finisher.submit(_finished, futures, finish), futures))

    @property
    def waiting_share(self) -> float:
        """Share of the time since the second `next` that was spent waiting, between 0 and 1.

        The time before it, such as compiling the program that takes the first element, does not count.
        """
        if self._count < 2:
            return 0.0
        elapsed = max(time.perf_counter() - self._second_call, 1e-9)
        return min(1.0, (self.seconds_waiting - self._waited_before) / elapsed)

    def close(self) -> None:
        """Drops the elements made ahead."""
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
    """Waits for the pieces and returns the element. Raises the error of the first piece that failed."""
    wait(pieces)
    for piece in pieces:
        piece.result()
    return finish()


# The path of an image, and how it was resized; `None` for the whole image.
_Name = tuple[str, transforms.Resizing | None]
ALIGNMENT = 64  # of JAX's arrays on CPUs, in bytes
# Of more images none is read before a training: that would take minutes.
MOST_CHECKED = 20_000


def unset(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An uninitialised array, aligned so that JAX takes it as a CPU array without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    first = -buffer.ctypes.data % ALIGNMENT
    return buffer[first : first + size].view(dtype).reshape(shape)


def pictures(split: Split, indices: Sequence[int] | np.ndarray, resizing: transforms.Resizing) -> np.ndarray:
    """The images at `indices` as a model sees them, uint8 `[K, R, R, 3]`. Raises `UnreadableImage`."""
    subset = Images(split.subset(indices))
    images = np.zeros((len(subset), resizing.side, resizing.side, 3), np.uint8)
    for i in range(len(subset)):
        images[i] = subset.evaluated(i, resizing)
    return images


class ImageCache:
    """Images in memory, at most `limit` bytes of them, shared by all consumers of a dataset. Safe for many threads.

    An image is stored as pixels if these and the files of all images still to come (`expected`, 0 if unknown) fit, else
    as its file. A photograph's file takes a fifth of its pixels, so that each file is read once where all files fit.
    Pixels keep their full size for training: a random crop may cover the whole image, and a smaller copy would give
    other values.

    An epoch reads every image once, so images stay until they are dropped: evicting the least recently used would
    remove exactly the image needed next.
    """

    def __init__(self, limit: int, expected: int = 0) -> None:
        self.limit = limit
        self._expected = expected
        self._images: dict[_Name, np.ndarray | bytes] = {}
        self._bytes = 0
        self._files = 0
        self._file_bytes = 0
        self._lock = threading.Lock()
        self.checked: set[str] = set()  # keys that `check_readable` has decoded, whether or not the images fit

    def __len__(self) -> int:
        return len(self._images)

    def get(self, name: _Name) -> np.ndarray | bytes | None:
        """The pixels or the file of an image, or None."""
        return self._images.get(name)

    def add(self, name: _Name, encoded: bytes, picture: transforms.Picture) -> transforms.Picture:
        """Stores an image if it fits; returns it, as pixels if these are stored."""
        height, width = transforms.height_and_width(picture)
        size = 3 * height * width
        # A user's picture in memory (PPM) is there already, as levels.
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
        room = self.limit - self._bytes
        waiting = max(0, self._expected - len(self._images) - 1)
        others = waiting * (self._file_bytes + len(encoded)) // (self._files + 1)
        return size <= room and (size <= len(encoded) or size + others <= room)

    def keep_only(self, splits: Sequence[Split] = ()) -> None:
        """Drops all images but those of `splits`, which are read next."""
        names = {path for split in splits for path in split.paths}
        with self._lock:
            self._expected = len(names)
            self.checked &= names
            self._images = {name: image for name, image in self._images.items() if name[0] in names}
            self._bytes = sum(map(_size, self._images.values()))


def _size(image: np.ndarray | bytes) -> int:
    return len(image) if isinstance(image, bytes) else image.nbytes


class Images:
    """Decodes the images of a split. Safe to use from many threads.

    Without a `cache`, no image stays in memory; consumers of the same dataset may share one. `unreadable` has the
    message by path of each image that could not be read, for a caller that skips them.
    """

    def __init__(self, split: Split, cache: ImageCache | None = None) -> None:
        self.split = split
        self.labels = split.labels
        self.cache = ImageCache(0) if cache is None else cache
        self.unreadable: dict[str, str] = {}

    @classmethod
    def of(cls, split: "Split | Images") -> "Images":
        """`split` itself if it is an `Images`, else its images without a cache."""
        return split if isinstance(split, Images) else cls(split)

    def __len__(self) -> int:
        return len(self.split)

    def decoded(self, index: int) -> transforms.Picture:
        """Image `index` in its own mode, as pixels if it is plain and the cache has these. Raises `UnreadableImage`."""
        return self._load(index, None)

    def evaluated(self, index: int, resizing: transforms.Resizing) -> np.ndarray:
        """Image `index` as it is evaluated, uint8 `[R, R, 3]`. Raises as `decoded` does."""
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
        """Logs and counts an image that a caller skips; each image once."""
        if error.path not in self.unreadable:
            self.unreadable[error.path] = error.reason
            logging.warning("Skipped: %s.", error.reason)


def check_readable(lists: Sequence[Images], resizing: transforms.Resizing | None, workers: Workers) -> None:
    """Decodes images once, into their caches, so that a training names all that it cannot read before its first step.

    Over `MOST_CHECKED` images are not read: each is named when a batch needs it. `resizing` is how a training without
    augmentation keeps images; `None` keeps them whole. Raises `UnreadableImage` if it names some of the images, and the
    number of all.
    """
    places = {
        (id(images.cache), key): (images, index)
        for images in lists
        for index, key in enumerate(images.split.keys)
        if key not in images.cache.checked
    }
    if len(places) > MOST_CHECKED:
        return

    def error_of(place: tuple[Images, int]) -> UnreadableImage | None:
        images, index = place
        try:
            _ = images.decoded(index) if resizing is None else images.evaluated(index, resizing)
        except UnreadableImage as error:
            return error
        return None

    errors: list[UnreadableImage] = []
    for (images, index), error in zip(places.values(), workers.map(error_of, places.values()), strict=True):
        hosts.check()
        if error is None:
            images.cache.checked.add(images.split.keys[index])
        else:
            errors.append(error)
    if errors:
        first, *others = errors
        raise UnreadableImage(first.path, first.reason, [error.reason for error in others]) from first
