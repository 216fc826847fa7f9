"""Decoded images, and how many of them are kept in memory."""

import threading
from collections.abc import Iterable, Sequence

import numpy as np
from absl import logging

from clipbias.data import transforms
from clipbias.data.dataset import Split
from clipbias.errors import ClipbiasError


def pictures(split: Split, indices: Sequence[int] | np.ndarray, image_size: int) -> np.ndarray:
    """The images at `indices` as a model sees them, uint8 `[K, R, R, 3]`. Raises `ClipbiasError` for one unreadable."""
    chosen = split.subset(indices)
    found = np.zeros((len(chosen), image_size, image_size, 3), np.uint8)
    for i in range(len(chosen)):
        found[i] = transforms.test_image(chosen.picture(i), image_size)
    return found


class Decoded:
    """Decoded images in memory, up to a size, by their keys: one of these for all who take images of a dataset.

    An epoch touches every image once, so images stay until they are dropped: evicting the least recently used would
    throw out exactly the one needed next. Safe to use from many threads.
    """

    def __init__(self, limit: int) -> None:
        """Keeps at most `limit` bytes."""
        self.limit = limit
        self._images: dict[str, np.ndarray] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    def get(self, key: str) -> np.ndarray | None:
        """The image of this key, if it is kept."""
        return self._images.get(key)

    def fits(self, size: int) -> bool:
        """Whether there is room for so many bytes."""
        return self._bytes + size <= self.limit

    def add(self, key: str, image: np.ndarray) -> None:
        """Keeps an image if it fits."""
        with self._lock:
            if key not in self._images and self.fits(image.nbytes):
                self._images[key] = image
                self._bytes += image.nbytes

    def keep_only(self, keys: Iterable[str]) -> None:
        """Drops all images but those of these keys."""
        if not self._images:  # the names of a large split are not looked at for nothing
            return
        kept = self._images.keys() & keys
        with self._lock:
            self._images = {key: image for key, image in self._images.items() if key in kept}
            self._bytes = sum(image.nbytes for image in self._images.values())


class Images:
    """Decodes the images of a split. Safe to use from many threads.

    Attributes:
      cache: Where decoded images are kept.
      unreadable: Key to message of the images found unreadable by a caller that skips them.
    """

    def __init__(self, split: Split, cache: Decoded | None = None) -> None:
        """Keeps no decoded image without a `cache`, which others may share that take images of the same dataset."""
        self.split = split
        self.labels = split.labels
        self.cache = Decoded(0) if cache is None else cache
        self.unreadable: dict[str, str] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, split: "Split | Images", cache_bytes: int = 0) -> "Images":
        """`split` itself where it is an `Images` already, else with a cache of its own."""
        return split if isinstance(split, Images) else cls(split, Decoded(cache_bytes))

    def __len__(self) -> int:
        return len(self.split)

    def decoded(self, index: int) -> transforms.Picture:
        """Image `index`, its pixels where these are kept. Raises `ClipbiasError` naming an unreadable file."""
        key = self.split.keys[index]
        kept = self.cache.get(key)
        if kept is not None:
            return kept
        picture = transforms.decode_picture(self.split.read(index), key)
        if not self.cache.fits(3 * picture.width * picture.height):
            return picture
        pixels = np.asarray(picture)
        self.cache.add(key, pixels)
        return pixels

    def note_unreadable(self, index: int, error: ClipbiasError) -> None:
        """Logs and counts an image that a caller leaves out; each once."""
        key = self.split.keys[index]
        with self._lock:
            known = key in self.unreadable
            self.unreadable[key] = str(error)
        if not known:
            logging.warning("Skipped: %s", error)

    def subset(self, indices: Sequence[int]) -> "Images":
        """The images at `indices`, with the same cache."""
        chosen = Images(self.split.subset(indices), self.cache)
        chosen.unreadable = dict(self.unreadable)
        return chosen
