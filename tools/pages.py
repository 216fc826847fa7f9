"""How the tools that make a page of the documentation write it."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from clipbias.errors import ClipbiasError
from clipbias.io import write_text

END = "<!-- What follows is written by hand. -->"


def with_section(page: Path, text: str, begin: str, section: str) -> str:
    """The text of a page in Markdown with what stands between the line `begin` and the next `END` made again.

    Raises:
      ClipbiasError: it has no place for the section.
    """
    before, marker, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not marker or not end:
        raise ClipbiasError(f"{page} has no place for the table; write the lines {begin!r} and {END!r} there.")
    return f"{before}{begin}\n\n{section}\n\n{END}{after}"


def write_page(tool: str, description: str, make: Callable[[Path], str]) -> None:
    """Writes what `make` returns to the file that the command line names; ends with a sentence where it cannot.

    Args:
      tool: the module that is run.
      description: its docstring, whose first line is its help.
      make: the page, given its path.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {tool}", description=description.splitlines()[0])
    parser.add_argument("page", help="the file to write")
    path = Path(parser.parse_args().page)
    try:
        write_text(path, make(path))
    except ClipbiasError as error:
        sys.exit(f"error: {error}")


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, ("---",) * len(heads), *lines))
