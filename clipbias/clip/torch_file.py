"""Tensors in PyTorch's own files (`.bin`, `.pt`), read without PyTorch and without running anything.

Such a file is a zip archive: `data.pkl` describes the tensors as a pickle, and `data/0`, `data/1`, … hold the numbers
as they lie in memory, not compressed. `torch.jit.save` writes the same with objects of classes of its own around them.
"""

import contextlib
import dataclasses
import functools
import math
import re
import shlex
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from clipbias.clip.tensors import FLOATING, Contents, Tensor
from clipbias.clip.unpickle import Name, Record, unpickle
from clipbias.errors import ClipbiasError
from clipbias.io import check_file, reason, shorten

STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
}
UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")  # of types newer than these: float8 and others
TYPE = re.compile(r"torch\.(float|bfloat|u?int|complex|bool)\w*")
OLD_FORMAT = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
POINTER = b"version https://git-lfs"

ENCRYPTED = 1  # a flag of members of zip archives

MOST_DIMENSIONS, MOST_TENSORS, MOST_LEVELS = 8, 100_000, 64
MOST_SHARING = 4  # how often the numbers of a file may be used by its tensors, on average


@dataclasses.dataclass(frozen=True)
class Storage:
    """One member of the archive: its name, NumPy's name of its type, and how many numbers it holds."""

    member: str
    dtype: str
    count: int


