"""Runs as data: specs, with all that numbers depend on, and groups, which share a program.

A spec's hash is the only key of its run: in rows, for checkpoints, and when a sweep continues.
"""

import dataclasses
import functools
import itertools
import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clipbias.data import Dataset
from clipbias.errors import ClipbiasError
from clipbias.identity import counted_by, identity
from clipbias.sentences import counted
from clipbias.tuning.method import Method, Options
from clipbias.tuning.prompts import Classes
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import resolve_method, source_digest

# More runs side by side gain nothing and delay the first result.
MOST_RUNS = 32
# Images that score a run: of the test, or of validation where a sweep selects learning rates.
TEST = "test"
VALIDATION = "validation"
# The validation policy of a run that selects nothing.
UNSELECTED = "none"


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One run: a method on a dataset, with shots, seed and learning rate. Equal specs give equal numbers."""

    method: str  # a name of `tuning.METHODS`, or the path of a user's file
    options: Options  # all, resolved
    dataset: str
    protocol: str
    targets: tuple[str, ...]
    shots: int | None  # training images per class; `None` for all, or for a method without training images
    seed: int  # of the few-shot split
    recipe: Recipe | None  # `None` without training
    dtype: str
    task: str  # identity of frozen model, method, classes and compute type
    source: str | None  # identity of a user's own program as it was when the spec was made
    data: str  # identity of the images of all splits, and of images and classes of the targets
    # A constant in keys: numbers do not depend on it, so that a folder continues with the other value.
    on_image_error: str = dataclasses.field(default="raise", metadata=counted_by(lambda spec: "raise"))
    score_on: str = TEST  # `VALIDATION` where a sweep selects learning rates
    # The policy, as tables show it: the images that select a setting (`protocols.validation_policy`).
    validation: str = UNSELECTED
    start_seed: int | None = None  # of initial learnables, order and augmentation; `None` for `seed`
    concentration: float | None = None

    @functools.cached_property
    def key(self) -> str:
        # Of all fields: whatever changes a number changes the key, and the run counts as another.
        # 48 bits: two of ten thousand runs share a key with a chance of 2e-7.
        return identity(self)[:12]

    @functools.cached_property
    def training(self) -> str:
        # Of the spec before a setting is selected: runs of other seeds, which may select others, share it.
        return dataclasses.replace(self, seed=0, start_seed=None).key

    @property
    def learning_rate(self) -> float | None:
        return None if self.recipe is None else self.recipe.learning_rate

    @property
    def seeds(self) -> str:
        return f"seed{self.seed}" + ("" if self.start_seed is None else f"-start{self.start_seed}")

    @property
    def start(self) -> int:
        return self.seed if self.start_seed is None else self.start_seed

    @functools.cached_property
    def takes_all(self) -> bool:
        return self.shots is None and self.make_method().uses_images

    @property
    def shots_words(self) -> str:
        """Training images in words: "16 shots", "all images", or "0 shots" for a method without any."""
        return "all images" if self.takes_all else counted(self.shots or 0, "shot")

    def facts(self) -> dict[str, Any]:
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        recipe = {} if self.recipe is None else self.recipe.facts()
        return {**json.loads(json.dumps({**facts, "recipe": recipe})), "learning_rate": self.learning_rate}

    def make_method(self) -> Method:
        """Makes the method with its options. Raises `ClipbiasError` where its program has changed since."""
        method = resolve_method(self.method, self.options)
        if source_digest(type(method)) != self.source:
            raise ClipbiasError(f"{self.method} or a module that it imports has changed meanwhile; start again.")
        return method


# Protocol of a distilled adapter: all training and validation images of its dataset train it, without labels.
DISTILLATION = "distillation"
# Runs that train side by side.
Group = tuple[RunSpec, ...]
# The result of a run, as JSON values.
Row = dict[str, Any]


def make_groups(specs: Sequence[RunSpec], most: int | None = None) -> list[Group]:
    """Divides specs into groups of at most `most` runs, in their order; a group has all seeds of its learning rates.

    `most=None` takes `MOST_RUNS`, or all seeds of one rate where these are more.
    """
    # Specs that differ in seed or learning rate alone share shapes, and so a program: `vmap` trains them side by side.
    alike: dict[str, dict[float | None, list[RunSpec]]] = {}
    for spec in specs:
        recipe = spec.recipe and spec.recipe.with_learning_rate(0.0)
        common = dataclasses.replace(spec, seed=0, start_seed=None, recipe=recipe)
        alike.setdefault(common.key, {}).setdefault(spec.learning_rate, []).append(spec)
    groups: list[Group] = []
    for by_rate in alike.values():
        seeds = max(map(len, by_rate.values()))
        size = most or max(MOST_RUNS, seeds)
        for together in _batched(list(by_rate.values()), max(1, size // seeds)):
            groups += map(tuple, _batched(list(itertools.chain.from_iterable(together)), size))
    return groups


def data_identity(datasets: Sequence[Dataset]) -> str:
    """Returns the identity of classes and images of a training's dataset and of further ones to evaluate on."""
    return identity([[Classes.of(dataset), dataset.splits] for dataset in datasets])


