"""Page of `--help`: a command's docstring, and its settings, a line each under the class that defines them."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from clipbias.settings import Setting, flatten, headed_settings, quoted, settings_in

WIDTH = 120
# Widths of the column with a setting and its value: as a rule, and at most.
_COLUMN = 38
_LONGEST = 50
# Width of the column with the help.
ROOM = WIDTH - _COLUMN - 2
USAGE = "[--config=FILE[:PRESET]] [--config.NAME=VALUE …] [--workdir=FOLDER]"


def help_page(main: Callable, kind: type, config: ConfigDict, *, file: str, full: bool) -> str:
    """Renders the docstrings of `main`'s binary and of another configuration file, the flags, and all settings.

    `kind` is the dataclass of the settings; `full` prints their whole help, else as much as a line holds.
    """
    binary = Path(inspect.getfile(main)).stem
    has_workdir = "workdir" in config
    usage = USAGE if has_workdir else USAGE.rpartition(" [")[0]
    parts = [main.__globals__["__doc__"].strip(), f"Usage: clipbias {binary} {usage}"]
    if Path(file).stem != binary:
        docstring = ast.get_docstring(ast.parse(Path(file).read_text(encoding="utf-8")))
        parts += [_title(file), docstring or ""]
    if isinstance(config.get("method"), str):
        from clipbias.tuning.registry import make_method

        parts += [_title(config.method), inspect.getdoc(make_method(config.method)) or ""]
    parts.append(_title("settings, with their values"))
    values = settings_in(kind, config)
    for heading, settings in headed_settings(kind).items():
        lines = [line for name, field in settings.items() for line in _lines(name, field, values[name], full=full)]
        parts.append("\n".join([heading, *lines]))
    if not full:
        parts.append("--helpfull has more on each setting.")
    text = "\n\n".join(part for part in parts if part)
    return text.replace("python -m experiments.", "clipbias ") if sys.argv[0].startswith("clipbias ") else text


def _lines(name: str, field: Setting, value: object, *, full: bool) -> Iterator[str]:
    """Yields a line for a setting or for each value within it; in full, its whole help below."""
    for path, inner in flatten(value, name).items():
        flag = f"  --config.{path}={quoted(inner)}"
        if full:
            yield flag
        else:
            flag = flag if len(flag) <= _LONGEST else f"{flag[: _LONGEST - 1]}…"
            yield f"{flag:<{_COLUMN}}  {summary(field.help, WIDTH - max(len(flag), _COLUMN) - 2)}"
    if full:
        lines = textwrap.wrap(field.help, WIDTH - 6, break_long_words=False, break_on_hyphens=False)
        yield textwrap.indent("\n".join(lines), 6 * " ")


def summary(text: str, width: int) -> str:
    """Returns the clauses of a setting's help that fit into a line; at least the beginning of the first."""
    clauses = re.split(r"(?<=[.;]) ", text)
    shown = clauses[0]
    for clause in clauses[1:]:
        if len(f"{shown} {clause}") > width:
            break
        shown += f" {clause}"
    return textwrap.shorten(re.sub(";$", ".", shown), width, placeholder=" …")


def _title(words: str) -> str:
    return f"==== {words} ".ljust(100, "=")
