"""Batches of augmented or evaluated images, the same whatever the number of workers or hosts.

What a training batch holds is a function of (seed, epoch, example index) alone: the order of an epoch and
every crop come from counter-based generators keyed on those numbers. So a run continues at any step at no
cost, and every host computes its share of the same global batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Annotated

import numpy as np
from numpy.typing import DTypeLike

from clipbias import hosts
from clipbias.checks import Choices, Range, check_choice
from clipbias.data import transforms
from clipbias.data.dataset import Split
from clipbias.data.images import Ahead, Images, Workers, unset
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.settings import setting

# Images in a batch of everything but training.
BATCH_SIZE = 100
# Images that a thread makes in one call. With single images, threads would wait about half a millisecond each for
# Python's lock.
PIECE = 16

Batch = dict[str, np.ndarray]

ON_ERROR = ("raise", "skip")
OnImageError = Annotated[str, Choices(ON_ERROR)]
WorkerCount = Annotated[int, Range(1, 1024)]  # threads beyond so many only wait for one another


@dataclasses.dataclass(frozen=True)
class ImageReading:
    """How images are read."""

    on_image_error: OnImageError = setting(
        "raise", 'What to do with an image that cannot be read: "raise" or "skip" (and count).'
    )
    workers: WorkerCount | None = setting(
        None,
        "Threads that read and decode images, which all runs side by side share; None takes one for each processor.",
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """Makes the batches of a list of images, each in pieces that any threads may make in any order.

    Attributes:
      numbers: Numbers of the batches.
      shape: Shape of a batch's images, `[B, R, R, 3]` or with views `[B, 1 + V, R, R, 3]`.
      row: By batch number and row: the pixels of the image, or None if the row has none, and its label.
      skip: Whether images that cannot be read are masked and counted (`Images.unreadable`), not raised.
    """

    images: Images
    numbers: range
    shape: tuple[int, ...]
    row: Callable[[int, int], tuple[np.ndarray | None, int]]
    dtype: DTypeLike = np.uint8
    skip: bool = False

    @property
    def pieces(self) -> list[range]:
        """Rows of a batch that a thread makes at once."""
        rows = self.shape[0]
        return [range(first, min(first + PIECE, rows)) for first in range(0, rows, PIECE)]

    def empty(self, *leading: int, more: int = 0) -> Batch:
        """A batch with unset rows; with leading axes, and `more` rows at the end."""
        rows = self.shape[0] + more
        return {
            "images": unset((*leading, rows, *self.shape[1:]), self.dtype),
            "labels": np.empty((*leading, rows), np.int32),
            "mask": np.empty((*leading, rows), bool),
        }

    def fill(self, batch: Mapping[str, np.ndarray], number: int, rows: range) -> None:
        """Makes some rows of batch `number`; a row without an image is black, has label 0 and is masked."""
        for row in rows:
            try:
                pixels, label = self.row(number, row)
            except UnreadableImage as error:
                if not self.skip:
                    raise
                self.images.note_unreadable(error)
                pixels = None
                label = 0
            batch["images"][row] = 0 if pixels is None else pixels
            batch["labels"][row] = label
            batch["mask"][row] = pixels is not None

    def begin(self, number: int) -> tuple[list[Callable[[], None]], Callable[[], Batch]]:
        """The functions that make the pieces of a batch, and the function that returns it, for `Ahead`."""
        batch = self.empty()
        return [functools.partial(self.fill, batch, number, rows) for rows in self.pieces], lambda: batch

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class Batches(Ahead[Batch]):
    """An iterator of batches that measures how long its consumer waits. A notice to stop ends it.

    It starts with the first `next`; batches are then made ahead of use.
    """

    def __init__(self, source: Source, workers: Workers | int | None) -> None:
        pieces = len(source.pieces)
        super().__init__(Workers.of(workers), source.numbers, source.begin, pieces=pieces, size=source.nbytes)
        self.source = source

    def __next__(self) -> Batch:
        hosts.check()
        return super().__next__()


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


def train_source(
    images: Images,
    *,
    resizing: transforms.Resizing,
    batch_size: int,
    seed: int,
    epochs: int,
    start_step: int,
    shard: tuple[int, int],
    keep_last: bool,
    crop: float | None,
    on_error: str = "raise",
) -> Source:
    """Shuffled, augmented batches of all epochs, from step `start_step` on.

    Args:
      batch_size: B over all hosts. A set smaller than this gives one batch of its own size per epoch.
      seed: Keys the order and the augmentations.
      start_step: Steps already done, counted over all epochs; continuing costs nothing.
      shard: (index, count) of this host; it gets the rows from `index * ceil(B / count)` on of every batch. The last
        hosts' missing rows are padded and masked.
      keep_last: Whether an epoch ends with its incomplete batch, which is padded and masked.
      crop: Smallest share of an image that a crop covers; None prepares images as they are evaluated.
      on_error: "raise" stops at an unreadable image; "skip" masks it, logs it and counts it in `Images.unreadable`. The
        number of steps stays the same.
    """
    size = len(images)
    steps = steps_per_epoch(size, batch_size, keep_last=keep_last)
    batch_size = min(batch_size, size)
    index, count = shard
    local = -(-batch_size // count)
    order = functools.lru_cache(maxsize=4)(lambda epoch: epoch_order(seed, epoch, size))

    def row(number: int, row: int) -> tuple[np.ndarray | None, int]:
        epoch, step = divmod(number, steps)
        row_of_all = index * local + row
        position = step * batch_size + row_of_all
        if row_of_all >= batch_size or position >= size:
            return None, 0
        return _augmented(images, int(order(epoch)[position]), resizing, (seed, epoch), crop)

    numbers = range(start_step, epochs * steps)
    shape = (local, resizing.side, resizing.side, 3)
    return Source(images, numbers, shape, row, skip=_skips(on_error))


def pass_batches(
    images: Images,
    *,
    resizing: transforms.Resizing,
    batch_size: int,
    seed: int,
    passes: range,
    crop: float,
    shard: tuple[int, int] = (0, 1),
    on_error: str = "raise",
    workers: Workers | int | None = None,
) -> Batches:
    """Whole passes over the training images in list order, each augmented as epoch `pass` of `train_source` is.

    Arguments are those of `train_source`; the last batch of a pass is padded and masked.
    """
    steps = steps_per_epoch(len(images), batch_size, keep_last=True)
    index, count = shard
    local = batch_size // count

    def row(number: int, row: int) -> tuple[np.ndarray | None, int]:
        index_of_pass, step = divmod(number, steps)
        example = step * batch_size + index * local + row
        if example >= len(images):
            return None, 0
        return _augmented(images, example, resizing, (seed, passes[index_of_pass]), crop)

    numbers = range(len(passes) * steps)
    shape = (local, resizing.side, resizing.side, 3)
    return Batches(Source(images, numbers, shape, row, skip=_skips(on_error)), workers)


def _augmented(
    images: Images, example: int, resizing: transforms.Resizing, keys: tuple[int, int], crop: float | None
) -> tuple[np.ndarray, int]:
    """An image as training sees it, and its label; `keys` are seed and epoch."""
    label = int(images.labels[example])
    if crop is None:
        return images.evaluated(example, resizing), label
    seed, epoch = keys
    rng = augmentation_rng(seed, epoch, example)
    return transforms.train_image(images.decoded(example), rng, resizing, crop), label


def test_batches(
    split: Split | Images,
    *,
    resizing: transforms.Resizing,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    on_error: str = "raise",
    crops: int = 0,
    mixed: bool = False,
    workers: Workers | int | None = None,
) -> Batches:
    """Every image once, in list order; the last batch is padded and masked.

    Args:
      batch_size: B over all hosts, a multiple of their number.
      shard: (index, count) of this host; it gets the rows `index * B / count` and following of every batch.
      on_error: As for `train_source`.
      crops: V random crops that follow each image (`transforms.test_views`); images are then [B, 1 + V, R, R, 3].
      mixed: Whether AugMix mixes each crop with distortions of it; images are then float32.
      workers: Decoding threads, which others may share, or their number; None takes one per processor.

    Returns:
      An iterator of {"images": uint8 [B, R, R, 3], "labels": int32 [B], "mask": bool [B]}; a masked row is
      black and has label 0.
    """
    images = Images.of(split)
    index, count = shard
    if batch_size % count:
        raise ClipbiasError(f"batch size {batch_size} is not a multiple of the number of hosts, {count}.")
    local = batch_size // count
    views = (1 + crops,) if crops else ()

    def row(number: int, row: int) -> tuple[np.ndarray | None, int]:
        example = number * batch_size + index * local + row
        if example >= len(images):
            return None, 0
        image = images.decoded(example)
        if crops:
            pixels = transforms.test_views(image, resizing, crops, mixed=mixed)
        else:
            pixels = transforms.test_image(image, resizing)
        return pixels, int(images.labels[example])

    numbers = range(-(-len(images) // batch_size))
    shape = (local, *views, resizing.side, resizing.side, 3)
    dtype = np.float32 if mixed else np.uint8
    return Batches(Source(images, numbers, shape, row, dtype, _skips(on_error)), workers)


def _skips(on_error: str) -> bool:
    check_choice("on_image_error", on_error, ON_ERROR)
    return on_error == "skip"


def _generator(seed: int, epoch: int, *, stream: int) -> np.random.Generator:
    # Philox is a keyed counter: the stream in the counter's last word keeps the streams of one key 2^192 blocks apart.
    key = np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
