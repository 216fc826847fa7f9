"""Tensors as they lie in checkpoint files: names, shapes and types at once, numbers one tensor at a time."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.io import check_file, read_json, shorten

FLOATING = ("bfloat16", "float16", "float32", "float64")
LONGEST_NAME = 4096  # letters of a tensor's name; a hostile file's nested names would fill the memory
SAFETENSORS_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file that is open.

    Attributes:
      shape: its shape.
      dtype: NumPy's name of its type, or the file format's where NumPy has none.
      read: returns its numbers. Only for the types in `FLOATING`.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[dict[str, Tensor]]:
    """The tensors of a safetensors file, to be read while the block runs."""
    with open_safetensors_file(path) as file:
        tensors = {}
        for name in file.keys():  # noqa: SIM118 (not a dictionary)
            part = file.get_slice(name)
            dtype = SAFETENSORS_TYPES.get(part.get_dtype(), part.get_dtype())
            tensors[name] = Tensor(tuple(part.get_shape()), dtype, functools.partial(_read, path, name))
    yield tensors


def _read(path: Path, name: str) -> np.ndarray:
    # A file that stays mapped counts as memory once more as it is read, so it is opened anew for each tensor.
    with open_safetensors_file(path) as file:
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
        outside = [name for name in names if Path(name).name != name or "\0" in name]
    except (KeyError, AttributeError, TypeError) as error:
        raise ClipbiasError(f"{index} is not an index of shards; fetch it again.") from error
    if outside:
        raise ClipbiasError(f"{index} names {shorten(outside[0])!r}, which is not a file of that folder.")
    return names
