"""The names and the order in which methods and datasets are shown, and what papers report for the eleven datasets.

Reported numbers stand beside own results, never as own results.
"""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from clipbias.terminal import printable

if TYPE_CHECKING:
    from clipbias.tuning.method import Preset

KIND_NAMES = {"sos": "SOS", "prompt": "prompts", "words": "words", "category": "category", "dot": "“.”", "eos": "EOS"}
VARIANT_NAMES = {"clip": "", "without_prompt": "W/O Prompt", "with_prompt": "W Prompt"}


def at_rate(method: str, rate: float) -> str:
    """The name of a method where it was trained at several learning rates."""
    return f"{method}, rate {rate:g}"


def find_preset(method: str) -> "Preset | None":
    """What a method's own file calls it, at whatever learning rate; `None` where it is not known."""
    from clipbias.tuning import registry  # not at import: it brings JAX, which drawing does without

    return registry.find_preset(base_name(method))


def method_name(method: str) -> str:
    """A method's name as readers know it; a user's own method keeps the name it was given, unless it has a label."""
    preset = find_preset(method)
    base, comma, rate = method.partition(", rate ")
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

    known = list(METHODS)

    def place(method: str) -> int:
        return known.index(base_name(method)) if base_name(method) in known else len(known)

    return tuple(sorted(dict.fromkeys(methods), key=place))


def base_name(method: str) -> str:
    """The name of a method without its learning rate."""
    return method.partition(", rate ")[0]


def same_name(name: str) -> str:
    """A spelling to compare names by: `oxford_pets` and `OxfordPets` are one dataset."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def shown_shots(row: Mapping[str, Any]) -> int | str:
    """The shots of a run's row as tables show them: "all" where all images were used, 0 where none were."""
    return "all" if row.get("protocol") == "full" else row.get("shots") or 0


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
