"""Flax's msgpack files (`flax_model.msgpack` of `FlaxCLIPModel`): names, layouts, reading and writing.

A file is one map of nested string keys whose leaves are arrays. `flax.serialization` reads all of it at once and some
of it twice; here the maps are walked first and each array is read where it lies, so that a model is in memory once.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import jax.numpy as jnp
import msgpack
import numpy as np
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict

from clipbias.clip.config import ClipConfig
from clipbias.clip.convert import Naming, Row
from clipbias.clip.tensors import FLOATING, Tensor
from clipbias.errors import ClipbiasError
from clipbias.io import atomic_path, check_file, reason, shorten

FLAX_WEIGHTS = "flax_model.msgpack"

MOST_NAMES = 100_000
DEEPEST = 16  # maps in one another; a CLIP has seven
LONGEST = 4096  # bytes of a key or of what precedes an array's numbers
NDARRAY, SCALAR = 1, 3  # Flax's types of msgpack extensions


def _linear(path: str, *names: str) -> list[Row]:
    return [Row(f"{path}/{part}", tuple(f"{name}/{part}" for name in names)) for part in ("kernel", "bias")]


def _norm(path: str, name: str) -> list[Row]:
    return [Row(f"{path}/{part}", (f"{name}/{part}",)) for part in ("scale", "bias")]


def _rows(config: ClipConfig) -> list[Row]:
    size = config.vision.patch_size
    patches = Row(
        "vision/patch_embedding",
        ("vision_model/embeddings/patch_embedding/kernel",),  # [p, p, 3, Dv]
        lambda x: x.reshape(-1, x.shape[-1]),
        lambda x: x.reshape(size, size, 3, -1),
    )
    return [
        patches,
        Row("vision/class_embedding", ("vision_model/embeddings/class_embedding",)),
        Row("vision/position_embedding", ("vision_model/embeddings/position_embedding/embedding",)),
        *_norm("vision/pre_norm", "vision_model/pre_layrnorm"),
        *_norm("vision/post_norm", "vision_model/post_layernorm"),
        Row("vision/projection", ("visual_projection/kernel",)),
        Row("text/token_embedding", ("text_model/embeddings/token_embedding/embedding",)),
        Row("text/position_embedding", ("text_model/embeddings/position_embedding/embedding",)),
        *_norm("text/final_norm", "text_model/final_layer_norm"),
        Row("text/projection", ("text_projection/kernel",)),
        Row("logit_scale", ("logit_scale",)),
    ]


# Kernels lie as in this package's tree, `[in, out]`.
FLAX = Naming(
    _rows,
    layer=(
        *_norm("norm1", "layer_norm1"),
        *_linear("qkv", "self_attn/q_proj", "self_attn/k_proj", "self_attn/v_proj"),
        *_linear("out", "self_attn/out_proj"),
        *_norm("norm2", "layer_norm2"),
        *_linear("fc1", "mlp/fc1"),
        *_linear("fc2", "mlp/fc2"),
    ),
    prefixes={tower: f"{tower}_model/encoder/layers/{{}}/" for tower in ("vision", "text")},
)


@contextlib.contextmanager
def open_flax(path: Path) -> Iterator[dict[str, Tensor]]:
    """The arrays of a Flax msgpack file by the path of their keys, joined by "/", to be read while the block runs.

    Raises:
      ClipbiasError: the file is damaged, cut short, or holds something else than maps of strings down to arrays.
    """
    check_file(path)
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise ClipbiasError(f"cannot open {path}: {reason(error)}; check the path.") from error
    with file:
        try:
            yield _Walk(file).tensors()
        except _Damaged as error:
            raise ClipbiasError(f"{path} is not a Flax model: {error}; fetch it again.") from error
        except OSError as error:
            raise ClipbiasError(f"cannot read {path}: {reason(error)}; fetch it again.") from error


class _Damaged(ValueError):
    """What is wrong with a file, in a few words."""


class _Walk:
    """A walk through the maps of an open file; `offset` is where the next object begins."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.offset = file, 0
        self.size = os.fstat(file.fileno()).st_size
        self.found: dict[str, Tensor] = {}
        self.seen: set[str] = set()

    def tensors(self) -> dict[str, Tensor]:
        """Every array of the file. Raises `_Damaged`."""
        try:
            self.map("")
        except (ValueError, IndexError, msgpack.UnpackException) as error:
            raise error if isinstance(error, _Damaged) else _Damaged("it is cut short or not msgpack") from error
        if self.offset != self.size:
            raise _Damaged(f"its map ends at byte {self.offset} of {self.size}")
        return self.found

    def peek(self, offset: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(LONGEST)

    def map(self, prefix: str) -> None:
        first = self.peek(self.offset)[0]
        if not (first & 0xF0 == 0x80 or first in (0xDE, 0xDF)):
            raise _Damaged("it does not begin with a map of names")
        entries = self.unpacker(self.offset)
        count = entries.read_map_header()
        self.offset += entries.tell()
        if count > self.size:
            raise _Damaged(f"a map claims {count} entries")
        for _ in range(count):
            key = self.unpacker(self.offset)
            name = key.unpack()
            self.offset += key.tell()
            if not isinstance(name, str):
                raise _Damaged(f"a key in {shorten(prefix) or 'its map'!r} is no text")
            path = prefix + name
            if path in self.seen:
                raise _Damaged(f"{shorten(path)!r} is there twice")
            self.seen.add(path)
            if len(self.seen) > MOST_NAMES:
                raise _Damaged(f"it holds more than {MOST_NAMES:,} names")
            self.node(path)

    def node(self, path: str) -> None:
        first = self.peek(self.offset)[0]
        if first & 0xF0 == 0x80 or first in (0xDE, 0xDF):
            if path.count("/") >= DEEPEST:
                raise _Damaged(f"its maps are nested more than {DEEPEST} deep")
            self.map(path + "/")
        else:
            self.found[path] = self.array(path)

    def array(self, path: str) -> Tensor:
        """The array at the offset: an extension that holds its shape, the name of its type, and its bytes."""
        start, name = self.offset, repr(shorten(path))
        code, header, length = _extension(self.peek(start))
        if code not in (NDARRAY, SCALAR):
            raise _Damaged(f"{name} is no array")
        start += header
        self.offset = start + length
        if self.offset > self.size:
            raise _Damaged(f"it is cut short within {name}")
        inner = self.unpacker(start)
        parts, shape, dtype = inner.read_array_header(), inner.unpack(), inner.unpack()
        start += inner.tell()
        start += _binary(self.peek(start))
        if parts != 3 or not isinstance(dtype, str) or not isinstance(shape, list):
            raise _Damaged(f"{name} is no array of Flax's")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise _Damaged(f"{name} has the shape {shorten(repr(shape))}")
        size = self.offset - start
        if dtype in FLOATING and size != math.prod(shape) * jnp.dtype(dtype).itemsize:
            raise _Damaged(f"{name} has {size} bytes, which do not fill {shape} of {dtype}")
        return Tensor(tuple(shape), dtype, lambda: self.read(start, tuple(shape), dtype))

    def read(self, start: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        numbers = np.empty(shape, jnp.dtype(dtype))
        self.file.seek(start)
        left = memoryview(numbers.reshape(-1).view(np.uint8).data)
        while left:  # one call of the system reads at most 2 GiB
            count = self.file.readinto(left)  # type: ignore[attr-defined]  # an unbuffered file has it
            if not count:
                raise _Damaged("it was cut short while it was read")
            left = left[count:]
        return numbers

    def unpacker(self, offset: int) -> msgpack.Unpacker:
        """Reads small objects from `offset` on; the size of its buffer bounds what it builds, too."""
        unpacker = msgpack.Unpacker(max_buffer_size=LONGEST)
        unpacker.feed(self.peek(offset))
        return unpacker


def _extension(head: bytes) -> tuple[int | None, int, int]:
    """Type, length of the header, and length of what follows it; no type where it is no msgpack extension."""
    first = head[0]
    if 0xC7 <= first <= 0xC9:
        width = 1 << (first - 0xC7)
        return head[1 + width], 2 + width, int.from_bytes(head[1 : 1 + width])
    if 0xD4 <= first <= 0xD8:
        return head[1], 2, 1 << (first - 0xD4)
    return None, 0, 0


def _binary(head: bytes) -> int:
    """The length of the header of msgpack's bytes."""
    if not 0xC4 <= head[0] <= 0xC6:
        raise _Damaged("an array of its holds no bytes")
    return 1 + (1 << (head[0] - 0xC4))


def write_flax(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes arrays under their names in `FLAX` as Flax does, atomically. Raises `ClipbiasError` where it cannot."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(msgpack_serialize(unflatten_dict(dict(tensors), sep="/")))
