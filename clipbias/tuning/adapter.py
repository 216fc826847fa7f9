"""Adapter files: a tuned model with everything that its predictions depend on.

The file is safetensors: tensors named by their path in the learnables, and the metadata entry `clipbias`, a JSON
object. Nothing in it is executed. The user of a file names the program of a user's own method again.
"""

import dataclasses
import functools
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import cattrs
import jax
import numpy as np

from clipbias.checks import Count, Positive, Range, annotations, check_value
from clipbias.clip import Clip, ClipConfig, Preprocessing, abstract_params, hub
from clipbias.clip.formats import open_safetensors_file
from clipbias.constants import ADAPTER_FILE
from clipbias.data.dataset import Descriptions
from clipbias.errors import ClipbiasError, ClipbiasWarning
from clipbias.identity import identity
from clipbias.io import data_path, parse_json, user_path, write_tensors
from clipbias.terminal import printable
from clipbias.tuning.conformal import Calibration
from clipbias.tuning.method import CONSTANTS, SEPARATOR, Array, Learnables, Options, flatten, unflatten
from clipbias.tuning.prompts import Classes
from clipbias.tuning.registry import METHODS, is_user_method, make_method, match_user_method, source_digest
from clipbias.tuning.task import Task
from clipbias.tuning.tuned import Tuned

# Version of the file's form; a new number where earlier code would misread the file.
ADAPTER_FORMAT = 2
# Key of the scores of calibration images among the tensors.
_CALIBRATION = "calibration"

