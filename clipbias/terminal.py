"""Text of unknown origin as a terminal may show it, and output that nobody reads to its end."""

import io
import os
import stat
import sys
from typing import Any


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


class _Pipe(io.FileIO):
    """A pipe into which whatever comes goes nowhere once its reader is gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def outlive_readers() -> None:
    """Lets the work go on where whoever reads this process's output has read enough, as `2>&1 | head` does.

    To be called before anything keeps hold of `sys.stdout` or `sys.stderr`, as logging does.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):  # none, or something in its place
            continue
        mode = os.fstat(stream.fileno()).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            pipe = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
            ways = {how: getattr(stream, how) for how in ("encoding", "errors", "line_buffering", "write_through")}
            setattr(sys, name, io.TextIOWrapper(pipe, **ways))
