"""How the tools that make a page of the documentation write it."""

import argparse
import sys
from collections.abc import Callable

from clipbias.errors import ClipbiasError
from clipbias.files import write_text


def write_page(tool: str, description: str, make: Callable[[], str]) -> None:
    """Writes what `make` returns to the file that the command line names; ends with a sentence where it cannot.

    Args:
      tool: the module that is run.
      description: its docstring, whose first line is its help.
      make: the page.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {tool}", description=description.splitlines()[0])
    parser.add_argument("page", help="the file to write")
    path = parser.parse_args().page
    try:
        write_text(path, make())
    except ClipbiasError as error:
        sys.exit(f"error: {error}")
