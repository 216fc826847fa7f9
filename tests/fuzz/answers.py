"""What every input must be answered with, and strategies for inputs that are not what they should be."""

import copy
import resource
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from clipbias.errors import ClipbiasError

MOST_BYTES = 3 << 30  # an input may not make the process grow by more


def answered(call: Callable[[], Any]) -> str | None:
    """Calls `call`, which must succeed or raise `ClipbiasError` with one clear sentence.

    Any other exception and a process that grows by gigabytes fail.

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


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """`value`, made of dictionaries and lists, with one to three parts replaced by anything, or left out."""
    for _ in range(draw(st.integers(1, 3))):
        whole = [copy.deepcopy(value)]
        places: list[tuple[Any, Any]] = [(whole, 0)]
        for container, key in places:  # which grows
            part = container[key]
            if isinstance(part, dict | list):
                places += [(part, inner) for inner in (part if isinstance(part, dict) else range(len(part)))]
        container, key = draw(st.sampled_from(places))
        if container is whole or draw(st.integers(0, 3)):
            container[key] = draw(ANYTHING)
        else:
            del container[key]
        (value,) = whole
    return value


@st.composite
def corrupted(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with bytes changed, put in or left out, and perhaps cut short. Its beginning is hit most often."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, min(draw(st.sampled_from((16, 64, 400, len(data)))), len(data))))
        data[at : at + draw(st.integers(0, 9))] = draw(
            st.sampled_from((b"\0", b"\x7f", b"\x80", b"\xff")) | st.binary(max_size=9)
        )
    if draw(st.integers(0, 3)) == 0:
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)
