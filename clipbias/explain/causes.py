"""Which effect decided what became of an image: Shapley values of the calibrated log-likelihood, image by image."""

import dataclasses

import numpy as np

from clipbias.explain.results import CausalTest, StudyResults
from clipbias.explain.uncertainty import shapley


@dataclasses.dataclass(frozen=True)
class Cause:
    """What tuning changed of an image, and by which effect.

    Attributes:
      change: a number of `CHANGES`; -1 for an image that was not read.
      effects: Shapley values by name; empty where the image was not in the causal test.
      decided: the effect that did most for a decision that became right, most against one that became wrong, and
        otherwise most in the direction in which the calibrated log-likelihood went.
    """

    change: int
    effects: dict[str, float]
    decided: str | None


@dataclasses.dataclass(frozen=True)
class Flips:
    """The images whose decision flipped in one direction.

    Attributes:
      name: "became right" or "became wrong".
      count: how many.
      decided: by effect, of which of them it did most in that direction, bool `[count]`.
      alone: by effect, of which of them it alone flips the decision as well.
    """

    name: str
    count: int
    decided: dict[str, np.ndarray]
    alone: dict[str, np.ndarray]


def image_effects(test: CausalTest) -> np.ndarray:
    """Shapley values `[n, k]` of the effects in both towers together."""
    return shapley(test.outcomes.calibrated[:, test.towers.index("both")])


def causes(results: StudyResults, key: str, numbers: np.ndarray) -> list[Cause]:
    """What tuning changed of images by number, in their order."""
    test = results.causal_test(key)
    changes = results.predictions.changes(key)[numbers].tolist()
    if test is None:
        return [Cause(change, {}, None) for change in changes]
    values = image_effects(test)
    rows = {int(number): row for row, number in enumerate(test.outcomes.images)}
    return [
        _cause(change, test.effects, values[rows[number]]) if number in rows else Cause(change, {}, None)
        for number, change in zip(numbers.tolist(), changes, strict=True)
    ]


def _cause(change: int, effects: tuple[str, ...], values: np.ndarray) -> Cause:
    directions = {0: 1.0, 1: -1.0}
    direction = directions.get(change, np.sign(values.sum()))
    decided = effects[int(np.argmax(direction * values))]
    return Cause(change, dict(zip(effects, values.tolist(), strict=True)), decided)


def flips(test: CausalTest) -> tuple[Flips, Flips]:
    """The images that became right and those that became wrong, from the frozen model to the tuned one."""
    right = test.outcomes.correct[:, test.towers.index("both")].astype(bool)
    values = image_effects(test)
    return (
        _flips("became right", test.effects, right, values, to=True),
        _flips("became wrong", test.effects, right, -values, to=False),
    )


def _flips(name: str, effects: tuple[str, ...], right: np.ndarray, values: np.ndarray, *, to: bool) -> Flips:
    flipped = (right[:, 0] != to) & (right[:, -1] == to)
    decided = np.argmax(values[flipped], axis=1)
    alone = {effect: right[:, 2 ** (len(effects) - 1 - place)] for place, effect in enumerate(effects)}
    return Flips(
        name=name,
        count=int(flipped.sum()),
        decided={effect: decided == place for place, effect in enumerate(effects)},
        alone={effect: outcome[flipped] == to for effect, outcome in alone.items()},
    )
