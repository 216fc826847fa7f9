"""The CSV table of `predict`, which grows while pictures are classified, and continues after a kill.

`answers.csv.json` beside `answers.csv` describes model and settings, since lines of others must not mix with its lines.
A table that another program has rewritten is refused.
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

# Separator of the names of a prediction set.
BETWEEN = " | "
# Cells that a spreadsheet would run as a formula get an apostrophe, which reading takes off; so do formulas behind
# apostrophes.
_FORMULA = re.compile(r"'*[=+\-@\t]")


class PredictionTable:
    """Open table. `images` has the pictures with a line, as `key` names them, and their second cells."""

    def __init__(self, path: Path, columns: Sequence[str], file: BinaryIO) -> None:
        """Reads the lines of the file, or writes the header. Raises `ClipbiasError` for a line with other columns."""
        self.path = path
        self._columns = columns
        self._file = file
        header = _line(columns)
        content = file.read()
        end = content.rfind(b"\n") + 1
        # Another program would write other separators, quotes, byte-order marks or line ends: the header shows it.
        rows = _rows(content[:end]) if content[:end].startswith(header) else []
        widths = [len(row) for row in rows] or [len(columns) if header.startswith(content) else 0]
        if wrong := [number for number, width in enumerate(widths, start=1) if width != len(columns)]:
            raise ClipbiasError(
                f"{path} has a line {wrong[0]} that predict did not write, as when a spreadsheet has saved it; choose "
                "another --config.output, or remove it."
            )
        self.images = {row[0]: row[1] for row in rows[1:]}
        # A kill within a write leaves half a line, which is written again.
        file.seek(end)
        file.truncate()
        if not end:
            self.append([dict(zip(columns, columns, strict=True))])

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds lines, with values by column; they are on the disk when this returns."""
        lines = [_line([row.get(column, "") for column in self._columns]) for row in rows]
        with _writing(self.path):
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())


def key(image: object) -> str:
    """Returns a picture's name in a table."""
    # Escapes for line ends, which would break the table, and for half surrogate pairs, which UTF-8 lacks.
    text = str(image).encode("utf-8", "backslashreplace").decode()
    return text.replace("\n", "\\n").replace("\r", "\\r")


@contextlib.contextmanager
def open_table(name: str, columns: Sequence[str], facts: Mapping[str, Any]) -> Iterator[PredictionTable]:
    """Opens a new table, or one to continue; its first column names the picture.

    `facts` are JSON values on which lines depend, by their names in messages. Raises `ClipbiasError` where the file
    cannot be written, another process writes it, or its lines depend on other facts.
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
    text = io.StringIO(newline="")
    named = map(key, cells)
    csv.writer(text, lineterminator="\n").writerow(f"'{cell}" if _FORMULA.match(cell) else cell for cell in named)
    return text.getvalue().encode("utf-8")


def _rows(lines: bytes) -> list[list[str]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(lines)))  # a prediction set of thousands of classes is long
    rows = csv.reader(io.StringIO(lines.decode(errors="replace"), newline=""))
    return [[cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell for cell in row] for row in rows]
