"""The causal test, the test of constants, and the verdict that they allow."""

import dataclasses
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from clipbias.explain.results.endpoint import EndpointCell
from clipbias.explain.results.facts import Missing
from clipbias.explain.uncertainty import Estimate

EFFECTS = ("attention", "scale", "values")  # of the causal test
T = TypeVar("T")
Test = TypeVar("Test")
Summary = TypeVar("Summary")


@dataclasses.dataclass(frozen=True)
class ByOutcome(Generic[T]):
    """The same in both outcomes, the headline first: accuracy in points, calibrated log-likelihood in nats."""

    accuracy: T
    calibrated: T

    def __getitem__(self, outcome: str) -> T:
        return {"accuracy": self.accuracy, "calibrated": self.calibrated}[outcome]

    def items(self) -> tuple[tuple[str, T], ...]:
        return (("accuracy", self.accuracy), ("calibrated", self.calibrated))


@dataclasses.dataclass(frozen=True)
class ImageOutcomes:
    """What became of each of `n` images in `K` ways to classify: `[n, K]`, of the causal test `[n, towers, K]`.

    Attributes:
      images: numbers of the examples in the split, `[n]`.
      correct: uint8.
      calibrated: log-likelihood of the true class in nats, each way's logits divided by a temperature of its own that
        was fitted on other images.
      log_likelihood: the same without temperatures.
    """

    images: np.ndarray
    correct: np.ndarray
    calibrated: np.ndarray
    log_likelihood: np.ndarray


@dataclasses.dataclass(frozen=True)
class Effects:
    """What a gain is made of in one outcome and tower; all but the first two with their shares of the gain.

    Attributes:
      reference: the outcome of the frozen model.
      effects: Shapley values by effect.
      corners: each mixture against the reference.
    """

    reference: Estimate
    gain: Estimate
    effects: dict[str, Estimate]
    interactions: dict[str, Estimate]
    corners: dict[str, Estimate]

    @property
    def attention_alone(self) -> Estimate:
        """The tuned run's attention, all else of the reference: what attention suffices for."""
        return self._corner("P", "R")

    @property
    def tokens_alone(self) -> Estimate:
        """The reference's attention, all else of the tuned run: what this lacks of the gain needs attention."""
        return self._corner("R", "P")

    def _corner(self, attention: str, others: str) -> Estimate:
        return self.corners[attention + others * (len(self.effects) - 1)]


@dataclasses.dataclass(frozen=True)
class Levels:
    """What a tuned run adds to a tower's tokens, in steps from nothing to all of it, in one outcome (`levels`).

    Attributes:
      all: the tuned run's values against none, at its attention and scale.
      steps: parts of it with their shares: "constant", the mean over training images against nothing; "mismatch",
        another image's values against the mean; "image", its own against another's. Of texts "constant", the mean over
        classes, and "class", each one's own against it.
      beyond: all of it but the constant.
      fitted: the best constant against nothing; `None` where none was fitted, as of texts.
      shapley: the steps' parts of the Shapley value of values in this tower.
    """

    all: Estimate
    steps: dict[str, Estimate]
    beyond: Estimate
    fitted: Estimate | None
    shapley: dict[str, Estimate]


@dataclasses.dataclass(frozen=True)
class LevelOutcomes:
    """What became of images `[n, K]` under the corners of a tower, the other one held, and under levels between them.

    Attributes:
      streams: names, a letter for each effect; for values "R" is nothing, "M" the mean, a digit a draw of another
        image, and "P" its own.
    """

    streams: tuple[str, ...]
    outcomes: ImageOutcomes


@dataclasses.dataclass(frozen=True)
class EffectSummary:
    """Effects by tower, and what a temperature gives.

    Attributes:
      towers: "both", "vision" and "text", or "both" alone where a model changes one tower.
      temperature_alone: what the reference gains in raw log-likelihood by a temperature; share of the raw gain.
      temperatures: by mixture.
      refitted: whether every resample has temperatures of its own.
      levels: by tower, where they were measured.
    """

    towers: dict[str, ByOutcome[Effects]]
    temperature_alone: Estimate
    temperatures: dict[str, float]
    refitted: bool
    levels: dict[str, ByOutcome[Levels]]

    @property
    def added(self) -> tuple[str, ByOutcome[Levels]] | None:
        """ "vision" with what is added to image tokens; of a method that changes texts alone "text" with that."""
        return next(iter(self.levels.items()), None)


@dataclasses.dataclass(frozen=True)
class GroupEffects:
    """The effects over some of the images."""

    images: int
    summary: EffectSummary


@dataclasses.dataclass(frozen=True)
class RandomPrompts:
    """The causal test of random prompts of the trained norms, a control."""

    outcomes: ImageOutcomes
    summary: EffectSummary


@dataclasses.dataclass(frozen=True)
class CausalTest:
    """The causal test of one model (`factorial`).

    Attributes:
      effects: those in play.
      streams: `K` mixtures of the two runs, from the reference to the tuned model.
      levels: by tower that the model changes.
      both_right: over images that both models get right; `None` where they are too few.
      random: `None` of a model without prompts, or where the control was left out.
    """

    effects: tuple[str, ...]
    towers: tuple[str, ...]
    streams: tuple[str, ...]
    outcomes: ImageOutcomes
    summary: EffectSummary
    levels: dict[str, LevelOutcomes | Missing]
    both_right: GroupEffects | None
    random: RandomPrompts | None


