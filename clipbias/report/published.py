"""What papers report for the eleven datasets, to be shown beside own results and never as own results."""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Iterable, Mapping
from typing import Any

from clipbias.report.names import same_name
from clipbias.terminal import printable


@dataclasses.dataclass(frozen=True)
class Published:
    """One paper's table: where it is from, how it was made, and its numbers in percent.

    `averages[method][shots]` is the mean over the eleven datasets; `accuracies[method][dataset]` is at 16 shots.
    """

    source: str
    setting: str
    caution: str = ""
    averages: Mapping[str, Mapping[int, float]] = dataclasses.field(default_factory=dict)
    accuracies: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


@functools.cache
def _contents() -> Mapping[str, Any]:
    return json.loads(importlib.resources.files("clipbias").joinpath("assets/published.json").read_text("utf-8"))


def eleven_datasets() -> tuple[str, ...]:
    """The names of the eleven datasets, in the order in which papers list them."""
    return tuple(_contents()["datasets"])


@functools.cache
def _spellings() -> Mapping[str, str]:
    contents = _contents()
    names = {same_name(name): name for name in contents["datasets"]}
    return names | {same_name(other): name for other, name in contents["also_called"].items()}


def dataset_name(dataset: str) -> str:
    """A dataset's name as papers spell it; any other keeps its own."""
    return _spellings().get(same_name(dataset)) or printable(dataset)


def are_the_eleven(datasets: Iterable[str]) -> bool:
    """Whether these are exactly the eleven datasets, however they are spelled."""
    return {dataset_name(name) for name in datasets} == set(eleven_datasets())


def ordered_datasets(datasets: Iterable[str]) -> tuple[str, ...]:
    """The eleven in the papers' order, then the others as they come, each once."""
    order = {name: position for position, name in enumerate(eleven_datasets())}
    return tuple(sorted(dict.fromkeys(datasets), key=lambda name: order.get(dataset_name(name), len(order))))


def published_averages() -> Published:
    """Table 1 of the paper that proposes bias tuning: averages over the eleven datasets at 4, 8 and 16 shots."""
    table = _contents()["averages"]
    averages = {method: dict(zip(table["shots"], values, strict=True)) for method, values in table["accuracy"].items()}
    return Published(table["source"], table["setting"], table["caution"], averages=averages)


def published_sixteen_shots() -> tuple[Published, ...]:
    """Per-dataset accuracies at 16 shots from other papers, whose training recipes differ."""
    return tuple(
        Published(table["source"], table["setting"], accuracies=table["accuracy"])
        for table in _contents()["sixteen_shots"]
    )
