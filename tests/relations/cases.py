"""Cases of the table of relations: a method with an option, a form of class texts and a family of models.

All axes are read from what the package registers: a new method, option, family, compute type or form of export is in
the table without a line here.
"""

import atexit
import dataclasses
import functools
import shutil
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import jax
import numpy as np

import clipbias
from clipbias import TunedModel
from clipbias.checks import Choices
from clipbias.clip import Clip
from clipbias.tuning import CONSTANTS, METHODS, Samples, Task
from clipbias.tuning.method import Learnables, Method, sampling_of
from clipbias.tuning.registry import make_method, method_options
from tests import families, helpers

# Sizes that only make a case slower, by the option's name, where a method has it.
SMALL = {"crops": 2, "sets": 2, "sets_per_step": 2, "passes": 2, "space": 8, "steps": 2, "epochs": 2, "tokens": 2}
NUMBERS = int | float


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of class texts: three classes and another one, and the arguments of `Task` beside them."""

    names: tuple[str, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    respelled: tuple[str, ...] = ()  # the first classes with their spaces written otherwise, where that is allowed

    @property
    def classes(self) -> tuple[str, ...]:
        return self.names[:-1]

    @property
    def again(self) -> dict[str, Any]:
        """The arguments of `with_classes` for texts of this form; it keeps a template by itself."""
        return {name: value for name, value in self.options.items() if name != "template"}


# Sorted, as a folder's classes are, but for the last.
_NAMES = ("big bird", "cat", "golden dog", "fish")
_RESPELLED = ("big_bird", "cat", "golden_dog")
_TEXTS = {
    "cat": ["a cat."],
    # Without this class, which relations take away, each class of training has one text.
    "big_bird": ["a bird that is big", "the bird of a photo", "a painting of the bird"],
    "golden dog": ["the golden dog of a photo"],
    "fish": ["a fish", "the photo of a fish"],
}
FORMS = {
    "names": Form(_NAMES, respelled=_RESPELLED),
    "template": Form(_NAMES, {"template": "the painting of a {}, a type of texture."}, _RESPELLED),
    "underscores": Form((*_RESPELLED, "fish"), respelled=_NAMES[:3]),
    "descriptions": Form(_NAMES, {"descriptions": _TEXTS}, _RESPELLED),
    "free_text": Form(("a big_bird on grass.", "the dog of a photo", "two cats {}", "fish"), {"free_text": True}),
}


def differ_in_numbers_alone(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether every option is the same, or a number in both (`None`: all)."""
    values = [(one[name], other[name]) for name in one]
    return all(
        a == b or not any(isinstance(x, bool) or not isinstance(x, NUMBERS | None) for x in (a, b)) for a, b in values
    )


@functools.cache
def methods() -> tuple[str, ...]:
    """The built-in methods; of those of one class that differ in numbers alone the first."""
    kept: dict[str, Method] = {}
    for name in METHODS:
        method = make_method(name)
        alike = (other for other in kept.values() if type(other) is type(method))
        if not any(differ_in_numbers_alone(method_options(method), method_options(other)) for other in alike):
            kept[name] = method
    return tuple(kept)


def other_values(kind: object, value: object) -> list[object]:
    """Other values that an option's annotation allows: every choice, flags, and of numbers and texts a few to try."""
    if get_origin(kind) in (types.UnionType, Union):
        inner = [part for part in get_args(kind) if part is not type(None)]
        return other_values(inner[0], value)
    choices = None
    if get_origin(kind) is Annotated:
        kind, limits, *_ = get_args(kind)
        choices = limits.allowed if isinstance(limits, Choices) else None
    if choices is not None:
        return [choice for choice in choices if choice != value]
    if kind is bool:
        return [not value]
    if kind is int:
        return [number for number in (1, 2, 4) if number != value]
    if kind is float:
        return [0.5 if value != 0.5 else 0.25]
    if kind is str:
        return ["the painting of a {}.", "the photo of the"]
    if get_origin(kind) is tuple and isinstance(value, tuple):
        choices = get_args(get_args(kind)[0])[1:]
        return [tuple(choices[0].allowed[:1])] if choices and isinstance(choices[0], Choices) else [value[:2]]
    return []


