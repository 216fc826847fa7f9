"""Tensors of checkpoint files: safetensors, PyTorch's `.bin` and `.pt`, Flax's msgpack.

Names, shapes and types are read at once, numbers one tensor at a time. PyTorch's files are read without PyTorch, and no
code in them runs.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import math
import pickle
import shlex
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict

from clipbias.errors import ClipbiasError
from clipbias.io import check_file, read_json, reason, shorten

FLOATING = ("bfloat16", "float16", "float32", "float64")
MAX_NAME_LENGTH = 4096  # letters of a tensor's name; a hostile file's nested names would fill the memory
SAFETENSORS_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of an open file."""

    shape: tuple[int, ...]
    dtype: str  # NumPy's name of the type, or the file format's if NumPy has none
    read: Callable[[], np.ndarray]  # only for the types in `FLOATING`


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[dict[str, Tensor]]:
    """Opens the tensors of a safetensors file."""

    def read(name: str) -> np.ndarray:
        # Pages of a mapped file count as memory as they are read, so it is opened anew for each tensor.
        with open_safetensors_file(path) as file:
            return file.get_tensor(name)

    with open_safetensors_file(path) as file:
        tensors = {}
        for name in file.keys():  # noqa: SIM118 (not a dictionary)
            part = file.get_slice(name)
            dtype = SAFETENSORS_TYPES.get(part.get_dtype(), part.get_dtype())
            tensors[name] = Tensor(tuple(part.get_shape()), dtype, functools.partial(read, name))
    yield tensors


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
    """Returns the files in the index of a sharded checkpoint. Raises `ClipbiasError` for files outside its folder."""
    try:
        # A name with a folder, or with NUL, could lead outside of the model's folder.
        names = sorted(set(read_json(index, dict, what="an index of shards")["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or "\0" in name]
    except (KeyError, AttributeError, TypeError) as error:
        raise ClipbiasError(f"{index} is not an index of shards; fetch it again.") from error
    if outside:
        raise ClipbiasError(f"{index} names {shorten(outside[0])!r}, which is not a file of that folder.")
    return names


# PyTorch's files.

TORCH_TYPES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64"}
TORCH_TYPES |= {"Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}
STORAGES = {f"torch.{name}Storage": dtype for name, dtype in TORCH_TYPES.items()}
ORDERED_DICT = "collections.OrderedDict"
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
# Functions that return their first argument.
WRAPPERS = (
    "torch._utils._rebuild_parameter",
    "torch.jit._pickle.restore_type_tag",
    *(f"torch.jit._pickle.build_{items}list" for items in ("int", "double", "bool", "tensor")),
)
SCRIPT_OBJECT = "__torch__"  # an object of TorchScript
STORAGE = "storage"  # a persistent id
OTHER_OBJECT = "object"  # of any other class
ALLOWED_NAMES = (*STORAGES, ORDERED_DICT, *TENSORS, *WRAPPERS)

# Pickle instructions that tensors in dictionaries need. Sets are left out: Python would hash their hostile members.
INSTRUCTIONS = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE,
    pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE,
    pickle.SHORT_BINUNICODE, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES,
    pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND,
    pickle.APPENDS, pickle.EMPTY_DICT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET,
    pickle.LONG_BINGET, pickle.BINPERSID, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.NEWOBJ,
    pickle.BUILD,
)  # fmt: skip
# Limits against hostile files.
MAX_DESCRIPTION = 2 << 20  # bytes of a pickle; a CLIP has about 0.1 MB, and each byte may take 80 in memory
MAX_PARTS = 100_000  # objects in a file
MAX_AXES = 8
MAX_SHARED = 4  # tensors that may share a number: a module and the model around it may both name it

OLD_FORMAT = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
LFS_POINTER = b"version https://git-lfs"
ENCRYPTED = 1  # a flag of members of zip archives


class PickledObject:
    """Inert stand-in for a function or class that a pickle names, with its arguments, items and attributes."""

    name: ClassVar[str] = ""

    def __new__(cls, *arguments: Any) -> "PickledObject":
        self = super().__new__(cls)
        self.arguments = arguments
        self.items = {}
        self.state = {}
        return self

    arguments: tuple[Any, ...]
    items: dict[str | int, object]
    state: object

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle._Unpickler):
    # A pickle is a program: it names functions to call. Here every name becomes an inert object, and names beyond
    # `ALLOWED_NAMES` are refused. The base class is Python's implementation of `pickle.Unpickler`: the one in C ends
    # the process, or fills the memory, on deeply nested keys and huge memo numbers.
    stack: list[object]  # attributes of the base class that its type stubs leave out
    pop_mark: Callable[[], list[object]]

    def __init__(self, content: bytes, *, skip_objects: bool = False) -> None:
        """With `skip_objects`, unknown classes are allowed, and items with keys besides texts and numbers dropped."""
        super().__init__(io.BytesIO(content))
        self.skip_objects = skip_objects
        names = (*ALLOWED_NAMES, SCRIPT_OBJECT, STORAGE, OTHER_OBJECT)
        self.types = {name: type("PickledObject", (PickledObject,), {"name": name}) for name in names}

    def load(self) -> object:
        try:
            return super().load()
        except KeyError as error:
            raise ValueError("it uses an instruction that no tensors need") from error

    def find_class(self, module: str, name: str) -> type[PickledObject]:
        full = f"{module}.{name}"
        if full in ALLOWED_NAMES or full.startswith(f"{SCRIPT_OBJECT}."):
            return self.types[full if full in ALLOWED_NAMES else SCRIPT_OBJECT]
        if self.skip_objects:
            return self.types[OTHER_OBJECT]
        raise ClipbiasError(
            f"it holds an object of {shorten(ascii(full)[1:-1])}, which no weights need; save the model's "
            "`state_dict()` alone"
        )

    def persistent_load(self, pid: object) -> PickledObject:
        return self.types[STORAGE](pid)

    def set_items(self, pairs: list[object]) -> None:
        top = self.stack[-1]
        target = top.items if isinstance(top, PickledObject) else top
        # Only texts and numbers may be keys: hashing a deeply nested tuple ends the process. An optimiser's state has
        # tensors as keys, so these items are dropped if objects are skipped.
        if self.skip_objects:
            has_plain_key = [isinstance(key, str | int) for key in pairs[::2] for _ in range(2)]
            pairs = [part for part, plain in zip(pairs, has_plain_key, strict=True) if plain]
        if type(target) is not dict or not all(isinstance(key, str | int) for key in pairs[::2]):
            raise ValueError("a dictionary has other keys than texts and numbers")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def load_setitem(self) -> None:
        self.set_items([self.stack.pop(-2), self.stack.pop()])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in INSTRUCTIONS},
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


@contextlib.contextmanager
def open_torch(path: Path, *, skip_objects: bool = False) -> Iterator[dict[str, Tensor]]:
    """Opens the tensors of a file of `torch.save` or `torch.jit.save`, without wrappers such as `{"state_dict": …}`.

    With `skip_objects`, objects beside the tensors, such as an optimiser, are skipped; they are never created. Raises
    `ClipbiasError` for another or damaged file, and for more than tensors.
    """
    # The file is a zip archive. Its `data.pkl` describes the tensors as a pickle; `data/0`, `data/1`, … hold their
    # numbers as in memory, not compressed. `torch.jit.save` wraps tensors in objects of its modules.
    check_file(path)
    with contextlib.ExitStack() as stack:
        with _reading(path):
            with open(path, "rb") as file:
                start = file.read(64)
            if start.startswith(OLD_FORMAT):
                code = "torch.save(torch.load(p, map_location='cpu', weights_only=True), p)"
                raise ClipbiasError(
                    "it has the format of PyTorch before 1.6; where torch is installed, this rewrites it: "
                    f"python -c {shlex.quote(f'import torch; p = {str(path)!r}; {code}')}"
                )
            if start.startswith(LFS_POINTER):
                raise ClipbiasError("it is a Git LFS pointer instead of the file itself; run `git lfs pull` there")
            archive = stack.enter_context(zipfile.ZipFile(path))
            # Overlapping members make a zip bomb: small on disk, endless to read.
            if sum(info.compress_size for info in archive.infolist()) > path.stat().st_size:
                raise ValueError("its members overlap")
            tensors = _describe(archive, path, skip_objects=skip_objects)
        yield tensors


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except ClipbiasError as error:
        raise ClipbiasError(f"{path} is not read: {error}.") from error
    except Exception as error:  # zipfile, pickle and NumPy raise many types for damaged files
        message = f"{path} is damaged or no PyTorch file of weights ({reason(error)}); fetch it again."
        raise ClipbiasError(message) from error


def _describe(archive: zipfile.ZipFile, path: Path, *, skip_objects: bool) -> dict[str, Tensor]:
    members = {info.filename: info for info in archive.infolist()}
    (description,) = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")] or [""]
    folder = description.removesuffix("data.pkl")

    def content(member: str, longest: int = path.stat().st_size) -> bytes:
        info = members.get(member)
        if info is None:
            raise ValueError(f"it lacks the member {shorten(ascii(member))}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ENCRYPTED:
            raise ValueError(f"its member {shorten(ascii(member))} is compressed or encrypted, as PyTorch's never are")
        if info.file_size > longest:
            raise ValueError(f"its member {shorten(ascii(member))} has {info.file_size:,} bytes")
        return archive.read(info)

    # Numbers are read as they lie in memory; on the other byte order they would be wrong without an error.
    if f"{folder}byteorder" in members and content(f"{folder}byteorder") != b"little":
        raise ValueError("its numbers are not in little-endian order")
    used: collections.Counter[str] = collections.Counter()
    last_read = functools.lru_cache(maxsize=1)(content)  # tensors of one storage follow one another

    def tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
        # Every number here comes from the file and goes into `as_strided`, which reads any address: all are checked.
        word, storage_type, key, _, count = storage.arguments[0]
        dtype = STORAGES[storage_type.name]
        member = f"{folder}data/{key}"
        whole = all(type(size) is int and 0 <= size < 2**62 for size in (count, offset, *shape, *strides))
        if word != "storage" or not isinstance(key, str) or not whole or len(shape) > MAX_AXES:
            raise ValueError("a tensor is not described as PyTorch does it")
        width = jnp.dtype(dtype).itemsize
        if member not in members or members[member].file_size != count * width:
            raise ValueError(f"its member {shorten(ascii(member))} has another length than it is said to have")
        # Strides may go beyond the storage or read a number many times: both are checked before any number is read.
        last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        total = math.prod(shape)
        if (total and last >= count) or total > count:
            raise ValueError("a tensor reaches beyond its numbers")
        # Few bytes on disk must not become many tensors in memory.
        used[member] += total
        if used[member] > MAX_SHARED * count:
            raise ValueError(f"tensors that share the member {shorten(ascii(member))} are many times as large as it is")

        def read() -> np.ndarray:
            with _reading(path):
                # A view: weights exist once, in the member's bytes.
                numbers = np.frombuffer(last_read(member), jnp.dtype(dtype))[offset:]
                return np.lib.stride_tricks.as_strided(numbers, shape, [step * width for step in strides])

        return Tensor(tuple(shape), dtype, read)

    return _flatten(_Unpickler(content(description, MAX_DESCRIPTION), skip_objects=skip_objects).load(), tensor)


def _flatten(value: object, tensor: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Returns the tensors in nested dictionaries, lists and objects, by their names joined with dots."""
    parts = 0
    tensors: dict[str, Tensor] = {}

    def plain(part: object) -> object:
        if not isinstance(part, PickledObject):
            return part
        if part.name in TENSORS:
            return tensor(*part.arguments)
        if part.name in WRAPPERS:
            return plain(part.arguments[0])
        return part.items if part.name == ORDERED_DICT else part.state

    def visit(part: object, name: str) -> None:
        nonlocal parts
        parts += 1
        # Names grow with nesting, and a pickle may nest one object in itself without end.
        if parts > MAX_PARTS or len(name) > MAX_NAME_LENGTH:
            raise ValueError("its content is nested beyond measure")
        part = plain(part)
        if isinstance(part, Tensor):
            tensors[name] = part
        # Lists, too, so that no tensor is dropped silently. Numbers and strings beside tensors are facts of a training,
        # such as its step; a weight that is missing is reported by its name.
        elif isinstance(part, dict | list | tuple):
            for key, inner in part.items() if isinstance(part, dict) else enumerate(part):
                visit(inner, f"{name}.{key}" if name else str(key))

    value = plain(value)
    if isinstance(value, dict):
        # Trainers wrap weights in a dictionary beside optimiser and epoch, under one of these names.
        states = [plain(value.get(name)) for name in ("state_dict", "model_state_dict", "model")]
        value = next((state for state in states if isinstance(state, dict)), value)
    visit(value, "")
    if not tensors or "" in tensors:
        raise ClipbiasError("it holds no tensors by name, as a model's `state_dict` does")
    # Wrappers of a model, and wrappers around these, give prefixes to all names; they come in either order.
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


# Flax's files: nested maps of names down to arrays.

FLAX_WEIGHTS = "flax_model.msgpack"


def read_flax(path: Path) -> dict[str, Tensor]:
    """Reads the arrays of a Flax msgpack file by their paths with "/". Raises `ClipbiasError` for another file."""
    check_file(path)
    try:
        tree = msgpack_restore(path.read_bytes())
        if not isinstance(tree, dict):
            raise ValueError("it holds no map of names")
        tensors: dict[str, Tensor] = {}
        for keys, value in flatten_dict(tree).items():
            name = "/".join(map(str, keys))
            if not all(isinstance(key, str) for key in keys) or len(name) > MAX_NAME_LENGTH:
                raise ValueError(f"a key in {shorten(name)!r} is no name")
            if not isinstance(value, np.ndarray | np.generic):
                raise ValueError(f"{shorten(name)!r} is no array")
            tensors[name] = Tensor(value.shape, value.dtype.name, functools.partial(np.asarray, value))
        return tensors
    except Exception as error:  # msgpack, Flax and NumPy raise many types for damaged files
        raise ClipbiasError(f"{path} is damaged or no Flax model ({reason(error)}); fetch it again.") from error