@dataclasses.dataclass(frozen=True)
class Replacements:
    """What constants keep of a gain, and what is lost without them, in one outcome; by form or control.

    Attributes:
      outside: what a head of its own changes besides, where there is one.
    """

    gain: Estimate
    kept: dict[str, Estimate]
    lost: dict[str, Estimate]
    outside: Estimate | None


@dataclasses.dataclass(frozen=True)
class EquivalentBias:
    """The mean of what a method's blocks add in one tower, in its two forms, float32.

    Attributes:
      vector: `[L, D]`, over all input tokens.
      kind: `[L, 2, D]`: of the pooled token (`[cls]`, EOS), then of all other input tokens. `[L, 1, D]` where a pooling
        head reads all tokens.
    """

    vector: np.ndarray
    kind: np.ndarray

    def constants(self, form: str) -> np.ndarray:
        """What each kind of token gets after each block, `[L, 2, D]`, as a "vector" or by "kind"."""
        return self.kind if form == "kind" else np.repeat(self.vector[:, None], self.kind.shape[1], axis=1)

    def stored(self, form: str) -> int:
        """How many numbers a form holds."""
        return self.kind.size if form == "kind" else self.vector.size


@dataclasses.dataclass(frozen=True)
class ConstantTest:
    """What the mean of what a model's blocks add keeps of its gain (`intervention_classifier`).

    Attributes:
      forms: ways to classify: "reference", "kept:NAME" (the frozen model with it added after every block), "lost:NAME"
        (the tuned model with it subtracted) and "tuned"; NAME is a form of the mean or a control.
      biases: by the towers that it changes.
      training_images: on which it was measured.
      stored: numbers that each form holds.
    """

    forms: tuple[str, ...]
    outcomes: ImageOutcomes
    biases: dict[str, EquivalentBias]
    training_images: int
    stored: dict[str, int]
    summary: ByOutcome[Replacements]


@dataclasses.dataclass(frozen=True)
class SeedGroup(Generic[Summary]):
    """Models that differ in their seed alone, over seeds and images crossed."""

    models: tuple[str, ...]
    summary: Summary


@dataclasses.dataclass(frozen=True)
class ModelTests(Generic[Test, Summary]):
    """A test of every model, and of all seeds of a method together."""

    models: dict[str, Test | Missing]
    seeds: tuple[SeedGroup[Summary], ...]

    def test(self, key: str) -> Test | None:
        """Of one model, where there is one."""
        test = self.models.get(key)
        return None if isinstance(test, Missing) else test

    def summary_of_seeds(self, keys: Sequence[str]) -> Summary | None:
        """Of several seeds together, where there is one."""
        return next((group.summary for group in self.seeds if group.models == tuple(keys)), None)


@dataclasses.dataclass(frozen=True)
class CausalTests(ModelTests[CausalTest, EffectSummary]):
    """The causal test of every model, and the confirmatory conclusions about methods with slots."""

    cells: tuple[EndpointCell, ...] = ()


ConstantTests = ModelTests[ConstantTest, ByOutcome[Replacements]]


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """One method: its only adapter, or all its seeds together, over seeds and images crossed.

    Attributes:
      label: its name, with the number of seeds where there are several.
      name: the same without that number.
      method: as the registry names it.
      models: keys of its adapters.
      learns_constant: whether the method is a constant itself, of which nothing is to be judged.
      accuracy, standard_error: in percent, means over seeds; the error is binomial.
      gain: in accuracy, over the frozen model with the text that training starts from; without a causal test over
        zero-shot.
      start: accuracy of that frozen model in percent, where it is not zero-shot's.
    """

    label: str
    name: str
    method: str
    models: tuple[str, ...]
    prompts: bool
    learns_constant: bool
    accuracy: float
    standard_error: float
    gain: Estimate | None
    start: float | None


@dataclasses.dataclass(frozen=True)
class Reason:
    """A reason for the answer: what it is about, and its numbers in words."""

    about: str
    text: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a report says first.

    Attributes:
      headline: the answer in one sentence.
      reasons: with their numbers.
      approach: how it was found.
      certainty: how sure it is, and what it says nothing about.
    """

    headline: str
    reasons: tuple[Reason, ...]
    approach: str
    certainty: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the numbers of a model, or of all seeds of a method together, allow to say (`verdict`).

    Attributes:
      missing: why there is no causal test.
      images: how many were tested.
      through: by outcome "attention", "tokens", "either", "together", "undecided" or "no gain" (`conclusions`).
      mean: by outcome what the mean has of all that is added to image tokens: "more than half", "less than half",
        "undecided" or "no gain"; of a method that changes texts alone, to text tokens.
      sentences: the most important first.
      conclusion: the first of them.
    """

    label: str
    models: tuple[str, ...]
    missing: str | None
    images: int
    through: ByOutcome[str] | None
    mean: ByOutcome[str] | None
    sentences: tuple[str, ...]
    conclusion: str
