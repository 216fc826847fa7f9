"""What each effect gives of a gain, how effects depend on each other, and what constants keep and their absence loses.

All numbers are differences of mean outcomes between ways to classify the same images: corners of the causal test, or
replacements. A `Sample` holds these means with their resamples, so that whatever is computed from it stays paired.

Where two ways differ in a handful of images, or in none, resamples of accuracy say too little: an effect on one image
in a thousand is not seen in 300, and an interval of no width would deny it. So the number of right answers of each way
varies by half an image more in every resample. Half an image in each cell of a table does the same for one difference
(Agresti and Min 2005). Where ten images or more differ it changes next to nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from clipbias.constants import ZERO_SHOT
from clipbias.explain.results import ByOutcome, Effects, ImageOutcomes, Replacements
from clipbias.explain.temperature import calibrate, raw_log_likelihoods
from clipbias.explain.uncertainty import (
    RESAMPLES,
    Estimate,
    cross,
    draw_counts,
    interactions,
    shapley,
    share,
    shares,
    weigh,
)

# The headline first. Units, and what they are called in sentences.
OUTCOMES = ("accuracy", "calibrated")
UNITS = {"accuracy": ("points", 1), "calibrated": ("nats", 3)}
OUTCOME_NAMES = {"accuracy": "accuracy", "calibrated": "calibrated log-likelihood"}
# Images: the standard deviation of what resamples of accuracy vary by besides.
EXTRA_DEVIATION = 0.5
REFERENCE = "reference"
TUNED = "tuned"
KEPT = "kept"
LOST = "lost"
OUTSIDE = "outside"


@dataclasses.dataclass(frozen=True)
class Sample:
    """Mean outcomes of `K` ways to classify the same images.

    Attributes:
      mean: `[K]`.
      draws: `[RESAMPLES, K]`, the same over resamples of the images.
    """

    mean: np.ndarray
    draws: np.ndarray

    def contrast(self, matrix: np.ndarray) -> "Sample":
        """Linear combinations `matrix [K, Q]` of them."""
        return Sample(self.mean @ matrix, self.draws @ matrix)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Outcomes of one model.

    Attributes:
      samples: "accuracy" in points, "calibrated" and "raw" log-likelihood in nats.
      values: the same of every image, `[n, K]`, a mean over the models.
      images: how many.
      seeds: over how many models they are averaged.
      refitted: whether temperatures were fitted in every resample.
      temperatures: `[K]`, the geometric mean of both halves' (and of all seeds').
    """

    samples: Mapping[str, Sample]
    values: Mapping[str, np.ndarray]
    images: int
    seeds: int
    refitted: bool
    temperatures: np.ndarray

    def outcomes(self, images: np.ndarray) -> ImageOutcomes:
        """Those of every image, `[n, K]`, by the images' numbers in the split."""
        return ImageOutcomes(
            images=images,
            correct=(self.values["accuracy"] > 0).astype(np.uint8),
            calibrated=self.values["calibrated"].astype(np.float32),
            log_likelihood=self.values["raw"].astype(np.float32),
        )

    def pick(self, places: Sequence[int]) -> "Measured":
        """Some of the ways to classify, in this order."""
        at = list(places)
        samples = {name: Sample(sample.mean[at], sample.draws[:, at]) for name, sample in self.samples.items()}
        values = {name: rows[:, at] for name, rows in self.values.items()}
        return dataclasses.replace(self, samples=samples, values=values, temperatures=self.temperatures[at])


def measure(
    logits: np.ndarray, labels: np.ndarray, *, seed: int = 0, refit: bool | None = None, resamples: int = RESAMPLES
) -> Measured:
    """Accuracy, calibrated and raw log-likelihood under logits `[n, K, C]` of `K` ways to classify `n` images.

    Args:
      logits: the reference's and all others', in any order.
      labels: `[n]`.
      seed: draws the resamples and the halves for calibration.
      refit: as of `calibrate`.
      resamples: how many.
    """
    labels = np.asarray(labels)
    n = len(labels)
    counts = draw_counts(n, seed=seed, resamples=resamples)
    calibrated = calibrate(logits, labels, counts, seed=seed, refit=refit)
    raw = raw_log_likelihoods(logits, labels)
    samples = {
        "accuracy": accuracies(logits, labels, seed=seed, resamples=resamples),
        "calibrated": Sample(calibrated.values.mean(0), calibrated.draws),
        "raw": Sample(raw.mean(0), weigh(counts, raw) / n),
    }
    correct = 100.0 * (np.asarray(logits).argmax(-1) == labels[:, None])
    values = {"accuracy": correct, "calibrated": calibrated.values, "raw": raw}
    temperatures = np.exp(np.log(calibrated.temperatures).mean(0))
    return Measured(samples, values, n, 1, calibrated.refitted, temperatures)


