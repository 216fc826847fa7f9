"""What every input must be answered with, and strategies for inputs that are not what they should be."""

import contextlib
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from hypothesis import strategies as st

from clipbias.errors import ClipbiasError
from clipbias.io import cache_folder

# An answer that takes longer is taken for a hang: seconds of the processors, which other work on a shared machine does
# not lengthen, and for what waits, seconds by the clock.
SECONDS, WAITING = 120, 600
# An input may not make the process grow by more than this.
MOST_BYTES = 3 << 30
# A file opened or made through any of these, as Python's audit events name them, has its path first.
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree"}

COUNTS: Counter[str] = Counter()
_written: list[str] | None = None


def answered(call: Callable[[], Any], folder: Path) -> str | None:
    """Calls `call`, which must succeed or raise `ClipbiasError` with one clear sentence.

    Any other exception, a hang, a process that grows by gigabytes, and a file written outside of `folder` and of what
    a user's programs keep to be made again fail.

    Returns:
      The message, or `None` for success.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = None
    with deadline(), writing() as written:
        try:
            call()
        except ClipbiasError as error:
            message = str(error)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_BYTES, f"grew by {grown / 2**30:.1f} GiB"
    programs = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    allowed = [folder.resolve(), cache_folder().resolve(), *([Path(programs).resolve()] if programs else [])]
    outside = [path for path in written if not any(map(Path(path).resolve().is_relative_to, allowed))]
    assert not outside, outside
    COUNTS["refused" if message else "succeeded"] += 1
    if message is not None:
        assert len(message) > 10 and len(message) < 20_000, message[:200]
        assert message == message.strip() and "Traceback" not in message and "\0" not in message, message
        assert all(letter.isprintable() or letter == "\n" for letter in message), message
    return message


class Late(BaseException):
    """Raised after `SECONDS`. Not an `Exception`: what reads broken files takes those for what is wrong with them."""


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    """Fails where the block takes longer than `SECONDS`, or waits longer than `WAITING`."""

    def late(number: int, _frame: FrameType | None) -> None:
        raise Late(f"no answer within {SECONDS if number == signal.SIGPROF else WAITING} seconds")

    kinds = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, WAITING))
    with contextlib.ExitStack() as opened:
        for number, timer, seconds in kinds:
            opened.callback(signal.signal, number, signal.signal(number, late))
            signal.setitimer(timer, seconds)
            opened.callback(signal.setitimer, timer, 0)
        yield


@contextlib.contextmanager
def writing() -> Iterator[list[str]]:
    """Collects the paths of everything that the block writes, makes, renames or removes."""
    global _written
    _written = found = []
    try:
        yield found
    finally:
        _written = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _written is None or not (event == "open" or event in WRITES):
        return
    path = arguments[0]
    if event == "open":
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        if not flags & 3:  # neither O_WRONLY nor O_RDWR
            return
    if not isinstance(path, str | bytes):
        return
    path = path if isinstance(path, str) else path.decode(errors="replace")
    parts = Path(path).parts
    # Python writes what it compiles of a module that is imported for the first time, whatever the input.
    if parts[:2] not in (("/", "dev"), ("/", "proc")) and "__pycache__" not in parts:
        _written.append(path)


sys.addaudithook(_audit)  # it cannot be removed; outside of `writing` it does nothing

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
