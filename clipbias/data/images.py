"""Images of a split, decoded, and what of them is kept in memory."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from clipbias.data import transforms
from clipbias.data.dataset import Split
from clipbias.errors import UnreadableImage

# An image's key, and the side that it was resized to, 0 where it was not.
_Name = tuple[str, int]
ALIGNMENT = 64  # of JAX's arrays on CPUs, in bytes


def unset(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array whose values are not set yet, at an address at which the CPU as a device takes it without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    whole = np.empty(size + ALIGNMENT, np.uint8)
    first = -whole.ctypes.data % ALIGNMENT
    return whole[first : first + size].view(dtype).reshape(shape)


def pictures(split: Split, indices: Sequence[int] | np.ndarray, image_size: int) -> np.ndarray:
    """The images at `indices` as a model sees them, uint8 `[K, R, R, 3]`. Raises `UnreadableImage`."""
    chosen = split.subset(indices)
    found = np.zeros((len(chosen), image_size, image_size, 3), np.uint8)
    for i in range(len(chosen)):
        found[i] = transforms.test_image(chosen.image(i), image_size)
    return found


class ImageCache:
    """Images in memory, up to a size: one of these for all who take images of a dataset.

    They are kept as pixels where there is room for these and the files of all others that are to come, else as their
    files, which take a fifth of a photograph's pixels: storage is asked for each once where the files fit. Pixels are
    as large as they are used: a random crop may be of all, and cut from a smaller copy it would have other values.

    An epoch touches every image once, so images stay until they are dropped: evicting the least recently used would
    throw out exactly the one needed next. Safe to use from many threads.
    """

    def __init__(self, limit: int, expected: int = 0) -> None:
        """Keeps at most `limit` bytes; `expected` is how many images are to come, 0 where that is not known."""
        self.limit, self._expected = limit, expected
        self._images: dict[_Name, np.ndarray | bytes] = {}
        self._bytes = 0
        self._seen, self._seen_bytes = 0, 0  # files
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    def get(self, name: _Name) -> np.ndarray | bytes | None:
        """The pixels or the file of an image, if they are kept."""
        return self._images.get(name)

    def add(self, name: _Name, encoded: bytes, picture: transforms.Picture) -> transforms.Picture:
        """Keeps an image if it fits; returns it, as pixels where these are kept."""
        height, width = transforms.height_and_width(picture)
        size = 3 * height * width
        if self._fits_as_pixels(size, encoded):
            picture = np.asarray(picture)  # here, for it takes as long as others would wait
        with self._lock:
            if name not in self._images:
                kept: np.ndarray | bytes = encoded
                if isinstance(picture, np.ndarray) and self._fits_as_pixels(size, encoded):
                    kept = picture
                self._seen, self._seen_bytes = self._seen + 1, self._seen_bytes + len(encoded)
                if self._bytes + _size(kept) <= self.limit:
                    self._images[name] = kept
                    self._bytes += _size(kept)
        return picture

    def _fits_as_pixels(self, size: int, encoded: bytes) -> bool:
        room = self.limit - self._bytes
        others = max(0, self._expected - len(self._images) - 1) * (self._seen_bytes + len(encoded)) // (self._seen + 1)
        return size <= room and (size <= len(encoded) or size + others <= room)

    def keep_only(self, splits: Sequence[Split] = ()) -> None:
        """Drops all images but those of some splits, which are to come."""
        names = {key for split in splits for key in split.keys}
        with self._lock:
            self._expected = len(names)
            self._images = {name: image for name, image in self._images.items() if name[0] in names}
            self._bytes = sum(map(_size, self._images.values()))


def _size(image: np.ndarray | bytes) -> int:
    return len(image) if isinstance(image, bytes) else image.nbytes


class Images:
    """Decodes the images of a split. Safe to use from many threads.

    Attributes:
      cache: Where images are kept.
      unreadable: Path to message of the images that could not be read, for a caller that skips them.
    """

    def __init__(self, split: Split, cache: ImageCache | None = None) -> None:
        """Keeps no image without a `cache`, which others may share that take images of the same dataset."""
        self.split = split
        self.labels = split.labels
        self.cache = ImageCache(0) if cache is None else cache
        self.unreadable: dict[str, str] = {}

    @classmethod
    def of(cls, split: "Split | Images", cache_bytes: int = 0) -> "Images":
        """`split` itself where it is an `Images` already, else with a cache of its own."""
        return split if isinstance(split, Images) else cls(split, ImageCache(cache_bytes, len(split)))

    def __len__(self) -> int:
        return len(self.split)

    def decoded(self, index: int) -> transforms.Picture:
        """Image `index`, its pixels where these are kept. Raises `UnreadableImage`."""
        return self._made(index, 0)

    def evaluated(self, index: int, image_size: int) -> np.ndarray:
        """Image `index` as it is evaluated, uint8 `[R, R, 3]`. Raises as `decoded` does."""
        return np.asarray(self._made(index, image_size))

    def _made(self, index: int, image_size: int) -> transforms.Picture:
        key, number = self.split.keys[index], int(image_size)
        if isinstance(image_size, transforms.WholeSide):  # other pixels than a crop's of that size
            number = -100 * number - image_size.resampling
        kept = self.cache.get((key, number))
        if isinstance(kept, np.ndarray):
            return kept
        encoded = self.split.read(index) if kept is None else kept
        picture: transforms.Picture = transforms.decode_picture(encoded, self.split.path(index))
        if image_size:
            picture = transforms.test_image(picture, image_size)
        return self.cache.add((key, number), encoded, picture) if kept is None else picture

    def note_unreadable(self, error: UnreadableImage) -> None:
        """Logs and counts an image that a caller leaves out; each once."""
        message = str(error)
        if self.unreadable.setdefault(error.path, message) is message:
            logging.warning("Skipped: %s", message)
