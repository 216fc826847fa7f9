"""Adapter files: the learnables of a tuned method with everything that is needed to use them, also for other classes.

The file is safetensors: tensors named by their path in the learnables, and one metadata entry `clipbias`, a JSON
object. Nothing in it is executed, and nothing that it names: a method of a user's own is named again by whoever uses
the file.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

from clipbias.checks import Count, Positive, Range, check_value
from clipbias.clip import Clip, hub
from clipbias.clip.formats import open_safetensors_file
from clipbias.data.dataset import Descriptions
from clipbias.errors import ClipbiasError
from clipbias.io import data_path, parse_json, user_path, write_tensors
from clipbias.terminal import printable
from clipbias.tuning.conformal import Calibration
from clipbias.tuning.method import (
    CONSTANTS,
    SEPARATOR,
    Array,
    Learnables,
    Options,
    flatten,
    unflatten,
)
from clipbias.tuning.prompts import Classes, ClassList
from clipbias.tuning.registry import METHODS, is_user_method, make_method, match_user_method
from clipbias.tuning.task import Task
from clipbias.tuning.transfer import transfer

# Raised when a file changes in a way that earlier code would misread.
FORMAT = 1
# Where the scores of calibration images stand among the tensors.
_CALIBRATION = "calibration"
# What the file is called in a folder or a repository of its own.
FILE = "adapter.safetensors"

# What models that differ in their seed alone have in common, of the notes of their training.
_TRAINING = (
    "dataset",
    "data",
    "template",
    "protocol",
    "shots",
    "concentration",
    "learning_rate",
    "recipe",
    "equivalent_bias",
)

# The header's fields, and of its notes those that cards, tables and figures take.
_TEXTS = dict[str, list[str]]
_FIELDS: dict[str, Any] = {
    "method": str,
    "options": dict[str, Any],
    "class_names": list[str],
    "template": str,
    "base": str,
    "base_fingerprint": str,
    "notes": dict[str, Any],
    "descriptions": _TEXTS | None,
}
_NOTES: dict[str, Any] = {
    "learning_rate": Annotated[float, Range(0)] | None,
    "dataset": str,
    "protocol": str,
    "shots": Positive | None,
    "train_images": Count,
    "images_per_class": list[int],
    "images": Count,
    "seed": Count,
    "start_seed": Count | None,
    "accuracy": Annotated[float, Range(0, 100)],
    "accuracies": dict[str, float],
    "choice": dict[str, Any],
    "recipe": dict[str, Any],
}
# Of how a learning rate was selected: its candidates, and the number of held-out images.
_CHOICE: dict[str, Any] = {"tried": list[dict[str, float | None]], "images": Positive | None}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What an adapter file holds.

    Attributes:
      class_names, template: of the dataset it was trained on.
      descriptions: texts of each class that its classifier is made of in place of the template, if it is.
      calibration: scores of calibration images of these classes, or `None`.
      base: what the frozen model is loaded from, a hub model at its commit; base_fingerprint: SHA-256 of its weights.
      notes: anything else worth keeping, such as dataset, shots, seed and accuracy.
    """

    learnables: Learnables
    method: str
    options: Options
    class_names: tuple[str, ...]
    template: str
    base: str
    base_fingerprint: str
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    descriptions: Mapping[str, Sequence[str]] | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        """Raises `ClipbiasError` for a field, or a note, that is not what its name says."""
        for field, kind in _FIELDS.items():
            check_value(f"the adapter's {field}", getattr(self, field), kind)
        for name, kind in _NOTES.items():
            if self.notes.get(name) is not None:
                check_value(name, self.notes[name], kind)
        if (choice := self.notes.get("choice")) is not None:
            for name, kind in _CHOICE.items():
                check_value(f"choice.{name}", choice.get(name), kind)

    def task(self, clip: Clip, *, own_methods: Sequence[str] = ()) -> Task:
        """The task of this adapter's learnables on its base model, for its own classes; see `bind`."""
        return self.bind(clip, own_methods=own_methods)[0]

    def bind(
        self,
        clip: Clip,
        class_names: Sequence[str] | ClassList | None = None,
        *,
        own_methods: Sequence[str] = (),
        descriptions: Descriptions | Mapping[str, Sequence[str]] | None = None,
        free_text: bool = False,
        dtype: str = "float32",
    ) -> tuple[Task, Learnables]:
        """The task of this adapter on its base model, for its own classes or others, and the learnables for it.

        The learnables are the adapter's own, unless the method makes others of them for other classes.

        Args:
          clip: the model it was trained on.
          class_names: the classes, or a dataset with them; `None` for those of training.
          own_methods: files or modules that an adapter of a method of one's own may take it from (see
            `tuning.registry.match_user_method`).
          descriptions: texts by class name in place of those that the adapter holds, such as of other classes.
          free_text, dtype: see `Task`.

        Raises:
          ClipbiasError: `clip` is another model, the learnables belong to the classes of training, or the method is a
            program that `own_methods` does not name.
        """
        if clip.fingerprint != self.base_fingerprint:
            raise ClipbiasError(
                f"this adapter was trained on {self.base!r} (weights {printable(self.base_fingerprint[:12])}) and does "
                f"not fit {clip.name!r} (weights {clip.fingerprint[:12]}); load its own base model."
            )
        name = self.method if self.method in METHODS else match_user_method(self.method, own_methods)
        method = make_method(name, **self.options)
        stored = None if self.descriptions is None else Descriptions(self.descriptions, "the adapter's descriptions")
        trained = Task(clip, method, self, descriptions=stored, method_name=name, dtype=dtype)
        _check_shapes(flatten(self.learnables), trained, self.method)
        if class_names is None:
            class_names = self
        if Classes.of(class_names).class_names == self.class_names and descriptions is None and not free_text:
            return trained, self.learnables
        task = trained.with_classes(class_names, descriptions=descriptions, free_text=free_text)
        return task, transfer(trained, task, self.learnables)


