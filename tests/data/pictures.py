"""Small pictures and folders of them, for the data tests."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


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
