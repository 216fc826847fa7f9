"""Decoded images, kept in memory while they fit a budget."""

import threading
from collections.abc import Sequence

import numpy as np
from absl import logging

from clipbias.data import transforms
from clipbias.data.dataset import Split
from clipbias.errors import ClipbiasError


def pictures(split: Split, indices: Sequence[int] | np.ndarray, image_size: int) -> np.ndarray:
    """The images at `indices` as a model sees them, uint8 `[K, R, R, 3]`. Raises `ClipbiasError` for one unreadable."""
    chosen = split.subset(indices)
    found = np.zeros((len(chosen), image_size, image_size, 3), np.uint8)
    for i, key in enumerate(chosen.keys):
        found[i] = transforms.test_image(transforms.decode(chosen.read(i), key), image_size)
    return found


class Images:
    """Decodes the images of a split and keeps the first ones that fit `cache_bytes`.

    An epoch touches every image once, so images stay as long as the object does: evicting the least recently
    used would throw out exactly the one needed next. Safe to use from many threads.

    Attributes:
      unreadable: Key to message of the images found unreadable by a caller that skips them.
    """

    def __init__(self, split: Split, *, cache_bytes: int) -> None:
        self.split = split
        self.labels = split.labels
        self.unreadable: dict[str, str] = {}
        self._cache_bytes = cache_bytes
        self._kept: dict[int, np.ndarray] = {}
        self._kept_bytes = 0
        self._lock = threading.Lock()

    @classmethod
    def of(cls, split: "Split | Images", *, cache_bytes: int) -> "Images":
        """`split` itself where it is an `Images` already."""
        return split if isinstance(split, Images) else cls(split, cache_bytes=cache_bytes)

    def __len__(self) -> int:
        return len(self.split)

    @property
    def cached(self) -> int:
        """Number of decoded images in memory."""
        return len(self._kept)

    def decoded(self, index: int) -> np.ndarray:
        """Image `index` as uint8 [h, w, 3]. Raises `ClipbiasError` naming an unreadable file."""
        image = self._kept.get(index)
        if image is None:
            image = transforms.decode(self.split.read(index), self.split.keys[index])
            with self._lock:
                if index not in self._kept and self._kept_bytes + image.nbytes <= self._cache_bytes:
                    self._kept[index] = image
                    self._kept_bytes += image.nbytes
        return image

    def note_unreadable(self, index: int, error: ClipbiasError) -> None:
        """Logs and counts an image that a caller leaves out; each once."""
        key = self.split.keys[index]
        with self._lock:
            known = key in self.unreadable
            self.unreadable[key] = str(error)
        if not known:
            logging.warning("Skipped: %s", error)

    def subset(self, indices: Sequence[int]) -> "Images":
        """The images at `indices`, with what is already decoded of them."""
        chosen = Images(self.split.subset(indices), cache_bytes=self._cache_bytes)
        chosen.unreadable = dict(self.unreadable)
        for position, index in enumerate(indices):
            if index in self._kept:
                chosen._kept[position] = self._kept[index]
                chosen._kept_bytes += self._kept[index].nbytes
        return chosen
