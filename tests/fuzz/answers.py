"""What every input must be answered with, and strategies for inputs that are not what they should be."""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from clipbias.errors import ClipbiasError

MOST_BYTES = 3 << 30  # an input may not make the process grow by more


def answered(call: Callable[[], Any], folder: Path) -> str | None:
    """Calls `call`, which must succeed or raise `ClipbiasError` with one clear sentence.

    Any other exception and a process that grows by gigabytes fail. `folder` is where the input lies.

    Returns:
      The message, or `None` for success.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = None
    try:
        call()
    except ClipbiasError as error:
        message = str(error)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_BYTES, f"grew by {grown / 2**30:.1f} GiB"
    if message is not None:
        assert len(message) > 10 and len(message) < 20_000, message[:200]
        assert message == message.strip() and "Traceback" not in message and "\0" not in message, message
        assert all(letter.isprintable() or letter == "\n" for letter in message), message
    return message


EXTREME = (0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, 2**63, 10**30, 10**400)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-20, 20),
    st.sampled_from(EXTREME),
    st.floats(),
    st.sampled_from(("", " ", "\0", "..", "/", "nan", "1", "-1", "{}", "{", "%s", "\ud800", "\x1b[31m", "x" * 5000)),
    st.text(max_size=12),
)
# Anything that JSON or a configuration may hold.
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=8,
)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all parts of a nested value, the whole included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(value: Any, path: tuple, change: Callable[[Any], Any]) -> Any:
    """A copy with `change` of the part at `path` in its place; what becomes `...` is left out."""
    if not path:
        return change(value)
    key, *rest = path
    if isinstance(value, dict):
        new = {k: replaced(v, tuple(rest), change) if k == key else v for k, v in value.items()}
        return {k: v for k, v in new.items() if v is not ...}
    new = [replaced(v, tuple(rest), change) if i == key else v for i, v in enumerate(value)]
    return [v for v in new if v is not ...]


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """`value`, made of dictionaries and lists, with one to three parts replaced, left out or wrapped."""
    for _ in range(draw(st.integers(1, 3))):
        paths = list(places(value))
        path = draw(st.sampled_from(paths))
        kind = draw(st.sampled_from(("replace", "replace", "replace", "leave out", "wrap")))
        if kind == "leave out" and path:
            value = replaced(value, path, lambda _: ...)
        elif kind == "wrap":
            value = replaced(value, path, lambda part: [part])
        else:
            new = draw(ANYTHING)
            value = replaced(value, path, lambda _, new=new: new)
    return value


@st.composite
def corrupted(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with some bytes changed, put in or left out, and perhaps cut short. Its beginning is hit most often."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 6))):
        if not data:
            break
        reach = draw(st.sampled_from((16, 64, 400, len(data))))
        at = draw(st.integers(0, min(reach, len(data)) - 1))
        kind = draw(st.sampled_from(("set", "set", "flip", "insert", "remove", "copy")))
        if kind == "set":
            data[at] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)) | st.integers(0, 255))
        elif kind == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "remove":
            del data[at : at + draw(st.integers(1, 40))]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
    if draw(st.integers(0, 3)) == 0:
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)
