"""A tuned method as one small file: its learnables and everything needed to use them again.

The file is safetensors: tensors named by their path in the learnables, and one metadata entry `clipbias`, a JSON
object. Nothing in it is executed, and nothing that it names: a method of a user's own is named again by whoever uses
the file.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipbias.checks import Count, check_int, check_value
from clipbias.clip import Clip, hub
from clipbias.clip.tensors import open_safetensors_file
from clipbias.errors import ClipbiasError
from clipbias.io import parse_json, user_path, write_tensors
from clipbias.terminal import printable
from clipbias.tuning.descriptions import Descriptions
from clipbias.tuning.learnables import SEPARATOR, flatten, unflatten
from clipbias.tuning.method import CONSTANTS, Learnables
from clipbias.tuning.registry import METHODS, make_method, own_method
from clipbias.tuning.task import Task
from clipbias.tuning.transfer import transfer

# Raised when a file changes in a way that earlier code would misread. `load_adapter` then turns the header of each
# earlier format into the present one, field by field, and never drops one: adapters outlive the code that wrote them.
# Format 2 has constants, which may be whole numbers, or descriptions; files without them are written in format 1.
FORMAT = 2
# What the file is called in a folder or a repository of its own.
FILE = "adapter.safetensors"
# What the header of a file must hold, and what notes hold if they are given.
HEADER: Mapping[str, Any] = {
    **dict.fromkeys(("method", "template", "base", "base_fingerprint"), str),
    **{"options": dict[str, Any], "class_names": list[str], "notes": dict[str, Any]},
}
NOTES: Mapping[str, Any] = {"dataset": str, "shots": Count, "seed": Count, "accuracy": float}
DIGEST = "sha256"  # of all the rest; earlier versions wrote none


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What an adapter file holds.

    Attributes:
      learnables: the tuned arrays.
      method: name of the method; options: its options.
      class_names, template: of the dataset it was trained on.
      descriptions: texts of each class that its classifier is made of in place of the template, if it is.
      base: what the frozen model is loaded from, a hub model at its commit; base_fingerprint: SHA-256 of its weights.
      notes: anything else worth keeping, such as dataset, shots, seed and accuracy.
    """

    learnables: Learnables
    method: str
    options: Mapping[str, Any]
    class_names: tuple[str, ...]
    template: str
    base: str
    base_fingerprint: str
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    descriptions: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        """Raises `ClipbiasError` for notes that are not what their names say, whoever makes an adapter of them."""
        check_value("the notes of an adapter", self.notes, dict[str, Any])
        for name, kind in NOTES.items():
            check_value(name, self.notes.get(name), kind | None)

    def task(
        self,
        clip: Clip,
        class_names: Sequence[str] | None = None,
        *,
        own_methods: Sequence[str] = (),
        **task_options: Any,
    ) -> Task:
        """The task of this adapter's learnables on its base model, for its own classes or others.

        Arguments as in `bind`.

        Raises:
          ClipbiasError: as in `bind`; or the learnables for these classes are others, which `bind` returns.
        """
        task, learnables = self.bind(clip, class_names, own_methods=own_methods, **task_options)
        if learnables is not self.learnables and not _equal(flatten(learnables), flatten(self.learnables)):
            raise ClipbiasError(
                f"what {self.method!r} learned becomes something else for other classes such as "
                f"{task.class_names[0]!r}; take both with `task, learnables = adapter.bind(clip, class_names)`."
            )
        return task

    def bind(
        self,
        clip: Clip,
        class_names: Sequence[str] | None = None,
        *,
        own_methods: Sequence[str] = (),
        descriptions: Descriptions | Mapping[str, Sequence[str]] | None = None,
        free_text: bool = False,
        **task_options: Any,
    ) -> tuple[Task, Learnables]:
        """The task of this adapter on its base model, for its own classes or others, and the learnables for it.

        The learnables are the adapter's own, unless the method makes others of them for other classes.

        Args:
          clip: the model it was trained on.
          class_names: `None` for the classes of training.
          own_methods: files or modules that an adapter of a method of one's own may take it from (see
            `tuning.registry.own_method`).
          descriptions: texts by class name in place of those that the adapter holds, such as of other classes.
          free_text: whether `class_names` are texts of any kind (see `Task`).
          **task_options: more arguments of `Task`.

        Raises:
          ClipbiasError: `clip` is another model, the learnables belong to the classes of training, or the method is a
            program that `own_methods` does not name.
        """
        if clip.fingerprint != self.base_fingerprint:
            raise ClipbiasError(
                f"this adapter was trained on {self.base!r} (weights {printable(self.base_fingerprint[:12])}) and does "
                f"not fit {clip.name!r} (weights {clip.fingerprint[:12]}); load its own base model."
            )
        method = make_method(own_method(self.method, own_methods), **self.options)
        stored = None if self.descriptions is None else Descriptions(self.descriptions, "the adapter's descriptions")
        own = Task(clip, method, self.class_names, template=self.template, descriptions=stored, **task_options)
        _check_shapes(flatten(self.learnables), own, self.method)
        class_names = self.class_names if class_names is None else tuple(class_names)
        if class_names == self.class_names and descriptions is None and not free_text:
            return own, self.learnables
        task_options |= dict(template=self.template, descriptions=descriptions, free_text=free_text)
        if descriptions is None and not free_text:
            task_options["descriptions"] = stored
        task = Task(clip, method, class_names, **task_options)
        return task, transfer(own, task, self.learnables)


