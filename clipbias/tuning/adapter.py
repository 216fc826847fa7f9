"""A tuned method as one small file: its learnables and everything needed to use them again.

The file is safetensors: tensors named by their path in the learnables, and one metadata entry `clipbias`, a JSON
object. Nothing in it is executed, and nothing that it names: a method of a user's own is named again by whoever uses
the file.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clipbias.clip import Clip
from clipbias.clip.checkpoint import open_weights
from clipbias.errors import ClipbiasError
from clipbias.files import parse_json, user_path, write_tensors
from clipbias.tuning.method import Learnables
from clipbias.tuning.registry import make_method, own_method
from clipbias.tuning.task import Task
from clipbias.tuning.transfer import transfer

# Raised when a file changes in a way that earlier code would misread. `load_adapter` then turns the header of each
# earlier format into the present one, field by field, and never drops one: adapters outlive the code that wrote them.
FORMAT = 1
SEPARATOR = "/"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What an adapter file holds.

    Attributes:
      learnables: the tuned arrays.
      method: name of the method; options: its options.
      class_names, template: of the dataset it was trained on.
      base: what the frozen model was loaded from; base_fingerprint: SHA-256 of its weights.
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

    def task(
        self,
        clip: Clip,
        class_names: Sequence[str] | None = None,
        *,
        own_methods: Sequence[str] = (),
        **task_options: Any,
    ) -> Task:
        """The task of this adapter on its base model, for its own classes or others.

        Args:
          clip: the model it was trained on.
          class_names: `None` for the classes of training.
          own_methods: files or modules that an adapter of a method of one's own may take it from (see
            `tuning.registry.own_method`).
          **task_options: more arguments of `Task`.

        Raises:
          ClipbiasError: `clip` is another model, the learnables belong to the classes of training, or the method is a
            program that `own_methods` does not name.
        """
        if clip.fingerprint != self.base_fingerprint:
            raise ClipbiasError(
                f"this adapter was trained on {self.base!r} (weights {self.base_fingerprint[:12]}) and does not fit "
                f"{clip.name!r} (weights {clip.fingerprint[:12]}); load its own base model."
            )
        method = make_method(own_method(self.method, own_methods), **self.options)
        own = Task(clip, method, self.class_names, template=self.template, **task_options)
        expected = {name: leaf.shape for name, leaf in flatten(own.shapes).items()}
        found = {name: np.shape(leaf) for name, leaf in flatten(self.learnables).items()}
        if expected != found:
            raise ClipbiasError(f"the adapter's arrays {found} are not those of method {self.method!r}, {expected}.")
        if class_names is None or tuple(class_names) == self.class_names:
            return own
        task = Task(clip, method, class_names, template=self.template, **task_options)
        transfer(own, task, self.learnables)  # refuses what was learned for each class
        return task


def save_adapter(
    path: str | os.PathLike, task: Task, learnables: Learnables, *, method: str, notes: Mapping[str, Any] | None = None
) -> None:
    """Writes an adapter file, atomically.

    Args:
      path: a `.safetensors` file.
      task: what was trained.
      learnables: of one run.
      method: the name that `make_method` knows the method by.
      notes: JSON values to keep beside it.
    """
    header = {
        "format": FORMAT,
        "method": method,
        "options": task.options(),
        "class_names": task.class_names,
        "template": task.template,
        "base": task.clip.name,
        "base_fingerprint": task.clip.fingerprint,
        "notes": dict(notes or {}),
    }
    tensors = {name: np.array(leaf, order="C") for name, leaf in flatten(learnables).items()}
    write_tensors(path, tensors, {"clipbias": json.dumps(header)})


def load_adapter(path: str | os.PathLike) -> Adapter:
    """Reads an adapter file.

    Raises:
      ClipbiasError: no such file, or it is damaged, not an adapter, or of a later format.
    """
    path = user_path(path)
    if not path.is_file():
        raise ClipbiasError(f"no adapter file {path}.")
    with open_weights(path) as file:
        metadata = (file.metadata() or {}).get("clipbias")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    try:
        header = parse_json(metadata or "null", dict)
        version = header["format"]
        if version > FORMAT:
            raise ClipbiasError(f"{path} has format {version}; this clipbias reads up to {FORMAT}: upgrade it.")
        texts = {name: header[name] for name in ("method", "template", "base", "base_fingerprint")}
        names = header["class_names"]
        if not isinstance(names, list) or not all(isinstance(text, str) for text in (*names, *texts.values())):
            raise TypeError("a text is of another type")
        adapter = Adapter(
            learnables=unflatten(tensors),
            class_names=tuple(names),
            options=dict(header["options"]),
            notes=dict(header["notes"]),
            **texts,
        )
    except ClipbiasError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ClipbiasError(f"{path} is not a clipbias adapter; it lacks a readable 'clipbias' header.") from error
    for name, value in tensors.items():
        if not jax.numpy.issubdtype(value.dtype, jax.numpy.floating) or not np.isfinite(value).all():
            raise ClipbiasError(f"{path} is damaged: {name!r} holds what are not finite numbers; tune it again.")
    return adapter


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of nested dictionaries by their path, as in the file: `{"a": {"b": x}}` to `{"a/b": x}`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {SEPARATOR.join(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in leaves}


def unflatten(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in tensors.items():
        *parents, last = name.split(SEPARATOR)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name!r} lies inside another array")
        if last in node:
            raise ValueError(f"{name!r} holds other arrays")
        node[last] = value
    return tree
