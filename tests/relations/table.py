"""The table of relations: each row a sentence that says that two ways to a number give one number.

A row is tried on cases (`cases.py`), each of them a tuned model. It holds, or is refused by a `ClipbiasError` of one
sentence, one of those that the row names; anything else is a defect.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import clipbias
from clipbias import TunedModel
from clipbias.errors import ClipbiasError
from clipbias.prediction import Accuracy
from clipbias.training import placement
from tests.relations.cases import Case, clip_of

Check = Callable[[Case, Path], None]


@dataclasses.dataclass(frozen=True)
class Relation:
    """A row of the table.

    Attributes:
      sentence: the relation.
      check: raises `AssertionError` where a case does not hold, `ClipbiasError` where it is refused.
      over: axes of cases beside the methods: "forms", "families", "every family" or "options" (`choose.py`).
      few: a number of methods that are enough; `None` for all.
      quick, ci: likewise in these suites, where a case takes a large part of a second.
      refusals: patterns of the sentences that may refuse it.
      applies: whether it says anything of a case.
    """

    sentence: str
    check: Check
    over: tuple[str, ...] = ("forms",)
    few: int | None = None
    quick: int | None = None
    ci: int | None = None
    refusals: tuple[str, ...] = ()
    applies: Callable[[Case], bool] = lambda case: True


ROWS: list[Relation] = []


def relation(sentence: str, **options: Any) -> Callable[[Check], Check]:
    """Adds a row to the table."""

    def add(check: Check) -> Check:
        ROWS.append(Relation(sentence, check, **options))
        return check

    return add


def outcome(row: Relation, case: Case, folder: Path) -> str:
    """Tries a row on a case: "" where it holds, else the sentence that refuses it. Raises where it is neither."""
    try:
        row.check(case, folder)
    except ClipbiasError as error:
        sentence = str(error)
        is_one = sentence.endswith(".") and "\n" not in sentence and "Traceback" not in sentence
        if not is_one or not any(re.search(pattern, sentence) for pattern in row.refusals):
            raise AssertionError(f"refused: {sentence}") from error
        return sentence
    return ""


# Numbers.


def close(actual: Any, expected: Any, tolerance: float = 2e-5) -> None:
    """Equal to rounding, relative to the largest number."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{actual.shape} for {expected.shape}"
    assert np.isfinite(actual).all() and np.isfinite(expected).all(), "not finite"
    off = np.abs(actual - expected).max()
    assert off <= tolerance * max(1.0, np.abs(expected).max()), f"off by {off:.3g} of {np.abs(expected).max():.3g}"


def same(actual: Any, expected: Any) -> None:
    """Equal to the last bit: of one program on the same shapes."""
    off = np.abs(np.asarray(actual, np.float64) - np.asarray(expected, np.float64)).max()
    assert np.array_equal(actual, expected), f"off by {off:.3g} of {np.abs(expected).max():.3g}"


def same_tree(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Equal to the last bit, leaf by leaf."""
    jax.tree.map(np.testing.assert_array_equal, dict(actual), dict(expected))


# Pictures, and a model's answers to them.

COUNT = 12
BATCH = 7  # so that the second batch is filled up


def picture(number: int) -> np.ndarray:
    """A picture of a few colours with noise, of a size of its own."""
    random = np.random.default_rng(number)
    shape = (8 + number % 3, 9 - number % 2)
    colours = np.kron(random.uniform(30, 220, (2, 2, 3)), np.ones((8, 8, 1)))[: shape[0], : shape[1]]
    return np.clip(colours + random.normal(0, 15, (*shape, 3)), 0, 255).astype(np.uint8)


PICTURES = [picture(number) for number in range(COUNT)]
LABELS = np.arange(COUNT) % 3


def one_device() -> Mesh:
    return placement.single_device()


def four_devices() -> Mesh:
    return placement.make_mesh(run=1, data=4, devices=jax.devices()[:4])


def logits(model: TunedModel, pictures: Any = PICTURES, **options: Any) -> np.ndarray:
    """The logits of `predict`."""
    return model.predict(pictures, **{"batch_size": BATCH, **options}).logits


def evaluation(model: TunedModel, pictures: Any = PICTURES, labels: Any = LABELS, **options: Any) -> Accuracy:
    """The answer of `evaluate`, on one device."""
    return model.evaluate(pictures, labels, **{"batch_size": BATCH, "mesh": one_device(), **options})


@functools.cache
def answer(case: Case) -> np.ndarray:
    """The logits of a case's model, which most relations compare with."""
    return logits(case.model)


@functools.cache
def evaluated(case: Case) -> Accuracy:
    """The accuracy of a case's model."""
    return evaluation(case.model)


def same_accuracy(actual: Accuracy, expected: Accuracy, tolerance: float = 2e-3) -> None:
    """The same class for each image, and the same calibration, in percent."""
    np.testing.assert_array_equal(actual.predicted, expected.predicted)
    assert actual.accuracy == expected.accuracy
    for name, value in expected.calibration.items():
        assert abs(actual.calibration[name] - value) < tolerance, f"{name}: {actual.calibration[name]}, not {value}"


def saved(case: Case, folder: Path, **options: Any) -> TunedModel:
    """The case's model, written and read again."""
    path = folder / "saved.safetensors"
    case.model.save(path)
    return clipbias.load_adapter(path, clip_of(case.family), **options)


def on_files(folder: Path, count: int = COUNT) -> list[str]:
    """The pictures as files."""
    from PIL import Image

    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(picture(number)).save(path)
    return [str(path) for path in paths]
