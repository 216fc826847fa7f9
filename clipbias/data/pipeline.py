"""Batches of augmented or evaluated images, the same whatever the number of workers or hosts.

What a training batch holds is a function of (seed, epoch, example index) alone: the order of an epoch and
every crop come from counter-based generators keyed on those numbers. So a run is continued at any step at no
cost, and every host computes its share of the same global batch.
"""

import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging

from clipbias import interruption
from clipbias.checks import check_choice
from clipbias.data import transforms
from clipbias.data.dataset import Split
from clipbias.data.images import Images
from clipbias.errors import ClipbiasError

DEFAULT_CACHE_BYTES = 2 << 30
# Batches made ahead of the one in use, at least.
PREFETCH = 4
# What to do with an image that cannot be read.
ON_ERROR = ("raise", "skip")

Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
    """An iterator of batches that measures how long its user waited for them.

    Outside training, which saves first, a notice to stop ends it (`interruption.Interrupted`).

    Attributes:
      count: Number of batches that are left to come at the start.
      seconds_waiting: Time spent inside `next`, in total.
      skipped: Number of unreadable images left out so far (evaluation with `on_error="skip"`).
    """

    def __init__(
        self,
        make: Callable[[int], Batch],
        numbers: range,
        images: Images,
        *,
        shape: tuple[int, ...],
        workers: int | None = None,
        training: bool = False,
    ) -> None:
        """Makes the batches of these numbers ahead of their use, with `images` of this shape in each."""
        self._batches = _read_ahead(make, numbers, workers, PREFETCH)
        self._training = training
        self._images = images
        self._shape = shape
        self.count = len(numbers)
        self._started: float | None = None
        self.seconds_waiting = 0.0

    def __next__(self) -> Batch:
        if not self._training:
            interruption.check()
        began = time.perf_counter()
        if self._started is None:
            self._started = began
        try:
            return next(self._batches)
        finally:
            self.seconds_waiting += time.perf_counter() - began

    def blank(self) -> Batch:
        """A batch of black images that stands for one that cannot be made."""
        rows = self._shape[0]
        pixels = np.zeros(self._shape, np.uint8)
        return {"images": pixels, "labels": np.zeros(rows, np.int32), "mask": np.ones(rows, bool)}

    @property
    def waiting_share(self) -> float:
        """Share of the time since the first `next` that was spent waiting for data, between 0 and 1."""
        if self._started is None:
            return 0.0
        return self.seconds_waiting / max(time.perf_counter() - self._started, 1e-9)

    @property
    def skipped(self) -> int:
        return len(self._images.unreadable)


def default_workers() -> int:
    """Decoding threads: one per core that this process may use, at most 16."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of `size` examples in one epoch, int64: a permutation keyed on (seed, epoch)."""
    return _generator(seed, epoch, stream=0).permutation(size)


def augmentation_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one example's augmentation, keyed on (seed, epoch, example index)."""
    return _generator(seed, epoch, stream=1 + index)


