"""The CSV table of `predict`, which grows while pictures are classified, and is continued after a kill.

Beside `answers.csv`, `answers.csv.json` says what its lines depend on: lines of another model or of other settings are
never mixed with them. Lines are written batch by batch; one that a kill cut short is dropped. A cell that a spreadsheet
would take for a formula has an apostrophe before it, and ends of lines in a cell are escapes. A table that another
program has saved otherwise since is refused.
"""

import contextlib
import csv
import fcntl
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from clipbias.errors import ClipbiasError
from clipbias.io import lock_file, read_json, reason, user_path, write_text

# Between the names of a prediction set.
BETWEEN = " | "
# A formula of a spreadsheet, and one behind apostrophes, so that every cell can be read back.
_FORMULA = re.compile(r"'*[=+\-@\t]")


class PredictionTable:
    """An open table; `images` are the pictures that have a line, as `key` names them, with their second cell."""

    def __init__(self, path: Path, columns: Sequence[str], file: BinaryIO) -> None:
        """Takes the lines that are there; of an empty file writes the first one.

        Raises `ClipbiasError` where a line has other columns than were written.
        """
        self.path = path
        self._columns = columns
        self._file = file
        header = _line(columns)
        content = file.read()
        end = content.rfind(b"\n") + 1
        # Programs differ in separators, quotes, marks of encoding and ends of lines: the first line's bytes tell.
        rows = _rows(content[:end]) if content[:end].startswith(header) else []
        widths = [len(row) for row in rows] or [len(columns) if header.startswith(content) else 0]
        if wrong := [number for number, width in enumerate(widths, start=1) if width != len(columns)]:
            raise ClipbiasError(
                f"{path} has a line {wrong[0]} that predict did not write, as when a spreadsheet has saved it; choose "
                "another --config.output, or remove it."
            )
        self.images = {row[0]: row[1] for row in rows[1:]}
        file.seek(end)
        file.truncate()
        if not end:
            self.append([dict(zip(columns, columns, strict=True))])

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds finished lines, the values by column; they are on the disk when this returns."""
        lines = [_line([row.get(column, "") for column in self._columns]) for row in rows]
        with _writing(self.path):
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())


def key(image: object) -> str:
    """The name of a picture in a table; ends of lines, and half surrogate pairs, which UTF-8 lacks, become escapes."""
    text = str(image).encode("utf-8", "backslashreplace").decode()
    return text.replace("\n", "\\n").replace("\r", "\\r")


@contextlib.contextmanager
def open_table(name: str, columns: Sequence[str], facts: Mapping[str, Any]) -> Iterator[PredictionTable]:
    """Opens a table, a new one or one to be continued; its first column names the picture.

    Lines depend on `facts`, JSON values by what they are called in a message. Raises `ClipbiasError` where the file
    cannot be written, another process writes it, or it has lines that depend on other facts.
    """
    path = user_path(name)
    if path.suffix.lower() != ".csv":
        raise ClipbiasError(f"--config.output is {name}; give a file that ends with .csv.")
    about = path.with_name(f"{path.name}.json")
    facts = json.loads(json.dumps({**facts, "columns": list(columns)}))
    with contextlib.ExitStack() as opened:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(open(path, "ab+"))
        try:
            lock_file(file.fileno(), fcntl.LOCK_EX)
        except BlockingIOError as error:
            raise ClipbiasError(f"another process writes {path}; wait, or choose another --config.output.") from error
        file.seek(0)
        if path.stat().st_size:
            if not about.exists():
                raise ClipbiasError(
                    f"{path} is no table to continue: {about.name} is not beside it; choose another file."
                )
            before = read_json(about, dict, what="what a table depends on")
            if other := [name for name, value in facts.items() if before.get(name) != value]:
                raise ClipbiasError(
                    f"{path} has lines of other settings ({', '.join(other)}); choose another --config.output, or "
                    "remove it."
                )
        else:
            write_text(about, json.dumps(facts, indent=1) + "\n")
        yield PredictionTable(path, columns, file)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ClipbiasError(f"cannot write {path}: {reason(error)}; choose another --config.output.") from error


def _line(cells: Sequence[object]) -> bytes:
    """A line of a CSV file."""
    text = io.StringIO(newline="")
    named = map(key, cells)
    csv.writer(text, lineterminator="\n").writerow(f"'{cell}" if _FORMULA.match(cell) else cell for cell in named)
    return text.getvalue().encode("utf-8")


def _rows(lines: bytes) -> list[list[str]]:
    """The cells of whole lines."""
    csv.field_size_limit(max(csv.field_size_limit(), len(lines)))  # a prediction set of thousands of classes is long
    rows = csv.reader(io.StringIO(lines.decode(errors="replace"), newline=""))
    return [[cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell for cell in row] for row in rows]
