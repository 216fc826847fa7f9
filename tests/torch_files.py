"""PyTorch's files, made piece by piece without PyTorch, right ones and hostile ones."""

import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

STORAGES = {"float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long"}
ORDERED = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    content = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def numbers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def tensor(key: str, dtype: str, count: int, offset: int, shape: Iterable[int], strides: Iterable[int]) -> bytes:
    storage = text("storage") + f"ctorch\n{STORAGES[dtype]}Storage\n".encode() + text(key) + text("cpu") + whole(count)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ" + whole(offset) + numbers(shape) + numbers(strides)
        + b"\x89" + ORDERED + b"tR"
    )  # fmt: skip


def pickle_of(items: Mapping[str, bytes]) -> bytes:
    """A dictionary of what is pickled already."""
    return b"\x80\x02" + ORDERED + b"(" + b"".join(text(name) + value for name, value in items.items()) + b"u."


def write(path: Path, description: bytes, members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", description)
        for name, content in members.items():
            archive.writestr(f"archive/data/{name}", content)


def save(
    path: Path,
    state: Mapping[str, np.ndarray],
    described: Mapping[str, bytes] | None = None,
    storages: Mapping[str, bytes] | None = None,
) -> None:
    """What `torch.save` writes of a state dict, with tensors that `tensor` described, and their storages."""
    items = {}
    members = {}
    for key, (name, array) in enumerate(state.items()):
        strides = [step // array.itemsize for step in np.empty(array.shape, array.dtype).strides]
        items[name] = tensor(str(key), array.dtype.name, array.size, 0, array.shape, strides)
        members[str(key)] = array.tobytes()
    write(path, pickle_of(items | dict(described or {})), members | dict(storages or {}))