def start_seed(notes: Mapping[str, Any]) -> int:
    """The seed that the learnables of an adapter with these notes started from; 0 where it is not known."""
    number = notes.get("start_seed")
    if number is None:
        number = notes.get("seed")
    return number if isinstance(number, int) else 0


def training_of(notes: Mapping[str, Any]) -> str:
    """What the notes of trainings that differ in their seed alone have in common, as text; "" where they say nothing.

    A learning rate that was selected on each seed's images is none of it.
    """
    facts = {name: notes[name] for name in _TRAINING if notes.get(name) is not None}
    if "choice" in notes:
        facts.pop("learning_rate", None)
        facts["recipe"] = {name: value for name, value in facts.get("recipe", {}).items() if name != "learning_rate"}
    if "dataset" not in facts and "train_images" in notes:
        facts["train_images"] = notes["train_images"]
    return json.dumps(facts, sort_keys=True) if facts else ""


def save_adapter(
    path: str | os.PathLike,
    task: Task,
    learnables: Learnables,
    *,
    notes: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Writes an adapter of one run's learnables to a `.safetensors` file, atomically, with notes of JSON values.

    Raises:
      ClipbiasError: `read_adapter` or `Adapter.task` would refuse the file, or it cannot be written.
    """
    write_adapter(path, make_adapter(task, learnables, notes=notes, calibration=calibration))


def make_adapter(
    task: Task,
    learnables: Learnables,
    *,
    notes: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
) -> Adapter:
    """An adapter of what a task learned; arguments and errors as for `save_adapter`."""
    if task.method_name not in METHODS and not is_user_method(task.method_name):
        raise ClipbiasError(
            f"cannot save the adapter: the method {task.method_name!r} cannot be made again; put its class in a file, "
            "and make the task with the file's path."
        )
    if _CALIBRATION in learnables:
        raise ClipbiasError(f"cannot save the adapter: {_CALIBRATION!r} is no name for what is learned; take another.")
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(learnables).items()}
    _check_shapes(arrays, task, task.method_name)
    return Adapter(
        learnables=learnables,
        method=task.method_name,
        options=task.options(),
        class_names=task.class_names,
        template=task.template,
        base=task.clip.source,
        base_fingerprint=task.clip.fingerprint,
        notes=notes or {},
        descriptions=task.descriptions,
        calibration=calibration,
    )


def write_adapter(path: str | os.PathLike, adapter: Adapter) -> None:
    """Writes an adapter's file, atomically. Raises `ClipbiasError` for what `read_adapter` would refuse."""
    if data_path(path).suffix.lower() != ".safetensors":
        raise ClipbiasError(f"{path} is no name of an adapter's file; give a path that ends with .safetensors.")
    leaves = dict(adapter.learnables)
    if adapter.calibration is not None:
        leaves[_CALIBRATION] = adapter.calibration.arrays()
    tensors = {name: np.array(leaf, order="C") for name, leaf in flatten(leaves).items()}
    _check_finite(tensors, "cannot save the adapter")
    header = {field: getattr(adapter, field) for field in _FIELDS}
    try:
        text = json.dumps({"format": FORMAT, **header, "notes": dict(adapter.notes)}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ClipbiasError(
            f"cannot save the adapter: its notes and options must be JSON values ({error}); convert them."
        ) from error
    write_tensors(path, tensors, {"clipbias": text})


def read_adapter(path: str | os.PathLike) -> Adapter:
    """Reads an adapter.

    `path` is its file, a folder that holds it as `adapter.safetensors` (a work folder, an export), or a repository of
    the Hugging Face hub, "owner/name" or "owner/name@revision", that does.

    Raises:
      ClipbiasError: no such file, or it is damaged, not an adapter, or of another format; or it cannot be downloaded.
    """
    path = _find(path)
    with open_safetensors_file(path) as file:
        metadata = (file.metadata() or {}).get("clipbias")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    try:
        header = parse_json(metadata or "null", dict)
        learnables = unflatten(tensors)
    except ValueError as error:
        raise ClipbiasError(f"{path} is not a clipbias adapter; it lacks a readable 'clipbias' header.") from error
    if header.get("format") != FORMAT:
        raise ClipbiasError(f"{path} has format {header.get('format')!r}; this clipbias reads format {FORMAT}.")
    try:
        fields = {field: header.get(field) for field in _FIELDS}
        check_value("its list of classes", fields["class_names"], list[str])
        scores = learnables.pop(_CALIBRATION, None)
        fields |= {"class_names": tuple(fields["class_names"])}
        fields |= {"calibration": None if scores is None else Calibration.read(scores)}
        adapter = Adapter(learnables, **fields)
        if adapter.descriptions is not None:
            Descriptions(adapter.descriptions, "its descriptions").of(adapter.class_names)
        json.dumps(header, allow_nan=False)  # Python's reader takes numbers that are none
    except ValueError as error:  # `ClipbiasError` among them
        raise ClipbiasError(f"{path} is damaged: {error}") from error
    _check_finite(tensors, f"{path} is damaged")
    return adapter


def _find(source: str | os.PathLike) -> Path:
    path = user_path(source)
    if (path / FILE).is_file():
        return path / FILE
    name = None if path.exists() or path.suffix == ".safetensors" else hub.parse(str(source))
    if name is None:
        if (path / "adapter_config.json").is_file():
            raise ClipbiasError(
                f"{path} is a folder of PEFT's, which names no classes; read it with "
                "clipbias.export.read_peft(folder, clip, class_names)."
            )
        if not path.is_file():
            raise ClipbiasError(f"no adapter file {path}.")
        return path
    return hub.download(name, FILE)


def _check_shapes(arrays: Mapping[str, Array], task: Task, method: str) -> None:
    leaves = flatten(task.shapes)
    expected = {name: leaf.shape for name, leaf in leaves.items()}
    shapes = {name: np.shape(leaf) for name, leaf in arrays.items()}
    # An axis of length 0 stands for one of any length.
    fits = expected.keys() == shapes.keys() and all(
        len(shape) == len(shapes[name]) and all(a in (0, b) for a, b in zip(shape, shapes[name], strict=True))
        for name, shape in expected.items()
    )
    if not fits:
        raise ClipbiasError(f"the adapter's arrays {shapes} are not those of method {method!r}, {expected}.")
    for name, leaf in leaves.items():
        if _is_floating(leaf) != _is_floating(arrays[name]):
            raise ClipbiasError(
                f"the adapter's array {name!r} holds {arrays[name].dtype} and not {leaf.dtype}, as method {method!r} "
                "has it."
            )


def _check_finite(arrays: Mapping[str, np.ndarray], message: str) -> None:
    """Raises `ClipbiasError` for an array of anything but finite numbers; only constants may be whole ones."""
    for name, values in arrays.items():
        whole = name.split(SEPARATOR)[0] == CONSTANTS and values.dtype.kind in "biu"
        if not whole and not (_is_floating(values) and np.isfinite(values).all()):
            raise ClipbiasError(f"{message}: {name!r} holds what are not finite numbers.")


def _is_floating(array: Array | jax.ShapeDtypeStruct) -> bool:
    return bool(jax.numpy.issubdtype(array.dtype, jax.numpy.floating))