def data_notes(dataset: Dataset, classes: Classes, protocol: str) -> Row:
    # By these `seen_in_training` knows the images of a training. An adapter's texts may be others than the dataset's.
    texts = dataclasses.replace(dataset, template=classes.template, descriptions=classes.descriptions)
    return {"dataset": dataset.name, "protocol": protocol, "data": data_identity([texts])}


def seen_in_training(notes: Mapping[str, Any], dataset: Dataset, classes: Classes, split: str = "test") -> str:
    """Returns a sentence if images of a split may have trained an adapter with `notes`; else "".

    `classes` are those of the adapter. The training of a distilled adapter's teacher counts, too.
    """
    trainings = []
    while notes:
        trainings.append(notes)
        notes = notes.get("teacher") or {}
    here = [training for training in trainings if training.get("dataset") == dataset.name]
    unchanged = data_notes(dataset, classes, protocol="")["data"] if here else ""
    # The same name may hold other pictures today; those that trained the adapter are then no test.
    if any(
        training.get("protocol") in ("few_shot", "full", DISTILLATION) and training.get("data", unchanged) != unchanged
        for training in here
    ):
        return (
            f"the pictures or classes of {dataset.name} have changed since the adapter's training: pictures that "
            "trained or calibrated it may be evaluated here."
        )
    if here and split != "test":
        return (
            f"the adapter was trained on {dataset.name}: pictures of its {split} split may have trained or calibrated "
            "it, and it may look better on them than it is."
        )
    return ""


def part_of(specs: Sequence[RunSpec], part: tuple[int, int]) -> list[RunSpec]:
    """Returns part `i` of `n`: every n-th method, dataset and number of shots, with all seeds and rates."""
    # Whole cells: a table's cell, and the selection of a cell's rate, need all seeds and rates in one part.
    cell_of = operator.attrgetter("method", "dataset", "shots")
    numbers = {cell: number for number, cell in enumerate(dict.fromkeys(map(cell_of, specs)))}
    return [spec for spec in specs if numbers[cell_of(spec)] % part[1] == part[0]]


def _batched(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def group_key(group: Iterable[RunSpec]) -> str:
    return identity([spec.key for spec in group])[:12]


def group_name(group: Group) -> str:
    """File name of a group: method, dataset and shots."""
    first = group[0]
    shots = "all" if first.takes_all else f"{first.shots or 0}shots"
    return f"{_file_name(first.method)}-{_file_name(first.dataset)}-{shots}"


def run_names(specs: Iterable[RunSpec]) -> dict[str, str]:
    """Returns a file name for each spec by its key; with the learning rate where several are compared."""
    named: dict[str, list[RunSpec]] = {}
    for spec in specs:
        named.setdefault(f"{group_name((spec,))}-{spec.seeds}", []).append(spec)
    return {
        spec.key: name if len(alike) == 1 else f"{group_name((spec,))}-rate{spec.learning_rate:g}-{spec.seeds}"
        for name, alike in named.items()
        for spec in alike
    }


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "unnamed"