@contextlib.contextmanager
def open_torch(path: Path) -> Iterator[Contents]:
    """The tensors of a file that `torch.save` or `torch.jit.save` wrote, to be read while the block runs.

    A training checkpoint's `{"state_dict": …}` and the prefix `module.` of its names are taken off.

    Raises:
      ClipbiasError: it is no such file, it is damaged, or it holds more than tensors.
    """
    check_file(path)
    with contextlib.ExitStack() as stack:
        with _reading(path):
            archive = stack.enter_context(_open_zip(path))
            found = _describe(archive, path)
        yield found


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file leads to into one sentence about it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the pickle reader, about bytes that are no text
            yield
    except ClipbiasError as error:
        raise ClipbiasError(f"{path} is not read: {error}.") from error
    except (ValueError, OSError, EOFError, struct.error, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        words = shorten(reason(error), 200)
        raise ClipbiasError(f"{path} is damaged or no PyTorch file of weights ({words}); fetch it again.") from error


def _open_zip(path: Path) -> zipfile.ZipFile:
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(OLD_FORMAT):
        code = f"import torch; p = {str(path)!r}; torch.save(torch.load(p, map_location='cpu', weights_only=True), p)"
        raise ClipbiasError(
            "it has the format of PyTorch before 1.6; where torch is installed, this rewrites it: "
            f"python -c {shlex.quote(code)}"
        )
    if start.startswith(POINTER):
        raise ClipbiasError("it is a Git LFS pointer instead of the file itself; run `git lfs pull` there")
    return zipfile.ZipFile(path)


def _describe(archive: zipfile.ZipFile, path: Path) -> Contents:
    size = path.stat().st_size
    members = {info.filename: info for info in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise ValueError("it holds two members of one name")
    described = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(described) != 1:
        raise ValueError("it holds no data.pkl")
    folder = described[0].removesuffix("data.pkl")

    def content(member: str) -> bytes:
        info = members.get(member)
        if info is None:
            raise ValueError(f"it lacks the member {shorten(ascii(member))}")
        plain = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & ENCRYPTED
        if not plain or not info.file_size == info.compress_size <= size:
            raise ValueError(f"its member {shorten(ascii(member))} is compressed or encrypted, as PyTorch's never are")
        return archive.read(info)

    if f"{folder}byteorder" in members and content(f"{folder}byteorder") != b"little":
        raise ValueError("its numbers are not in little-endian order")
    last_read = functools.lru_cache(maxsize=1)(content)  # tensors that share a storage follow one another

    def stored(key: Any) -> Storage:
        word, kind, name, _, count = key
        # Before any is made a text, which Python cannot do with what is nested deeply.
        described = isinstance(kind, Name) and isinstance(name, str) and _whole(count)
        dtype = None if not described else "bytes" if str(kind) in UNTYPED else STORAGES.get(str(kind))
        if word != "storage" or dtype is None:
            raise ValueError("a storage is not described as PyTorch does it")
        return Storage(f"{folder}data/{name}", dtype, count)

    def tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
        if not isinstance(storage, Storage) or not _whole(offset, *shape, *strides) or len(shape) != len(strides):
            raise ValueError("a tensor is not described as PyTorch does it")
        other = [
            str(value).removeprefix("torch.")
            for value in rest
            if isinstance(value, Name) and TYPE.fullmatch(str(value))
        ]
        if storage.dtype == "bytes" or other:
            return Tensor(tuple(shape), (other or ["bytes"])[0], lambda: _no_numbers())
        width = jnp.dtype(storage.dtype).itemsize
        info = members.get(storage.member)
        if info is None or info.file_size != storage.count * width:
            raise ValueError(f"its member {shorten(ascii(storage.member))} has another length than it is said to have")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        total = math.prod(shape)
        if len(shape) > MOST_DIMENSIONS or (total and last >= storage.count) or total > storage.count:
            raise ValueError("a tensor reaches beyond its numbers")

        def read() -> np.ndarray:
            with _reading(path):
                numbers = np.frombuffer(last_read(storage.member), jnp.dtype(storage.dtype))
            return np.lib.stride_tricks.as_strided(
                numbers[offset:], shape, [step * width for step in strides], writeable=False
            )

        return Tensor(tuple(shape), storage.dtype, read)

    value = unpickle(
        content(described[0]),
        functions={
            "collections.OrderedDict": lambda: {},
            "torch._utils._rebuild_tensor": tensor,
            "torch._utils._rebuild_tensor_v2": tensor,
            "torch._utils._rebuild_tensor_v3": tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            **{f"torch.jit._pickle.build_{kind}list": list for kind in ("int", "double", "bool", "tensor")},
            "torch.jit._pickle.restore_type_tag": lambda data, _: data,
        },
        is_data=lambda name: str(name) in STORAGES or str(name) in UNTYPED or bool(TYPE.fullmatch(str(name))),
        is_class=lambda name: name.module == "__torch__" or name.module.startswith("__torch__."),
        stored=stored,
    )
    found = Contents(*_flatten(value))
    used = sum(
        math.prod(tensor.shape) * jnp.dtype(tensor.dtype).itemsize
        for tensor in found.tensors.values()
        if tensor.dtype in FLOATING
    )
    held = sum(info.file_size for name, info in members.items() if name.startswith(f"{folder}data/"))
    if used > MOST_SHARING * min(held, size):
        raise ValueError("its tensors hold more numbers than the file")
    return found


def _no_numbers() -> np.ndarray:
    raise ValueError("NumPy has no such type")


def _whole(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2**62 for value in values)


def _flatten(value: Any) -> tuple[dict[str, Tensor], frozenset[str]]:
    """The tensors in nested dictionaries and records, by their names joined with dots; and the records' classes."""
    if isinstance(value, dict):
        for wrapper in ("state_dict", "model_state_dict", "model"):
            if isinstance(value.get(wrapper), dict):
                value = value[wrapper]
                break
    tensors: dict[str, Tensor] = {}
    classes: set[str] = set()
    visited = 0

    def visit(part: Any, path: tuple[str, ...]) -> None:
        nonlocal visited
        visited += 1
        if visited > MOST_TENSORS or len(path) > MOST_LEVELS:
            raise ValueError("its content is nested beyond measure")
        if isinstance(part, Tensor):
            tensors[".".join(path)] = part
            return
        if isinstance(part, Record):
            classes.add(str(part.kind))
            part = part.state
        if isinstance(part, dict):
            for name, inner in part.items():
                visit(inner, (*path, str(name)))

    visit(value, ())
    for prefix in ("module.", "_orig_mod.", "module."):  # of wrappers around wrappers, in either order
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if not tensors or "" in tensors:
        raise ClipbiasError("it holds no tensors by name, as a model's `state_dict` does")
    return tensors, frozenset(classes)
