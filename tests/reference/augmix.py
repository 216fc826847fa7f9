"""AugMix's operations on uint8 images `[R, R, 3]` and their mixture in NumPy, by their definitions.

Bilinear resampling takes the position of a pixel's middle, repeats the border between it and the first pixels' middles,
is black outside, and drops fractions of a level, as Pillow does.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel over 0 to 255."""
    stretched = image.copy()
    for channel in range(3):
        values = image[..., channel].astype(float)
        low = values.min()
        high = values.max()
        if high > low:
            scale = 255 / (high - low)
            stretched[..., channel] = np.clip(np.trunc(values * scale - low * scale), 0, 255)
    return stretched


def equalize(image: np.ndarray) -> np.ndarray:
    """Spreads each channel so that equally many pixels have each level, those of the highest left out of the count."""
    equalized = image.copy()
    for channel in range(3):
        counts = np.bincount(image[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
        if step:
            below = np.concatenate([[0], np.cumsum(counts)[:-1]])
            equalized[..., channel] = np.minimum((step // 2 + below) // step, 255)[image[..., channel]]
    return equalized


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Turns levels from the threshold on around."""
    return np.where(image < threshold, image, 255 - image)


def affine(image: np.ndarray, matrix: Sequence[float]) -> np.ndarray:
    """The output's pixel at `(x, y)` is the image at `(a x + b y + c, d x + e y + f)`."""
    size = len(image)
    x, y = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    a, b, c, d, e, f = matrix
    column, row = a * x + b * y + c, d * x + e * y + f
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    left = np.floor(column - 0.5).astype(int)
    top = np.floor(row - 0.5).astype(int)
    right_share = (column - 0.5 - left)[..., None]
    lower_share = (row - 0.5 - top)[..., None]

    def between(rows: np.ndarray) -> np.ndarray:
        rows = rows.clip(0, size - 1)
        first, second = (image[rows, (left + step).clip(0, size - 1)].astype(float) for step in (0, 1))
        return first + (second - first) * right_share

    upper, lower = between(top), between(top + 1)
    return np.where(inside[..., None], np.trunc(upper + (lower - upper) * lower_share), 0).astype(np.uint8)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turns the image about its middle, anticlockwise."""
    angle = np.deg2rad(degrees)
    middle = len(image) / 2
    cos = np.cos(angle)
    sin = np.sin(angle)
    return affine(image, (cos, -sin, middle - cos * middle + sin * middle, sin, cos, middle - (sin + cos) * middle))


def shift(image: np.ndarray, level: float) -> int:
    """Whole pixels of a translation."""
    return int(level * len(image) / 30)


# By name, of an image, a level and a sign.
OPERATIONS: Mapping[str, Callable[[np.ndarray, float, int], np.ndarray]] = {
    "autocontrast": lambda image, level, sign: autocontrast(image),
    "equalize": lambda image, level, sign: equalize(image),
    "posterize": lambda image, level, sign: image // 16 * 16,
    "rotate": lambda image, level, sign: rotate(image, sign * int(3 * level)),
    "solarize": lambda image, level, sign: solarize(image, 256 - int(25.6 * level)),
    "shear_x": lambda image, level, sign: affine(image, (1, sign * 0.03 * level, 0, 0, 1, 0)),
    "shear_y": lambda image, level, sign: affine(image, (1, 0, 0, sign * 0.03 * level, 1, 0)),
    "translate_x": lambda image, level, sign: affine(image, (1, 0, sign * shift(image, level), 0, 1, 0)),
    "translate_y": lambda image, level, sign: affine(image, (1, 0, 0, 0, 1, sign * shift(image, level))),
}


def mixture(image: np.ndarray, chains: Sequence[np.ndarray], shares: np.ndarray, weight: float) -> np.ndarray:
    """`m x + (1 - m) Σ w_i x_i`."""
    blend = sum(share * chain.astype(float) for share, chain in zip(shares, chains, strict=True))
    return weight * image + (1 - weight) * blend
