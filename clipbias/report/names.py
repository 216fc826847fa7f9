"""The names and the order in which methods and datasets are shown, and what papers report for the eleven datasets.

Reported numbers stand beside own results, never as own results. Imports of `tuning` are made when they are needed: it
brings JAX, which drawing does without.
"""

import functools
import importlib.resources
import json
from collections.abc import Iterable, Mapping
from typing import Any

from clipbias.terminal import printable

TYPE_NAMES = {"sos": "SOS", "prompt": "prompts", "words": "words", "category": "category", "dot": "“.”", "eos": "EOS"}


def base_name(method: str) -> str:
    """Of a method that was trained at several learning rates, `bias, rate 0.1`, the name without its rate."""
    return method.partition(", rate ")[0]


def method_name(method: str) -> str:
    """A method's name as readers know it; a user's own method keeps the name it was given, unless it has a label."""
    from clipbias.tuning import registry

    base, comma, rate = method.partition(", rate ")
    preset = registry.find_preset(base)
    return printable(base if preset is None else preset.label) + comma + printable(rate)


def draws(method: str) -> bool:
    """Whether a method is made from training images, by steps or at once; taken for granted of the user's own."""
    from clipbias.tuning import METHODS, make_method

    name = base_name(method)
    return name not in METHODS or make_method(name).uses_images


def method_kind(method: str) -> str | None:
    """What a method is grouped by, a value of `tuning.Kind`; `None` where it is not known."""
    from clipbias.tuning import registry

    kind = registry.find_kind(base_name(method))
    return None if kind is None else str(kind)


def ordered_methods(methods: Iterable[str]) -> tuple[str, ...]:
    """Known methods in the order of a table's rows, then the others as they come, each once."""
    from clipbias.tuning import METHODS

    places = {name: place for place, name in enumerate(METHODS)}
    return tuple(sorted(dict.fromkeys(methods), key=lambda name: places.get(base_name(name), len(places))))


def shown_shots(row: Mapping[str, Any]) -> int | str:
    """The shots of a run's row as tables show them: "all" where all images were used, 0 where none were."""
    return "all" if row.get("protocol") == "full" else row.get("shots") or 0


@functools.cache
def published() -> Mapping[str, Any]:
    """What papers report: `datasets` in their order, `averages` over these, and accuracies at `sixteen_shots`."""
    return json.loads(importlib.resources.files("clipbias").joinpath("assets/published.json").read_text("utf-8"))


@functools.cache
def _spellings() -> dict[str, str]:
    names = {name: name for name in published()["datasets"]} | published()["also_called"]
    return {_plain(spelling): name for spelling, name in names.items()}


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def dataset_name(dataset: str) -> str:
    """A dataset's name as papers spell it, `OxfordPets` for `oxford_pets`; any other keeps its own."""
    return _spellings().get(_plain(dataset)) or printable(dataset)


def are_the_eleven(datasets: Iterable[str]) -> bool:
    """Whether these are exactly the eleven datasets, however they are spelled."""
    return {dataset_name(name) for name in datasets} == set(published()["datasets"])


def ordered_datasets(datasets: Iterable[str]) -> tuple[str, ...]:
    """The eleven in the papers' order, then the others as they come, each once."""
    order = {name: position for position, name in enumerate(published()["datasets"])}
    return tuple(sorted(dict.fromkeys(datasets), key=lambda name: order.get(dataset_name(name), len(order))))
