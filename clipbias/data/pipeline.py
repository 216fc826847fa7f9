"""Batches of augmented or evaluated images, equal for every number of workers and hosts.

A training batch depends only on seed, epoch and example indices: orders and crops come from counter-based generators
keyed on them. So a run continues at any step without cost, and every host computes its share of a global batch.
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

# Batch size outside of training.
BATCH_SIZE = 100
# Images that a thread prepares in a call. With single images, a thread would wait about half a millisecond for Python's
# lock at each.
PIECE = 16

Batch = dict[str, np.ndarray]

ON_ERROR = ("raise", "skip")
OnImageError = Annotated[str, Choices(ON_ERROR)]
WorkerCount = Annotated[int, Range(1, 1024)]  # more threads only wait for one another


@dataclasses.dataclass(frozen=True)
class ImageReading:
    """Settings of reading images."""

    on_image_error: OnImageError = setting(
        "raise", 'Images that cannot be read: "raise" an error, or "skip" (and count) them.'
    )
    workers: WorkerCount | None = setting(
        None, "Threads that read and decode images, shared by parallel runs. Default: one for each processor."
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """Batches of a list of images, in pieces that threads fill in any order."""

    images: Images
    numbers: range  # of the batches
    shape: tuple[int, ...]  # of a batch's images, `[B, R, R, 3]` or with views `[B, 1 + V, R, R, 3]`
    # Maps a batch number and a row to the image's pixels, or `None` for padding, and its label.
    row: Callable[[int, int], tuple[np.ndarray | None, int]]
    dtype: DTypeLike = np.uint8
    skip: bool = False  # whether unreadable images are masked and counted (`Images.unreadable`), not raised

    @property
    def pieces(self) -> list[range]:
        """Rows of a batch, by the calls that fill them."""
        rows = self.shape[0]
        return [range(first, min(first + PIECE, rows)) for first in range(0, rows, PIECE)]

    def empty(self, *leading: int, more: int = 0) -> Batch:
        """Returns a batch of unset rows, with leading axes and `more` rows at the end."""
        rows = self.shape[0] + more
        return {
            "images": unset((*leading, rows, *self.shape[1:]), self.dtype),
            "labels": np.empty((*leading, rows), np.int32),
            "mask": np.empty((*leading, rows), bool),
        }

    def fill(self, batch: Mapping[str, np.ndarray], number: int, rows: range) -> None:
        """Fills rows of batch `number`; a row without an image is black, has label 0 and is masked."""
        for row in rows:
            try:
                pixels, label = self.row(number, row)
            # The row is masked and stays: with a shorter batch, the program would be compiled again and steps would
            # shift.
            except UnreadableImage as error:
                if not self.skip:
                    raise
                self.images.note_unreadable(error)
                pixels, label = None, 0
            batch["images"][row] = 0 if pixels is None else pixels
            batch["labels"][row] = label
            batch["mask"][row] = pixels is not None

    def begin(self, number: int) -> tuple[list[Callable[[], None]], Callable[[], Batch]]:
        """Returns functions that fill the pieces of a batch, and a function that returns it, for `Ahead`."""
        batch = self.empty()
        return [functools.partial(self.fill, batch, number, rows) for rows in self.pieces], lambda: batch

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class Batches(Ahead[Batch]):
    """Iterator over batches that are prepared ahead from the first `next` on. A notice to stop ends it."""

    def __init__(self, source: Source, workers: Workers | int | None) -> None:
        workers = workers if isinstance(workers, Workers) else Workers(workers)
        super().__init__(workers, source.numbers, source.begin, pieces=len(source.pieces), size=source.nbytes)
        self.source = source

    def __next__(self) -> Batch:
        # A pass over a test set may take long, so that a notice to stop is looked for at each batch.
        hosts.check()
        return super().__next__()


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Returns the order of `size` examples in an epoch, int64: a permutation keyed on (seed, epoch)."""
    return _generator(seed, epoch, stream=0).permutation(size)


def augmentation_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Returns the generator of an example's augmentation, keyed on (seed, epoch, example index)."""
    return _generator(seed, epoch, stream=1 + index)