def accuracies(logits: np.ndarray, labels: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> Sample:
    """Accuracy in points of logits `[n, K, C]`, arguments as of `measure`."""
    correct = np.asarray(logits).argmax(-1) == np.asarray(labels)[:, None]
    return mean_counts(correct, unit=100.0, seed=seed, resamples=resamples)


def mean_counts(holds: np.ndarray, *, unit: float = 1.0, seed: int = 0, resamples: int = RESAMPLES) -> Sample:
    """The share of `n` images of which something holds, `holds [n, K]`, as a part of `unit`.

    Resamples vary by half an image more (see above).
    """
    n = len(holds)
    counts = draw_counts(n, seed=seed, resamples=resamples)
    values = unit * np.asarray(holds, np.float64)
    extra = unit / n * EXTRA_DEVIATION * np.random.default_rng(seed).normal(size=(len(counts), values.shape[1]))
    return Sample(values.mean(0), weigh(counts, values) / n + extra)


def over_seeds(measured: Sequence[Measured], *, seed: int = 0) -> Measured:
    """Models that differ in their seed alone, on the same images: both are resampled, crossed."""
    if len({each.images for each in measured}) > 1:
        raise ValueError("models that are crossed with images were measured on the same images")
    samples = {
        name: Sample(
            np.mean([each.samples[name].mean for each in measured], axis=0),
            cross(
                [each.samples[name].mean for each in measured],
                [each.samples[name].draws for each in measured],
                seed=seed,
            ),
        )
        for name in measured[0].samples
    }
    return Measured(
        samples=samples,
        values={name: np.mean([each.values[name] for each in measured], axis=0) for name in measured[0].values},
        images=measured[0].images,
        seeds=sum(each.seeds for each in measured),
        refitted=all(each.refitted for each in measured),
        temperatures=np.exp(np.mean([np.log(each.temperatures) for each in measured], axis=0)),
    )


def effect_contrasts(effects: Sequence[str]) -> dict[str, np.ndarray]:
    """Weights `[2^k]` of the corners, by name: "reference", "gain", each effect's Shapley value, all interactions."""
    corners = 2 ** len(effects)
    unit = np.eye(corners)
    contrasts = {REFERENCE: unit[0], "gain": unit[-1] - unit[0]}
    contrasts |= dict(zip(effects, shapley(unit).T, strict=True))
    return contrasts | interactions(unit, effects)


def summarize_effects(measured: Measured, streams: Sequence[str], effects: Sequence[str]) -> ByOutcome[Effects]:
    """By outcome: the reference, the gain, and with their shares of it effects, interactions and single mixtures.

    Args:
      measured: of the mixtures.
      streams: their names, all corners first.
      effects: of which the corners are mixtures.
    """
    contrasts = effect_contrasts(effects)
    matrix = np.zeros((len(streams), len(contrasts)))
    matrix[: 2 ** len(effects)] = np.stack(list(contrasts.values()), axis=1)
    single = np.eye(len(streams))[:, 1:] - np.eye(len(streams))[:, :1]
    matrix = np.concatenate([matrix, single], axis=1)
    together = [name for name in contrasts if " × " in name]

    def summarize(outcome: str) -> Effects:
        numbers = measured_shares(measured.samples[outcome].contrast(matrix), [*contrasts, *streams[1:]])
        return Effects(
            reference=numbers[REFERENCE],
            gain=numbers["gain"],
            effects={name: numbers[name] for name in effects},
            interactions={name: numbers[name] for name in together},
            corners={name: numbers[name] for name in streams[1:]},
        )

    return ByOutcome(accuracy=summarize("accuracy"), calibrated=summarize("calibrated"))


def summarize_replacements(measured: Measured, forms: Sequence[str]) -> ByOutcome[Replacements]:
    """By outcome: what every replacement keeps of the gain, and what of it is lost without it.

    Args:
      measured: of the forms.
      forms: "reference", "tuned", "kept:NAME" (the frozen model with a replacement added) and "lost:NAME" (the tuned
        model with it subtracted), in any order; "zero_shot" where the others have another head than CLIP's.

    Returns:
      Numbers by name; with "zero_shot" what the head alone changes. What is lost counts from the tuned model downwards.
    """
    unit = dict(zip(forms, np.eye(len(forms)), strict=True))
    contrasts = {}
    for form in forms:
        kind, _, name = form.partition(":")
        if kind == KEPT and name:
            contrasts[form] = unit[form] - unit[REFERENCE]
        elif kind == LOST and name:
            contrasts[form] = unit[TUNED] - unit[form]
    if ZERO_SHOT in forms:
        contrasts[OUTSIDE] = unit[REFERENCE] - unit[ZERO_SHOT]
    contrasts["gain"] = unit[TUNED] - unit[REFERENCE]
    matrix = np.stack(list(contrasts.values()), axis=1)

    def summarize(outcome: str) -> Replacements:
        numbers = measured_shares(measured.samples[outcome].contrast(matrix), list(contrasts))
        return Replacements(
            gain=numbers["gain"],
            kept=_of_kind(numbers, KEPT),
            lost=_of_kind(numbers, LOST),
            outside=numbers.get(OUTSIDE),
        )

    return ByOutcome(accuracy=summarize("accuracy"), calibrated=summarize("calibrated"))


def _of_kind(numbers: Mapping[str, Estimate], kind: str) -> dict[str, Estimate]:
    start = f"{kind}:"
    return {name.removeprefix(start): number for name, number in numbers.items() if name.startswith(start)}


def temperature_alone(measured: Measured, reference: int, tuned: int) -> Estimate:
    """What the reference gains in raw log-likelihood by a temperature, as a share of the tuned model's raw gain.

    Args:
      measured: of the reference and the tuned model.
      reference, tuned: their places in it.
    """
    raw = measured.samples["raw"]
    calibrated = measured.samples["calibrated"]
    mean = calibrated.mean[reference] - raw.mean[reference]
    draws = calibrated.draws[:, reference] - raw.draws[:, reference]
    gain = raw.mean[tuned] - raw.mean[reference]
    gain_draws = raw.draws[:, tuned] - raw.draws[:, reference]
    return share(mean, draws, gain, gain_draws)


def measured_shares(sample: Sample, names: Sequence[str], *, of: str = "gain") -> dict[str, Estimate]:
    """Every number by name, with its interval and its share of the one that is named so."""
    place = names.index(of)
    numbers = shares(sample.mean, sample.draws, sample.mean[place], sample.draws[:, place])
    by_name = dict(zip(names, numbers, strict=True))
    for name in {of, REFERENCE, OUTSIDE} & by_name.keys():  # these are no parts of it
        by_name[name] = dataclasses.replace(by_name[name], share=None)
    return by_name
