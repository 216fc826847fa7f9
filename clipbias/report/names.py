"""Names and order of methods and datasets, and published numbers, which stand beside measured ones, never among them.

Functions import `tuning` when they need it: it loads JAX, which drawing does not need.
"""

import functools
import importlib.resources
import json
from collections.abc import Iterable, Mapping
from typing import Any

from clipbias.terminal import printable

TYPE_NAMES = {"sos": "SOS", "prompt": "prompts", "words": "words", "category": "category", "dot": "“.”", "eos": "EOS"}


def base_name(method: str) -> str:
    """Returns a method's name without its learning rate: `bias` for `bias, rate 0.1`."""
    return method.partition(", rate ")[0]


def method_name(method: str) -> str:
    """Returns a method's label; a user's method without a label keeps its name."""
    from clipbias.tuning import registry

    base, comma, rate = method.partition(", rate ")
    preset = registry.find_preset(base)
    return printable(base if preset is None else preset.label) + comma + printable(rate)


def draws(method: str) -> bool:
    """Whether a method uses training images, in steps or at once; `True` for a user's method."""
    from clipbias.tuning import METHODS, make_method

    name = base_name(method)
    # A user's method is taken to train, so that it has a point for each number of shots.
    return name not in METHODS or make_method(name).uses_images


def method_kind(method: str) -> str | None:
    """Returns a method's kind, a value of `tuning.Kind`; `None` where unknown."""
    from clipbias.tuning import registry

    kind = registry.find_kind(base_name(method))
    return None if kind is None else str(kind)


def ordered_methods(methods: Iterable[str]) -> tuple[str, ...]:
    """Orders methods as in tables, unknown ones last, each once."""
    from clipbias.tuning import METHODS

    # The registry orders presets by family, and tables follow it.
    places = {name: place for place, name in enumerate(METHODS)}
    return tuple(sorted(dict.fromkeys(methods), key=lambda name: places.get(base_name(name), len(places))))


def shown_shots(row: Mapping[str, Any]) -> int | str:
    """Returns the shots of a run's row for tables: "all" for all training images, 0 for none."""
    return "all" if row.get("protocol") == "full" else row.get("shots") or 0


@functools.cache
def published() -> Mapping[str, Any]:
    """Returns published numbers: `datasets` in their order, `averages` over these, accuracies at `sixteen_shots`."""
    return json.loads(importlib.resources.files("clipbias").joinpath("assets/published.json").read_text("utf-8"))


def _plain(name: str) -> str:
    # `oxford_pets`, `Oxford-Pets` and `OxfordPets` are one dataset.
    return "".join(letter for letter in name.lower() if letter.isalnum())


def dataset_name(dataset: str) -> str:
    """Returns a dataset's name as papers spell it, `OxfordPets` for `oxford_pets`; other names stay."""
    names = {name: name for name in published()["datasets"]} | published()["also_called"]
    return {_plain(spelling): name for spelling, name in names.items()}.get(_plain(dataset)) or printable(dataset)


def are_the_eleven(datasets: Iterable[str]) -> bool:
    """Whether these are exactly the eleven datasets, in any spelling."""
    return {dataset_name(name) for name in datasets} == set(published()["datasets"])


def ordered_datasets(datasets: Iterable[str]) -> tuple[str, ...]:
    """Orders datasets: the eleven in the papers' order, then the others, each once."""
    order = {name: position for position, name in enumerate(published()["datasets"])}
    return tuple(sorted(dict.fromkeys(datasets), key=lambda name: order.get(dataset_name(name), len(order))))
