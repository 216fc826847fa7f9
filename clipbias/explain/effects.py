"""Outcomes of several ways to classify the same images, and differences and shares of them with their intervals.

A `Sample` holds mean outcomes with their resamples (`uncertainty`), so that whatever is computed from it stays paired.

*Calibrated log-likelihood* decides. A temperature moves no decision, but the raw log-likelihood books it as a gain. So
the logits of each way to classify are divided by a temperature of its own, fitted by maximum likelihood (Guo et al.
2017) on one half of the images and used on the other, and the other way round. Halves are drawn by a seed and have
half of every class. A half that a way gets wholly right has no temperature of its own: its likelihood rises down to the
lower bound, where a single mistake in the other half would cost hundreds of nats. It takes the temperature of all
images. Temperatures are fixed in the resamples, whose intervals do not hold their spread.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from clipbias.explain.results import ImageOutcomes
from clipbias.explain.uncertainty import cross, resample
from clipbias.training.calibration import COLDEST, fit_temperatures, log_likelihoods

# Their names, units, and digits.
OUTCOMES = ("accuracy", "calibrated")
UNITS = {"accuracy": ("points", 1), "calibrated": ("nats", 3)}


@dataclasses.dataclass(frozen=True)
class Sample:
    """Mean outcomes of `K` ways to classify the same images."""

    mean: np.ndarray  # `[K]`
    draws: np.ndarray  # `[RESAMPLES, K]`, the same over resamples of the images

    def contrast(self, matrix: np.ndarray) -> "Sample":
        """Linear combinations `matrix [K, Q]` of them."""
        return Sample(self.mean @ matrix, self.draws @ matrix)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Outcomes of one model, or of several that differ in their seed alone."""

    samples: Mapping[str, Sample]  # "accuracy" in points, "calibrated" log-likelihood in nats
    values: Mapping[str, np.ndarray]  # the same of every image, `[n, K]`, a mean over the models
    images: int  # how many

    def outcomes(self, images: np.ndarray) -> ImageOutcomes:
        """Those of every image, `[n, K]`, by the images' numbers in the split."""
        return ImageOutcomes(
            images=images,
            correct=(self.values["accuracy"] > 0).astype(np.uint8),
            calibrated=self.values["calibrated"].astype(np.float32),
        )


def measure(logits: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> Measured:
    """Accuracy and calibrated log-likelihood under logits `[n, K, C]` of `K` ways to classify `n` images.

    Args:
      logits: in any order.
      labels: `[n]`.
      seed: draws the resamples and the halves for calibration.
    """
    labels = np.asarray(labels)
    values = {
        "accuracy": 100.0 * (np.asarray(logits).argmax(-1) == labels[:, None]),
        "calibrated": calibrate(logits, labels, seed=seed)[0],
    }
    samples = {name: Sample(rows.mean(0), resample(rows, seed=seed)) for name, rows in values.items()}
    return Measured(samples, values, len(labels))


def halves(labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Which images are in the second half, bool `[n]`: half of every class, up to one image, drawn by the seed."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(np.asarray(labels)[shuffled], kind="stable")]
    second = np.zeros(len(labels), bool)
    second[by_class[1::2]] = True
    return second


def calibrate(logits: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods `[n, K]` of the true class in nats, each image with the temperature of the other half.

    Args:
      logits: `[n, K, C]`.
      labels: `[n]`.
      seed: draws the halves.

    Returns:
      These, and the temperatures `[2, K]` of the first half and of the second.
    """
    labels = np.asarray(labels)
    second = halves(labels, seed=seed)
    temperatures = np.stack([fit_temperatures(logits[part], labels[part]) for part in (~second, second)])
    lowest = temperatures == COLDEST
    if lowest.any():
        temperatures = np.where(lowest, fit_temperatures(logits, labels), temperatures)
    log_scales = -np.log(np.where(second[:, None], temperatures[0], temperatures[1]))
    return log_likelihoods(logits, labels, log_scales[:, :, None])[:, :, 0, 0], temperatures


def over_seeds(measured: Sequence[Measured], *, seed: int = 0) -> Measured:
    """Models that differ in their seed alone, on the same images: both are resampled, crossed."""
    if len({each.images for each in measured}) > 1:
        raise ValueError("models that are crossed with images were measured on the same images")
    samples = {}
    for name in measured[0].samples:
        of_seeds = [each.samples[name] for each in measured]
        means = [sample.mean for sample in of_seeds]
        draws = cross(means, [sample.draws for sample in of_seeds], seed=seed)
        samples[name] = Sample(np.mean(means, axis=0), draws)
    values = {name: np.mean([each.values[name] for each in measured], axis=0) for name in measured[0].values}
    return Measured(samples, values, measured[0].images)
