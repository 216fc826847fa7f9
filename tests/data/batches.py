"""Training batches of one process."""

import dataclasses
from typing import Any

from clipbias.data import Split, transforms
from clipbias.data.images import Images, Workers
from clipbias.data.pipeline import DEFAULT_CACHE_BYTES, Batches, train_source


def counted(split: Split, reads: list[str]) -> Split:
    """A split that notes the name of each image that is read."""
    read = lambda index: reads.append(split.keys[index]) or split.read(index)  # noqa: E731
    return dataclasses.replace(split, read=read)


def train_batches(
    split: Split | Images,
    *,
    workers: Workers | int | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    **options: Any,
) -> Batches:
    """The batches of `train_source`, from the first step on unless `options` say otherwise."""
    defaults = {"start_step": 0, "shard": (0, 1), "keep_last": False, "crop": transforms.SCALE[0]}
    return Batches(train_source(Images.of(split, cache_bytes), **(defaults | options)), workers)
