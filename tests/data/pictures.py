"""Small pictures, files of them, and batches, for the data tests."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipbias.data import Split, transforms
from clipbias.data.images import ImageCache, Images, Workers
from clipbias.data.pipeline import Batches, train_source


def picture(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    """A random smooth-and-noisy uint8 RGB image [h, w, 3]."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    """The image's bytes in a file format of Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind)
    return buffer.getvalue()


def write(path: Path, seed: int = 0, height: int = 20, width: int = 30) -> Path:
    """Writes a picture; JPEG or PNG by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(seed, height, width), "PNG" if path.suffix == ".png" else "JPEG"))
    return path


def counted(split: Split, reads: list[str]) -> Split:
    """A split that notes the name of each image that is read."""
    read = lambda index: reads.append(split.keys[index]) or split.read(index)  # noqa: E731
    return dataclasses.replace(split, read=read)


def train_batches(
    split: Split | Images, *, workers: Workers | int | None = None, cache_bytes: int = 2 << 30, **options: Any
) -> Batches:
    """The batches of `train_source`, from the first step on unless `options` say otherwise."""
    defaults = {"start_step": 0, "shard": (0, 1), "keep_last": False, "crop": transforms.SCALE[0]}
    images = split if isinstance(split, Images) else Images(split, ImageCache(cache_bytes, len(split)))
    return Batches(train_source(images, **(defaults | options)), workers)