def steps_per_epoch(examples: int, batch_size: int, *, keep_last: bool = False) -> int:
    """Counts batches of an epoch: the incomplete last one is dropped, unless it is the only one or with `keep_last`."""
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
    """Returns shuffled, augmented batches of all epochs, from step `start_step` on, for a shard of hosts.

    `batch_size` B is over all hosts; a smaller set gives a batch of its size per epoch. `shard` (index, count) gets the
    rows from `index * ceil(B / count)` on. With `keep_last` an epoch ends with its incomplete batch, padded and masked.
    A crop covers at least the share `crop`; `None` for images as they are evaluated. `on_error` "skip" masks and counts
    unreadable images, and the number of steps stays.
    """
    size = len(images)
    # Counted with the batch size that was asked for: a set smaller than that is one batch per epoch.
    steps = steps_per_epoch(size, batch_size, keep_last=keep_last)
    batch_size = min(batch_size, size)
    index, count = shard
    # Rounded up, so that all hosts have arrays of one shape; the last rows of the last hosts are padding.
    local = -(-batch_size // count)
    # Batches that are prepared ahead reach into the next epoch, so that two orders are in use at once.
    order = functools.lru_cache(maxsize=4)(lambda epoch: epoch_order(seed, epoch, size))

    def row(number: int, row: int) -> tuple[np.ndarray | None, int]:
        # A batch's number alone gives its epoch and rows: nothing is remembered between batches.
        epoch, step = divmod(number, steps)
        row_of_all = index * local + row
        position = step * batch_size + row_of_all
        if row_of_all >= batch_size or position >= size:
            return None, 0
        return _augmented(images, int(order(epoch)[position]), resizing, (seed, epoch), crop)

    shape = (local, resizing.side, resizing.side, 3)
    return Source(images, range(start_step, epochs * steps), shape, row, skip=_skips(on_error))


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
    """Returns passes over the training images in list order, each augmented as an epoch of `train_source`."""
    # The last batch of a pass is padded and masked, so that all batches have one shape.
    steps = steps_per_epoch(len(images), batch_size, keep_last=True)
    index, count = shard
    local = batch_size // count

    def row(number: int, row: int) -> tuple[np.ndarray | None, int]:
        index_of_pass, step = divmod(number, steps)
        example = step * batch_size + index * local + row
        if example >= len(images):
            return None, 0
        return _augmented(images, example, resizing, (seed, passes[index_of_pass]), crop)

    shape = (local, resizing.side, resizing.side, 3)
    return Batches(Source(images, range(len(passes) * steps), shape, row, skip=_skips(on_error)), workers)


def _augmented(
    images: Images, example: int, resizing: transforms.Resizing, keys: tuple[int, int], crop: float | None
) -> tuple[np.ndarray, int]:
    """Returns an image as training sees it, and its label; `keys` are seed and epoch."""
    # Keyed on the example, not on its place in the batch: hosts and batch sizes do not change its crop.
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
    """Returns batches with every image once, in list order; the last batch is padded and masked.

    A batch is {"images": uint8 [B, R, R, 3], "labels": int32 [B], "mask": bool [B]}; a masked row is black, of label 0.
    `V` random `crops` may follow each image (`transforms.test_views`): `[B, 1 + V, R, R, 3]`, float32 if they are
    `mixed` with distortions of them. `B` counts all hosts and is a multiple of their number.
    """
    images = split if isinstance(split, Images) else Images(split)
    index, count = shard
    # Test sets are reported exactly, so that a mask per host, of equal sizes, must cover the batch.
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
    return Batches(Source(images, numbers, shape, row, np.float32 if mixed else np.uint8, _skips(on_error)), workers)


def _skips(on_error: str) -> bool:
    check_choice("on_image_error", on_error, ON_ERROR)
    return on_error == "skip"


def _generator(seed: int, epoch: int, *, stream: int) -> np.random.Generator:
    # Philox is a keyed counter: with the stream in the counter's last word, streams of a key are 2^192 blocks apart.
    key = np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], dtype=np.uint64)))