# Types of the notes that cards, tables and figures use.
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
    "training": str,
    "teacher": dict[str, Any],
    "accuracy": Annotated[float, Range(0, 100)],
    "accuracies": dict[str, float],
    "choice": dict[str, Any],
    "recipe": dict[str, Any],
}
# Types of the note `choice`: the compared learning rates, and the number of held-out images.
_CHOICE: dict[str, Any] = {"tried": list[dict[str, float | None]], "images": Positive | None}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The content of an adapter file: all that predictions depend on, except the frozen weights and the tokenizer."""

    learnables: Learnables
    method: str
    options: Options
    source: str | None  # digest of the program of a user's own method
    # See `tuning.prompts.Classes`.
    class_names: list[str]
    template: str
    descriptions: dict[str, list[str]] | None
    free_text: bool
    dtype: str
    base: str  # the frozen model for `clipbias.load`, a hub model at its commit
    weights: str  # its identity
    tokenizer: str  # likewise
    config: Mapping[str, Any]  # geometry with its activation
    preprocessing: dict[str, Any]
    notes: dict[str, Any]
    calibration: Calibration | None = None
    sha256: str = ""  # of everything else, from the time of writing

    def __post_init__(self) -> None:
        """Checks fields and notes by their types. Raises `ClipbiasError` for a wrong one."""
        for field, kind in _header_types().items():
            check_value(f"the adapter's {field}", getattr(self, field), kind)
        for name, kind in _NOTES.items():
            if self.notes.get(name) is not None:
                check_value(name, self.notes[name], kind)
        if (choice := self.notes.get("choice")) is not None:
            for name, kind in _CHOICE.items():
                check_value(f"choice.{name}", choice.get(name), kind)
        _ = self.classes

    @functools.cached_property
    def classes(self) -> Classes:
        texts = None if self.descriptions is None else Descriptions(self.descriptions, "the adapter's descriptions")
        if texts is not None:
            texts.of(self.class_names)
        return Classes(tuple(self.class_names), self.template, texts, self.free_text)

    @property
    def content(self) -> str:
        """SHA-256 of the content, without `sha256` itself."""
        scores = None if self.calibration is None else self.calibration.arrays()
        header = {field: getattr(self, field) for field in _header_types() if field != "sha256"}
        return identity([header, flatten(self.learnables), scores])

    @classmethod
    def of(cls, model: Tuned) -> "Adapter":
        """From a tuned model. Raises `ClipbiasError` for a method without a name, or values that cannot be written."""
        # The file holds the method's name, not its code: a class of a notebook could not be found again.
        task, learnables = model.task, model.learnables
        if task.method_name not in METHODS and not is_user_method(task.method_name):
            raise ClipbiasError(
                f"cannot save the adapter: the method {task.method_name!r} cannot be made again; put its class in a "
                "file, and make the task with the file's path."
            )
        if _CALIBRATION in learnables:
            raise ClipbiasError(
                f"cannot save the adapter: the name {_CALIBRATION!r} is reserved; rename that learnable."
            )
        _check_shapes(flatten(learnables), task, task.method_name)
        texts = task.classes.descriptions
        adapter = cls(
            learnables=learnables,
            method=task.method_name,
            options=task.options(),
            source=source_digest(type(task.method)),
            class_names=list(task.class_names),
            template=task.template,
            descriptions=None if texts is None else texts.of(task.class_names),
            free_text=task.classes.free_text,
            dtype=task.classifier.dtype,
            base=task.clip.source,
            weights=task.clip.fingerprint,
            tokenizer=task.clip.parts["tokenizer"],
            config=_plain(task.clip.config),
            preprocessing=_plain(task.clip.preprocessing),
            notes=dict(model.notes),
            calibration=model.calibration,
        )
        return dataclasses.replace(adapter, sha256=adapter.content)

    def bind(self, clip: Clip, *, own_methods: Sequence[str] = (), dtype: str | None = None) -> Tuned:
        """The tuned model as it was written, on a `clip` with the weights and the tokenizer of its training.

        Raises `ClipbiasError` for another model, or a method whose program `own_methods` does not name. Warns where
        that program was changed; the model then has no calibration. The default compute type is that of training.
        """
        if clip.fingerprint != self.weights:
            raise ClipbiasError(
                f"this adapter was trained on {self.base!r} (weights {printable(self.weights[:12])}) and does not fit "
                f"{clip.name!r} (weights {clip.fingerprint[:12]}); load its own base model."
            )
        if clip.parts["tokenizer"] != self.tokenizer:
            raise ClipbiasError(
                f"this adapter was trained with another tokenizer than that of {clip.name!r}; load the model with it, "
                f"clipbias.load({self.base!r}, tokenizer=FOLDER)."
            )
        # The adapter's geometry and preprocessing win over those of the loaded model: the activation and the pixels
        # that it was trained with. Their shapes must still be those of the weights.
        if [self.config, self.preprocessing] != [_plain(clip.config), _plain(clip.preprocessing)]:
            try:
                config = cattrs.structure(self.config, ClipConfig)
                preprocessing = cattrs.structure(self.preprocessing, Preprocessing)
                shapes = [jax.tree.map(np.shape, tree) for tree in (abstract_params(config), clip.params)]
            except Exception as error:  # cattrs raises groups of errors
                raise ClipbiasError(f"the adapter's geometry or preprocessing cannot be read ({error!r}).") from error
            if shapes[0] != shapes[1]:
                raise ClipbiasError(f"the adapter's geometry is not that of its weights, {clip.name!r}; it is damaged.")
            clip = dataclasses.replace(clip, config=config, preprocessing=preprocessing, published=clip.fingerprint)
        name = self.method if self.method in METHODS else match_user_method(self.method, own_methods)
        method = make_method(name, **self.options)
        calibration = self.calibration
        # A warning, not an error: an edited program may still predict the same. Its scores are another program's.
        if self.source != source_digest(type(method)):
            warnings.warn(
                f"{name} or a module that it imports was changed since this adapter was trained: its predictions may "
                "be others, and it has no calibration.",
                ClipbiasWarning,
                stacklevel=2,
            )
            calibration = None
        task = Task(clip, method, self.classes, method_name=name, dtype=dtype or self.dtype)
        _check_shapes(flatten(self.learnables), task, self.method)
        # Last, behind the checks with a more precise message. A header that was edited by hand may fit all of them.
        if self.sha256 != self.content:
            raise ClipbiasError("the adapter is not as it was written; save the model again.")
        return Tuned(task, self.learnables, self.notes, calibration)


def _header_types() -> dict[str, Any]:
    # The fields of the dataclass are the header: a new one is written, read, checked and hashed by being there.
    return {name: kind for name, kind in annotations(Adapter).items() if name not in ("learnables", _CALIBRATION)}


def _plain(value: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(value)))


def start_seed(notes: Mapping[str, Any]) -> int:
    """The seed that the learnables of an adapter with these notes started from; 0 where it is not known."""
    return next(seed for seed in (notes.get("start_seed"), notes.get("seed"), 0) if isinstance(seed, int))


def write_adapter(path: str | os.PathLike, model: Tuned) -> None:
    """Writes a tuned model to a `.safetensors` file, atomically. Raises `ClipbiasError` for what no reader accepts."""
    if data_path(path).suffix.lower() != ".safetensors":
        raise ClipbiasError(f"{path} is no name of an adapter's file; give a path that ends with .safetensors.")
    # Checked as when it is read: a file that `read_adapter` refuses must not be written.
    adapter = Adapter.of(model)
    leaves = dict(adapter.learnables)
    if adapter.calibration is not None:
        leaves[_CALIBRATION] = adapter.calibration.arrays()
    tensors = {name: np.array(leaf, order="C") for name, leaf in flatten(leaves).items()}
    _check_finite(tensors, "cannot save the adapter")
    header = {field: getattr(adapter, field) for field in _header_types()}
    try:
        # `allow_nan`: a NaN in the notes would make a header that no JSON reader accepts.
        text = json.dumps({"format": ADAPTER_FORMAT, **header}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ClipbiasError(
            f"cannot save the adapter: its notes and options must be JSON values ({error}); convert them."
        ) from error
    write_tensors(path, tensors, {"clipbias": text})


def read_adapter(path: str | os.PathLike) -> Adapter:
    """Reads an adapter from its file, or from a folder or a repository of the hub with an `adapter.safetensors`.

    Raises `ClipbiasError` where it is missing, damaged, no adapter, or of another format.
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
    if header.get("format") != ADAPTER_FORMAT:
        raise ClipbiasError(f"{path} has format {header.get('format')!r}; this clipbias reads format {ADAPTER_FORMAT}.")
    try:
        scores = learnables.pop(_CALIBRATION, None)
        calibration = None if scores is None else Calibration.read(scores)
        fields = {field: header.get(field) for field in _header_types()}
        adapter = Adapter(learnables=learnables, calibration=calibration, **fields)
        # Python's JSON reader accepts NaN and Infinity, which are no JSON.
        json.dumps(header, allow_nan=False)
    except ValueError as error:  # `ClipbiasError` among them
        raise ClipbiasError(f"{path} is damaged: {error}") from error
    _check_finite(tensors, f"{path} is damaged")
    return adapter


