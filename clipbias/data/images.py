"""Decoded images of a split, and the cache that holds them in memory."""

import math
import threading
from collections.abc import Sequence

import numpy as np
from absl import logging
from numpy.typing import DTypeLike
from PIL import Image

from clipbias import hosts
from clipbias.data import transforms
from clipbias.data.dataset import Split
from clipbias.data.workers import Workers
from clipbias.errors import UnreadableImage

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
    """Images in memory, up to a size, shared by all consumers of a dataset.

    An image is stored as pixels if these and the files of all images still to come fit, else as its file. A
    photograph's file takes a fifth of its pixels, so that each file is read once where all files fit. Pixels keep their
    full size for training: a random crop may cover the whole image, and a smaller copy would give other values.

    An epoch reads every image once, so images stay until they are dropped: evicting the least recently used would
    remove exactly the image needed next. Safe to use from many threads.

    Attributes:
      checked: keys of images that `check_readable` has decoded; all are here, whether or not they fit.
    """

    def __init__(self, limit: int, expected: int = 0) -> None:
        """Holds at most `limit` bytes; `expected` is the number of images to come, 0 if unknown."""
        self.limit = limit
        self._expected = expected
        self._images: dict[_Name, np.ndarray | bytes] = {}
        self._bytes = 0
        self._files = 0
        self._file_bytes = 0
        self._lock = threading.Lock()
        self.checked: set[str] = set()

    def __len__(self) -> int:
        return len(self._images)

    def get(self, name: _Name) -> np.ndarray | bytes | None:
        """The pixels or the file of an image, or None."""
        return self._images.get(name)

    def add(self, name: _Name, encoded: bytes, picture: transforms.Picture) -> transforms.Picture:
        """Stores an image if it fits; returns it, as pixels if these are stored."""
        height, width = transforms.height_and_width(picture)
        size = 3 * height * width
        if isinstance(picture, Image.Image) and self._fits_as_pixels(size, encoded) and transforms.is_plain(picture):
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

    Attributes:
      cache: The images in memory.
      unreadable: Message by path of each image that could not be read, for a caller that skips them.
    """

    def __init__(self, split: Split, cache: ImageCache | None = None) -> None:
        """Without a `cache`, no image stays in memory; consumers of the same dataset may share one."""
        self.split = split
        self.labels = split.labels
        self.cache = ImageCache(0) if cache is None else cache
        self.unreadable: dict[str, str] = {}

    @classmethod
    def of(cls, split: "Split | Images", cache_bytes: int = 0) -> "Images":
        """`split` itself if it is an `Images`, else its images with a new cache."""
        return split if isinstance(split, Images) else cls(split, ImageCache(cache_bytes, len(split)))

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

    Over `MOST_CHECKED` images are not read: each is named when a batch needs it.

    Args:
      lists: the images of the training.
      resizing: how a training without augmentation keeps images; `None` keeps them whole.
      workers: the threads.

    Raises:
      UnreadableImage: it names some of the images, and the number of all.
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
