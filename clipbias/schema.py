"""What the metadata in files holds: adapters, results, the state of a work folder. One schema for all who read them.

Files come from other people and other versions. Each is compared with its schema where it is read, so that whoever uses
it need not ask again. A field that is not listed here is kept, as plain JSON. A listed one may be absent or null unless
it is `Required`.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, Required, TypedDict, TypeVar

from clipbias.checks import Count, Positive, Range, check_value
from clipbias.errors import ClipbiasError

_Size = Annotated[int, Range(0)]
_Seconds = Annotated[float, Range(0)]
_Percent = Annotated[float, Range(0, 100)]
_Share = Annotated[float, Range(0, 1)]
# One value, or one for each of several seeds or models.
_Losses = float | list[float | None]


class RecipeFacts(TypedDict, total=False):
    """What a method's recipe does otherwise than the common one; what is not listed is shown as it is."""

    batch_size: _Size


class TriedFacts(TypedDict, total=False):
    """A learning rate that was tried, its mean accuracy and its mean cross-entropy on validation images."""

    learning_rate: Required[_Seconds]
    accuracy: _Percent
    loss: float


# Named as in the file, `for` being a word of Python's.
ChoiceFacts = TypedDict("ChoiceFacts", {"for": str, "cells": Count, "tried": list[TriedFacts]}, total=False)


class RateFacts(TypedDict, total=False):
    """The learning rate of a method, on one dataset and with so many shots where these are given."""

    method: Required[str]
    learning_rate: Required[_Seconds]
    dataset: str
    shots: Count
    tried: list[TriedFacts]


class RatesFile(TypedDict, total=False):
    """`rates.json`: what was chosen, and where it comes from."""

    rates: Required[list[RateFacts]]
    chosen: dict[str, Any]


class _Cell(TypedDict):
    """What names a cell of a grid, and how it ended."""

    protocol: str
    method: str
    dataset: str
    shots: Count
    seed: Count
    config_hash: str
    status: str


class _Values(TypedDict, total=False):
    """What came of a cell: `accuracy` in percent, and `accuracies` the same by what it was measured on."""

    image_hash: str
    error: str
    model: str
    dtype: str
    learning_rate: _Seconds
    recipe: RecipeFacts
    choice: ChoiceFacts
    validation_accuracy: _Percent
    validation_correct: Count
    validation_images: Count
    validation_loss: float
    loss: float
    steps: Count
    accuracy: _Percent
    accuracies: dict[str, float]
    calibration: dict[str, Any]
    calibrations: dict[str, dict[str, Any]]
    correct: Count
    images: Count
    tested_images: dict[str, Count]
    predictions: dict[str, str]
    images_of: str
    skipped_images: Count
    skipped_training_images: Count
    parameters: _Size
    parameters_vision: _Size
    parameters_text: _Size
    parameters_shared: _Size
    seconds: _Seconds
    training_seconds: _Seconds
    seconds_per_image: _Seconds
    waiting_share: _Share


class Row(_Cell, _Values):
    """A line of a grid's results."""


class Facts(_Values, total=False):
    """The notes of an adapter, and `result.json`: the same, as far as it is known."""

    protocol: str
    method: str
    dataset: str
    shots: Count
    seed: Count
    config_hash: str
    status: str


class Header(TypedDict):
    """The metadata of an adapter's file."""

    format: Positive
    method: str
    options: dict[str, Any]
    class_names: list[str]
    template: str
    base: str
    base_fingerprint: str
    notes: Facts
    descriptions: NotRequired[dict[str, list[str]]]


class State(TypedDict, total=False):
    """`state.json` of a work folder."""

    state: str
    started: str
    seconds: _Seconds
    error: str


class Git(TypedDict, total=False):
    """The commit of the source, and whether it was changed since."""

    commit: str
    changed: bool


class Environment(TypedDict, total=False):
    """`environment.json` of a work folder."""

    command: list[str]
    python: str
    platform: str
    packages: dict[str, str]
    devices: list[str]
    processes: Count
    git: Git
    model: dict[str, Any]


class Settings(TypedDict, total=False):
    """`config.json` of a work folder, as far as one field tells of the run; the rest is shown as it is."""

    model: str
    mesh: dict[str, Any]
    workdir: str
    method: str
    methods: list[str]
    dataset: str
    datasets: list[str]
    shots: Count | list[Count]
    seed: Count
    seeds: list[Count]
    learning_rate: float
    learning_rates: list[float]
    choose: str


class InterpretedAdapter(TypedDict, total=False):
    """An adapter that was interpreted; what its notes do not tell is null."""

    method: str
    dataset: str
    shots: Count
    seed: Count
    accuracy: _Percent
    parameters: dict[str, _Size]


class Interpretation(TypedDict, total=False):
    """`interpretation.json`, as far as lists of runs tell of it."""

    adapters: list[InterpretedAdapter]


class ExplainedModel(TypedDict, total=False):
    """A model of a study."""

    method: str
    accuracy: _Percent
    parameters: dict[str, _Size]


class ExplainedDataset(TypedDict, total=False):
    """The dataset of a study."""

    name: str


class StudyFacts(TypedDict, total=False):
    """`results.json` of a study, as far as lists of runs tell of it."""

    models: list[ExplainedModel]
    dataset: ExplainedDataset
    seconds: _Seconds


class Metrics(TypedDict, total=False):
    """A line of `metrics.jsonl`."""

    step: Required[Count]
    steps: Count
    loss: _Losses
    accuracy: _Losses
    learning_rate: _Losses
    seconds: _Seconds


Record = TypeVar("Record", bound=Mapping[str, Any])


def checked(values: Any, kind: type[Record], where: str) -> Record:
    """A record from a file, as it is.

    Args:
      values: from the file.
      kind: what it should hold.
      where: the file, for the message.

    Raises:
      ClipbiasError: a field is of another type or out of range, a required one is absent, or one that is not listed
        holds what is no JSON, such as a number that is not finite.
    """
    try:
        check_value("it", values, kind)
        json.dumps(values, allow_nan=False)
    except ClipbiasError as error:
        raise ClipbiasError(f"{where} is damaged: {error}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ClipbiasError(f"{where} is damaged: it holds what is no JSON ({error}).") from error
    return values


def fitted(values: Any, kind: type[Record]) -> Record | None:
    """A record, or `None` where `checked` would refuse it."""
    try:
        return checked(values, kind, "")
    except ClipbiasError:
        return None
