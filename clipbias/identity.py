"""Identities: SHA-256 over the content of a value, the only keys of caches, files and comparisons.

An identity walks every field of a value: a list of names would lack the next field. A field that cannot change a
prediction is marked in its declaration, with the reason (`no_effect`).
"""

import dataclasses
import enum
import hashlib
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_NO_EFFECT = "no_effect"
_COUNTED_BY = "counted_by"


def no_effect(reason: str) -> dict[str, object]:
    """Metadata of a dataclass field that no prediction depends on, for this reason."""
    return {_NO_EFFECT: reason}


def counted_by(function: Callable[[Any], object]) -> dict[str, object]:
    """Metadata of a field that counts by `function` of the whole value, such as a tokenizer, which has many files."""
    return {_COUNTED_BY: function}


def parts(value: Any) -> dict[str, str]:
    """The identity of each field of a dataclass, without those marked `no_effect`: shows where two differ."""
    return {
        field.name: identity(field.metadata.get(_COUNTED_BY, operator.attrgetter(field.name))(value))
        for field in dataclasses.fields(value)
        if _NO_EFFECT not in field.metadata
    }


def identity(value: object) -> str:
    """SHA-256 over a value's canonical bytes, 64 hex digits: the same in every process and on every machine.

    A value is a dataclass, a mapping with names as keys, a list, an array, a plain value, or an object with an
    attribute `identity`. Raises `TypeError` for anything else, such as a function.
    """
    # Lists and tuples are equal, as are 1 and 1.0: JSON and command lines do not keep them apart.
    digest = hashlib.sha256()
    _feed(digest.update, value)
    return digest.hexdigest()


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    """Each value is written with a letter for its type and its length, so that no two read alike."""

    def write(letter: bytes, content: bytes = b"") -> None:
        update(letter + len(content).to_bytes(8, "little") + content)

    # Order matters: a bool is an int, an enum may be a string, and a whole float must write the bytes of the int.
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        write(b"c", repr(value).encode())
    elif isinstance(value, str):
        write(b"s", value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, bytes):
        write(b"b", value)
    elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        write(b"n", repr(int(value)).encode())
    elif isinstance(value, float):
        write(b"f", value.hex().encode())
    # Before dataclasses: a `Split` is one, but its own identity reads the contents of its files.
    elif isinstance(own := getattr(value, "identity", None), str):
        write(b"i", own.encode())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        write(b"d", type(value).__qualname__.encode())
        _feed(update, parts(value))
    elif isinstance(value, Mapping):
        write(b"m", len(value).to_bytes(8, "little"))
        # The order in which a mapping was filled is no content.
        for name in sorted(value):
            _feed(update, name)
            _feed(update, value[name])
    elif isinstance(value, list | tuple):
        write(b"l", len(value).to_bytes(8, "little"))
        for item in value:
            _feed(update, item)
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        # Shape and dtype are written too: equal bytes of another shape are another array.
        array = np.asarray(value)
        write(b"a", f"{array.dtype.name} {array.shape}".encode())
        write(b"v", np.ascontiguousarray(array).tobytes())
    else:
        raise TypeError(f"a {type(value).__name__} has no identity: {value!r}")
