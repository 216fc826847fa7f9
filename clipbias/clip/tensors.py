"""Tensors as they lie in checkpoint files: names, shapes and types at once, numbers one tensor at a time."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.io import check_file, read_json, shorten

FLOATING = ("bfloat16", "float16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file that is open.

    Attributes:
      shape: its shape.
      dtype: NumPy's name of its type, or the file format's own where NumPy has none.
      read: returns its numbers; nothing is read before. Only for the types in `FLOATING`.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file of weights holds.

    Attributes:
      tensors: by name.
      classes: the names of the classes around them, where it is a TorchScript archive.
    """

    tensors: dict[str, Tensor]
    classes: frozenset[str] = frozenset()


SAFETENSORS_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@contextlib.contextmanager
def open_safetensors(paths: Sequence[Path]) -> Iterator[dict[str, Tensor]]:
    """The tensors of safetensors files, to be read while the block runs."""
    tensors = {}
    for path in paths:
        with open_safetensors_file(path) as file:
            state = os.stat(path)
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                part = file.get_slice(name)
                dtype = SAFETENSORS_TYPES.get(part.get_dtype(), part.get_dtype())
                tensors[name] = Tensor(tuple(part.get_shape()), dtype, functools.partial(_read, path, state, name))
    yield tensors


def _read(path: Path, state: os.stat_result, name: str) -> np.ndarray:
    # A file that stays mapped counts as memory once more as it is read, so it is opened anew for each tensor.
    with open_safetensors_file(path) as file:
        now = os.stat(path)
        if not os.path.samestat(now, state) or now.st_mtime_ns != state.st_mtime_ns:
            raise ClipbiasError(f"{path} was changed while it was read; load it again.")
        return file.get_tensor(name)


@contextlib.contextmanager
def open_safetensors_file(path: Path) -> Iterator[Any]:
    """Opens a safetensors file memory-mapped. Raises `ClipbiasError` for a damaged one."""
    import safetensors

    check_file(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise ClipbiasError(f"{path} is damaged or incomplete ({error}); fetch it again.") from error


def shard_names(index: Path) -> list[str]:
    """The files that the index of a sharded checkpoint (`*.index.json`) names; they need not be there.

    Raises:
      ClipbiasError: it is no index, or it names a file elsewhere.
    """
    try:
        names = sorted(set(read_json(index, dict, what="an index of shards")["weight_map"].values()))
        inside = [Path(name).name == name and "\0" not in name for name in names]
    except (KeyError, AttributeError, TypeError) as error:
        raise ClipbiasError(f"{index} is not an index of shards; fetch it again.") from error
    for name, is_inside in zip(names, inside, strict=True):
        if not is_inside:
            raise ClipbiasError(f"{index} names {shorten(name)!r}, which is not a file of that folder.")
    return names


def shards(index: Path) -> list[Path]:
    """The paths of these files. Raises `ClipbiasError` as `shard_names`, and where one is not there."""
    paths = [index.parent / name for name in shard_names(index)]
    for path in paths:
        check_file(path, missing=f"{index.parent} lacks the shard {shorten(path.name)}; fetch it again.")
    return paths