def steps_per_epoch(examples: int, batch_size: int, *, keep_last: bool = False) -> int:
    """Batches in an epoch: the incomplete last one is dropped, unless it is the only one or `keep_last` is set."""
    if examples == 0:
        raise ClipbiasError("there is no training image; check the data folder and the class selection.")
    return -(-examples // batch_size) if keep_last else max(1, examples // batch_size)


def train_batches(
    split: Split | Images,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    epochs: int,
    start_step: int = 0,
    shard: tuple[int, int] = (0, 1),
    keep_last: bool = False,
    crop: float | None = transforms.SCALE[0],
    workers: int | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> Batches:
    """Shuffled, augmented batches of all epochs, from step `start_step` on.

    Args:
      split: The training images; an `Images` shares its decoded cache between calls.
      image_size: R, the side of the model's input.
      batch_size: B over all hosts. A set smaller than this gives one batch of its own size per epoch.
      seed: Keys the order and the augmentations.
      epochs: Passes over the data.
      start_step: Steps already done, counted over all epochs; continuing costs nothing.
      shard: (index, count) of this host; it gets the rows `index * ceil(B / count)` and following of every batch. What
        the last ones lack is filled up and masked.
      keep_last: Whether an epoch ends with its incomplete batch, which is filled up and masked.
      crop: Smallest share of an image that a crop covers; None prepares images as they are evaluated.
      workers: Decoding threads; None takes one per core. Does not change the batches.
      cache_bytes: Decoded images are kept up to this size; ignored where `split` is an `Images`.

    Returns:
      An iterator of {"images": uint8 [B, R, R, 3], "labels": int32 [B], "mask": bool [B]}, with B this host's share.
    """
    images = Images.of(split, cache_bytes=cache_bytes)
    size = len(images)
    steps = steps_per_epoch(size, batch_size, keep_last=keep_last)
    batch_size = min(batch_size, size)
    index, count = shard
    local = -(-batch_size // count)
    order = functools.lru_cache(maxsize=4)(lambda epoch: epoch_order(seed, epoch, size))

    def batch(number: int) -> Batch:
        epoch, step = divmod(number, steps)
        own = order(epoch)[step * batch_size : (step + 1) * batch_size][index * local : (index + 1) * local]
        return _augmented(images, own, local, image_size, (seed, epoch), crop)

    numbers, shape = range(start_step, epochs * steps), (local, image_size, image_size, 3)
    return Batches(batch, numbers, images, shape=shape, workers=workers, training=True)


def pass_batches(
    images: Images,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    passes: range,
    crop: float,
    shard: tuple[int, int] = (0, 1),
) -> Batches:
    """Whole passes over the training images in list order, each augmented as epoch `pass` of `train_batches` is.

    Batches and arguments are those of `train_batches`; the last one of a pass is filled up and masked.
    """
    steps = steps_per_epoch(len(images), batch_size, keep_last=True)
    index, count = shard
    local = batch_size // count

    def batch(number: int) -> Batch:
        turn, step = divmod(number, steps)
        first = step * batch_size + index * local
        chosen = np.arange(len(images))[first : first + local]
        return _augmented(images, chosen, local, image_size, (seed, passes[turn]), crop)

    return Batches(batch, range(len(passes) * steps), images, shape=(local, image_size, image_size, 3))


def _augmented(
    images: Images, chosen: np.ndarray, rows: int, image_size: int, keys: tuple[int, int], crop: float | None
) -> Batch:
    """A batch of so many rows: the augmented images `chosen`, and masked rows after them."""
    pixels = np.zeros((rows, image_size, image_size, 3), np.uint8)
    labels, mask = np.zeros(rows, np.int32), np.zeros(rows, bool)
    for row, example in enumerate(chosen.tolist()):
        image = images.decoded(example)
        if crop is None:
            pixels[row] = transforms.test_image(image, image_size)
        else:
            pixels[row] = transforms.train_image(image, augmentation_rng(*keys, example), image_size, crop)
        labels[row], mask[row] = images.labels[example], True
    return {"images": pixels, "labels": labels, "mask": mask}


def test_batches(
    split: Split | Images,
    *,
    image_size: int,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    on_error: str = "raise",
    crops: int = 0,
    mixed: bool = False,
    workers: int | None = None,
    cache_bytes: int = 0,
) -> Batches:
    """Every image once, in list order; the last batch is filled up and masked.

    Args:
      split: The images to evaluate.
      image_size: R, the side of the model's input.
      batch_size: B over all hosts, a multiple of their number.
      shard: (index, count) of this host; it gets the rows `index * B / count` and following of every batch.
      on_error: "raise" stops at an unreadable image; "skip" masks it out, logs it and counts it in `skipped`.
      crops: Random crops of each image behind it, V (`transforms.test_views`): images are then [B, 1 + V, R, R, 3].
      mixed: Whether AugMix mixes each crop with distortions of it; images are then float32.
      workers: Decoding threads; None takes one per core.
      cache_bytes: Decoded images are kept up to this size; ignored where `split` is an `Images`.

    Returns:
      An iterator of {"images": uint8 [B, R, R, 3], "labels": int32 [B], "mask": bool [B]}; a masked row is
      black and has label 0.
    """
    check_choice("on_image_error", on_error, ON_ERROR)
    images = Images.of(split, cache_bytes=cache_bytes)
    index, count = shard
    if batch_size % count:
        raise ClipbiasError(f"batch size {batch_size} is not a multiple of the number of hosts, {count}.")
    local = batch_size // count

    shape = (local, *((1 + crops,) if crops else ()), image_size, image_size, 3)

    def batch(number: int) -> Batch:
        first = number * batch_size + index * local
        pixels = np.zeros(shape, np.float32 if mixed else np.uint8)
        labels, mask = np.zeros(local, np.int32), np.zeros(local, bool)
        for row, example in enumerate(range(first, min(first + local, len(images)))):
            try:
                image = images.decoded(example)
                if crops:
                    pixels[row] = transforms.test_views(image, image_size, crops, mixed=mixed)
                else:
                    pixels[row] = transforms.test_image(image, image_size)
            except ClipbiasError as error:
                if on_error == "raise":
                    raise
                images.note_unreadable(example, error)
                continue
            labels[row], mask[row] = images.labels[example], True
        return {"images": pixels, "labels": labels, "mask": mask}

    return Batches(batch, range(-(-len(images) // batch_size)), images, shape=shape, workers=workers)


def without_unreadable(images: Images, *, workers: int | None = None) -> Images:
    """`images` without those that cannot be decoded; how many were left out is logged.

    Decodes every image once, filling the cache; meant for few-shot sets. What is left keeps the cache.
    """

    def probe(index: int) -> np.int64:
        try:
            images.decoded(index)
        except ClipbiasError as error:
            images.note_unreadable(index, error)
            return np.int64(-1)
        return np.int64(index)

    found = _read_ahead(probe, range(len(images)), workers, 64)
    kept = [int(index) for index in found if index >= 0]
    if len(kept) == len(images):
        return images
    logging.warning("Left out %d unreadable of %d training images.", len(images) - len(kept), len(images))
    return images.subset(kept)


def _generator(seed: int, epoch: int, *, stream: int) -> np.random.Generator:
    # Philox is a keyed counter: the stream in the counter's last word keeps the streams of one key 2^192 blocks apart.
    key = np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _read_ahead(make: Callable[[int], Any], numbers: range, workers: int | None, elements: int) -> Iterator[Any]:
    """What `make` returns for each number, in their order, made ahead by threads."""
    import grain  # not before images are read: it brings a quarter of a second and tens of megabytes

    # A thread makes a whole batch: handing over single images would cost the consumer, which shares Python's lock with
    # the decoding threads, about half a millisecond each.
    threads = workers or default_workers()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, elements))
    return iter(grain.MapDataset.range(numbers.start, numbers.stop).map(make).to_iter_dataset(options))
