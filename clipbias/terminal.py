"""Text of unknown origin, made safe for a terminal; and output that nobody reads any more."""

import contextlib
import os
import sys
from collections.abc import Iterator


def printable(value: object, *, keep: str = "") -> str:
    """`str(value)` with its control characters and unprintable characters as escapes, except those in `keep`."""
    # Names come from folders, lists and files of other people. An escape sequence could recolour, overwrite or retitle
    # the terminal, a newline could forge a line, a direction mark could reorder a line, and half a surrogate pair
    # cannot be encoded at all.
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode("ascii")
        for letter in str(value)
    )


@contextlib.contextmanager
def quiet_when_closed() -> Iterator[None]:
    """Ends the process with status 1, without a traceback, once standard output is closed, as by `head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, not when Python ends, which would report it
    except BrokenPipeError:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())
        sys.exit(1)