def _find(source: str | os.PathLike) -> Path:
    # A folder or file on the disk wins over a repository of the same name.
    path = user_path(source)
    if (path / ADAPTER_FILE).is_file():
        return path / ADAPTER_FILE
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
    return hub.download(name, ADAPTER_FILE)


def _check_shapes(arrays: Mapping[str, Array], task: Task, method: str) -> None:
    leaves = flatten(task.shapes)
    expected = {name: leaf.shape for name, leaf in leaves.items()}
    shapes = {name: np.shape(leaf) for name, leaf in arrays.items()}
    # An axis of length 0 in the task's shapes stands for any length (a cache of training images). A scalar may have
    # become a number for each class (`MMRL.transfer`).
    fits = expected.keys() == shapes.keys() and all(
        (len(shape) == len(shapes[name]) and all(a in (0, b) for a, b in zip(shape, shapes[name], strict=True)))
        or (shape, shapes[name]) == ((), (len(task.class_names),))
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
    # Only constants may be whole numbers, as labels of keys are.
    for name, values in arrays.items():
        whole = name.split(SEPARATOR)[0] == CONSTANTS and values.dtype.kind in "biu"
        if not whole and not (_is_floating(values) and np.isfinite(values).all()):
            raise ClipbiasError(f"{message}: {name!r} has values that are not finite numbers.")


def _is_floating(array: Array | jax.ShapeDtypeStruct) -> bool:
    return bool(jax.numpy.issubdtype(array.dtype, jax.numpy.floating))
