"""What ± is in every table: one standard error.

Two things are drawn at random: the test images, and what goes with a seed (training images, the learnables' start,
their order). Each gives a variance of a mean over seeds, and the standard error is the root of their sum:

    ±² = p (1 − p) / images + s² / seeds

All seeds are tested on the same images, so more seeds reduce the second part alone. What varies from image to image
*and* from seed to seed is in both parts, so that errors are rather too large than too small.
"""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.io import check_file, read_bytes

# Half the width of a 95 % interval, in standard errors.
WITHIN = 1.96
# From so many standard errors on a difference is seen in 80 % of studies like it.
DETECTABLE = 1.959964 + 0.841621
EXPLAINED = (
    "± is one standard error: of the test images, √(p (1 − p) / images), and of the seeds, s / √n, added in squares."
)


def harmonic_error(base: float, new: float, errors: tuple[float, float]) -> float:
    """The error of the harmonic mean `2 b n / (b + n)` of independent `b` and `n`, to first order."""
    if base + new <= 0:
        return 0.0
    slopes = 2 * (new / (base + new)) ** 2, 2 * (base / (base + new)) ** 2
    return math.hypot(*(slope * error for slope, error in zip(slopes, errors, strict=True)))


def difference_error(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """The standard error of the difference of two methods' accuracies on one dataset; NaN where it is not known.

    Args:
      first, second: lines of `frames.Sweep.cells`: `images_error`, `seeds_error`, and `correct`, the share of seeds
        that were right on each test image, float `[n]`. With `correct` of both, test images are compared in pairs;
        else they count as if each method had images of its own, which is too much.
    """
    seeds = math.hypot(first["seeds_error"], second["seeds_error"])
    if first["correct"] is None or second["correct"] is None:
        return math.hypot(seeds, first["images_error"], second["images_error"])
    each = first["correct"] - second["correct"]
    return math.hypot(seeds, 100 * float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else 0.0)


class Answers:
    """Which test images a run was right on, from the predictions in a work folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._images: dict[str, np.ndarray] = {}  # by dataset: all methods must be tested on the same

    def correct(self, dataset: str, names: Sequence[str | None], accuracies: Sequence[float]) -> np.ndarray | None:
        """The share of some runs that were right on each image, float `[n]`.

        Args:
          dataset: what the runs were tested on.
          names: their files without `.npz`.
          accuracies: what their rows say, in percent.

        Returns:
          `None` where a file is missing or damaged, has other images, or does not agree with its row.
        """
        answers = []
        for name, accuracy in zip(names, accuracies, strict=True):
            right = self._read(dataset, name)
            if right is None or abs(100 * right.mean() - accuracy) > 1e-6:
                return None
            answers.append(right)
        return np.mean(answers, axis=0) if answers else None

    def _read(self, dataset: str, name: object) -> np.ndarray | None:
        if self._folder is None or not isinstance(name, str) or not name or Path(name).name != name:
            return None
        path = self._folder / f"{name}.npz"
        try:
            check_file(path)
            with np.load(BytesIO(read_bytes(path)), allow_pickle=False) as stored:
                predicted = stored["predicted"]
                read = predicted >= 0
                images = stored["images"][read]
                right = (stored["labels"] == predicted)[read]
        except (ClipbiasError, Exception):  # a damaged archive raises nearly anything
            return None
        known = self._images.setdefault(dataset, images)
        return right if len(right) and np.array_equal(known, images) else None
