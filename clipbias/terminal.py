"""Text of unknown origin as a terminal may show it, and readers that stop reading."""

import contextlib
import os
import sys
from collections.abc import Iterator


def printable(text: object, *, keep: str = "") -> str:
    """`text` with everything that steers a terminal or has no picture written as its escape.

    Names come from folders, lists and files of other people. An escape sequence in one could recolour, overwrite or
    retitle the terminal, a newline could forge a line, a direction mark could reorder what is read, and half a
    surrogate pair cannot be encoded at all.

    Args:
      text: anything; its `str` is taken.
      keep: characters to leave as they are, such as newlines of one's own.
    """
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode("ascii")
        for letter in str(text)
    )


@contextlib.contextmanager
def quiet_when_closed() -> Iterator[None]:
    """Ends the process with status 1, without a traceback, where standard output is closed, as `head` closes it."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, not when Python ends, which would report it
    except BrokenPipeError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        sys.exit(1)