def has_choices(kind: object) -> bool:
    """Whether an option's annotation names all its values."""
    return any(isinstance(part, Choices) for part in get_args(kind)) or kind is bool


# PLOT's iterations end for all images and classes of a batch together, as in its authors' code: the last digits of an
# image's logits depend on the others.
IN_COMMON = ("plot", "plot_plus_plus")


@dataclasses.dataclass(frozen=True)
class Case:
    """A tuned model of the smallest size: a method, perhaps with one option changed, texts of classes, a family."""

    method: str
    form: str = "names"
    family: str = "clip"
    option: tuple[str, Any] | None = None

    def __str__(self) -> str:
        words = [self.method, *(word for word in (self.form, self.family) if word not in ("names", "clip"))]
        return "-".join([*words, *([f"{self.option[0]}={self.option[1]}"] if self.option else [])])

    @property
    def kind(self) -> Method:
        """The method with its own options, without a task."""
        return _kind(self.method)

    @property
    def tolerance(self) -> float:
        """Of logits, relative to the largest, where other pictures or classes stand beside."""
        return 5e-3 if self.method in IN_COMMON else 2e-5

    @property
    def texts(self) -> Form:
        return FORMS[self.form]

    @property
    def options(self) -> dict[str, Any]:
        """The method's options that are not its defaults."""
        known = method_options(self.kind)
        return {name: value for name, value in SMALL.items() if name in known} | dict([self.option] * bool(self.option))

    @property
    def task(self) -> Task:
        return _task(self)

    @property
    def model(self) -> TunedModel:
        """The tuned model, one for all relations: they must not change it."""
        return _model(self)

    def task_of(self, **changes: Any) -> Task:
        """The task with other arguments."""
        arguments = {"class_names": self.texts.classes, **self.texts.options, **self.options, **changes}
        return Task(clip_of(self.family), self.method, **arguments)


_kind = functools.cache(make_method)


@functools.cache
def _task(case: Case) -> Task:
    return case.task_of()


@functools.cache
def _model(case: Case) -> TunedModel:
    return TunedModel(case.task, tuned(case.task), notes={"seed": 1})


def tuned(task: Task, images_of_class: int = 4) -> Learnables:
    """Learnables as after a training: of drawn features where they are made of these, and all moved a little."""
    random = np.random.default_rng(0)
    sampling = sampling_of(task.method)
    count = len(task.class_names)
    if sampling is None and CONSTANTS not in task.shapes and task.method.read_classes is None:
        return jax.tree.map(lambda leaf: 0.05 * random.normal(size=leaf.shape).astype(np.float32), task.shapes)
    learnables = task.init(seed=1)
    if sampling is not None:
        width = task.clip.config.projection_width if sampling.projected else task.clip.config.vision.width
        labels = np.repeat(np.arange(count, dtype=np.int32), images_of_class)
        text = np.asarray(task.classifier.split_by_template(task.text_input(task.clip.params, learnables)))
        centres = random.normal(size=(count, width)).astype(np.float32)

        def draw(*shape: int) -> np.ndarray:
            return centres[labels] + 0.3 * random.normal(size=(*shape, len(labels), width)).astype(np.float32)

        samples = Samples(draw(max(1, sampling.passes)), labels, text, 20.0, draw(), labels, seed=1)
        learnables = task.method.support(learnables, samples)
        if task.method.finish is not None:
            learnables = task.method.finish(learnables, samples)

    def moved(path: tuple, leaf: jax.Array) -> jax.Array:
        fixed = path[0].key == CONSTANTS
        return leaf if fixed else leaf + 0.05 * random.normal(size=np.shape(leaf)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(moved, jax.device_get(learnables))


@functools.cache
def clip_of(family: str) -> Clip:
    """A random model of a family; CLIP's is made here, the others are files."""
    if family != "clip":
        return families.load_first(family)
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    helpers.tiny_checkpoint(  # whose answers to the pictures of these tests differ
        folder, seed=3, vision=(8, 2, 2), text=(12, 2, 3), projection=6, image_size=8, patch_size=4, context_length=32
    )
    return clipbias.load(folder)


FAMILIES = ("clip", *families.FAMILIES)