def save_adapter(
    path: str | os.PathLike,
    task: Task,
    learnables: Learnables,
    *,
    method: str | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes an adapter file, atomically.

    Args:
      path: a `.safetensors` file.
      task: what was trained.
      learnables: of one run.
      method: the name that `make_method` knows the method by; `None` takes the name that the task was made with.
      notes: JSON values to keep beside it.

    Raises:
      ClipbiasError: `load_adapter` or `Adapter.task` would refuse the file, or it cannot be written.
    """
    write_adapter(path, make_adapter(task, learnables, method=method, notes=notes))


def make_adapter(
    task: Task, learnables: Learnables, *, method: str | None = None, notes: Mapping[str, Any] | None = None
) -> Adapter:
    """An adapter of what a task learned; arguments and errors as for `save_adapter`."""
    method = task.method_name if method is None else method
    _check_method(method, task)
    tensors = {name: np.asarray(leaf) for name, leaf in flatten(learnables).items()}
    _check_shapes(tensors, task, method)
    for name in _no_numbers(tensors):
        raise ClipbiasError(f"cannot save the adapter: {name!r} holds what are not finite numbers.")
    return Adapter(
        learnables=learnables,
        method=method,
        options=task.options(),
        class_names=task.class_names,
        template=task.template,
        base=task.clip.source,
        base_fingerprint=task.clip.fingerprint,
        notes=notes or {},
        descriptions=task.descriptions,
    )


def write_adapter(path: str | os.PathLike, adapter: Adapter) -> None:
    """Writes an adapter's file, atomically. Raises `ClipbiasError` where its notes or options are no JSON values."""
    header = {field.name: getattr(adapter, field.name) for field in dataclasses.fields(adapter)}
    tensors = {name: np.array(leaf, order="C") for name, leaf in flatten(header.pop("learnables")).items()}
    if adapter.descriptions is None:
        del header["descriptions"]
    version = FORMAT if any(map(_is_constant, tensors)) or "descriptions" in header else 1
    header = {"format": version, **header, "notes": dict(adapter.notes)}
    try:
        plain = json.loads(json.dumps(header, allow_nan=False))
        text = json.dumps({**header, DIGEST: _digest(plain, tensors)})
    except (TypeError, ValueError, RecursionError) as error:
        raise ClipbiasError(
            f"cannot save the adapter: its notes and options must be JSON values ({error}); convert them."
        ) from error
    write_tensors(path, tensors, {"clipbias": text})


def load_adapter(path: str | os.PathLike) -> Adapter:
    """Reads an adapter.

    Args:
      path: its file, a folder that holds it as `adapter.safetensors` (a work folder, an export), or a repository of the
        Hugging Face hub, "owner/name" or "owner/name@revision", that does.

    Raises:
      ClipbiasError: no such file, or it is damaged, not an adapter, or of a later format; or it cannot be downloaded.
    """
    path = _find(path)
    with open_safetensors_file(path) as file:
        metadata = (file.metadata() or {}).get("clipbias")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    try:
        found = parse_json(metadata or "null", dict)
        digest = found.pop(DIGEST, None)
        learnables = unflatten(tensors)
    except ValueError as error:
        raise ClipbiasError(f"{path} is not a clipbias adapter; it lacks a readable 'clipbias' header.") from error
    version = check_int(f"{path} is damaged: its format", found.get("format"), lowest=1)
    if version > FORMAT:
        raise ClipbiasError(f"{path} has format {version}; this clipbias reads up to {FORMAT}: upgrade it.")
    header = _check_header(found, path)
    adapter = Adapter(
        learnables=learnables,
        method=header["method"],
        options=dict(header["options"]),
        class_names=tuple(header["class_names"]),
        template=header["template"],
        base=header["base"],
        base_fingerprint=header["base_fingerprint"],
        notes=dict(header["notes"]),
        descriptions=header.get("descriptions"),
    )
    if adapter.descriptions is not None:
        Descriptions(adapter.descriptions, f"{path} is damaged: its descriptions").of(adapter.class_names)
    for name in _no_numbers(tensors):
        raise ClipbiasError(f"{path} is damaged: {name!r} holds what are not finite numbers; tune it again.")
    if digest not in (None, _digest(found, tensors)):
        raise ClipbiasError(f"{path} is damaged: it is not as it was written; tune it again, or copy it anew.")
    return adapter


def _digest(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """Of a header in JSON's own types and arrays by name."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        values = np.asarray(tensors[name], order="C")
        found.update(f"{name} {values.shape} {values.dtype}".encode() + values.tobytes())
    return found.hexdigest()


def _find(source: str | os.PathLike) -> Path:
    """The adapter's file, downloaded if it has to be."""
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


def _check_header(header: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    try:
        for name, kind in HEADER.items():
            if header.get(name) is None:
                raise ClipbiasError(f"it has no {name!r}.")
            check_value(name, header[name], kind)
        for name, kind in NOTES.items():
            check_value(name, header["notes"].get(name), kind | None)
        check_value("descriptions", header.get("descriptions"), dict[str, list[str]] | None)
        json.dumps(header, allow_nan=False)
    except ValueError as error:
        raise ClipbiasError(f"{path} is damaged: {error}") from error
    return header


def _check_method(method: str, task: Task) -> None:
    """Raises `ClipbiasError` for a name that does not make the method of `task` again.

    A program's name is taken as it is: whoever uses the file names the program again, wherever it then lies.
    """
    where, _, attribute = method.partition(":")
    if method in METHODS:
        if type(task.method) is not METHODS[method][0]:
            raise ClipbiasError(
                f"cannot save the adapter: the method of its task is {type(task.method).__name__}, not {method!r}; "
                "give the name that the task was made with."
            )
    elif not attribute and "." not in where:
        raise ClipbiasError(
            f"cannot save the adapter: there is no method {method!r}; give a name of {', '.join(METHODS)}, or the file "
            "of the method."
        )


def _check_shapes(arrays: Mapping[str, Any], task: Task, method: str) -> None:
    """Raises `ClipbiasError` unless `arrays`, by path, are what `method` learns for `task`."""
    leaves = flatten(task.shapes)
    expected = {name: leaf.shape for name, leaf in leaves.items()}
    found = {name: np.shape(leaf) for name, leaf in arrays.items()}
    # An axis of length 0 stands for one of any length.
    fits = expected.keys() == found.keys() and all(
        len(shape) == len(found[name]) and all(a in (0, b) for a, b in zip(shape, found[name], strict=True))
        for name, shape in expected.items()
    )
    if not fits:
        raise ClipbiasError(f"the adapter's arrays {found} are not those of method {method!r}, {expected}.")
    for name, leaf in leaves.items():
        if _is_floating(leaf) != _is_floating(arrays[name]):
            raise ClipbiasError(
                f"the adapter's array {name!r} holds {arrays[name].dtype} and not {leaf.dtype}, as method {method!r} "
                "has it."
            )


def _no_numbers(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the arrays that hold something else than finite floating-point numbers, or constant whole ones."""
    return [
        name
        for name, value in arrays.items()
        if not (np.isfinite(value).all() if _is_floating(value) else _is_constant(name) and value.dtype.kind in "biu")
    ]


def _is_constant(name: str) -> bool:
    return name.split(SEPARATOR)[0] == CONSTANTS


def _is_floating(array: Any) -> bool:
    return bool(jax.numpy.issubdtype(array.dtype, jax.numpy.floating))


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
