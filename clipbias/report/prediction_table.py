"""A CSV table of predictions that grows while pictures are classified, and is continued after a kill.

Beside `answers.csv`, `answers.csv.json` says what its lines depend on: lines of another model or of other settings are
never mixed with them. Lines are written batch by batch; one that a kill cut short is dropped. A cell that a spreadsheet
would take for a formula has an apostrophe before it. A table that another program has saved since is refused.
"""

import contextlib
import csv
import fcntl
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from clipbias.errors import ClipbiasError
from clipbias.io import lock_file, read_json, reason, user_path, write_text

# Between the names of a prediction set.
BETWEEN = " | "
# A formula of a spreadsheet, and one behind apostrophes, so that every cell can be read back.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


class PredictionTable:
    """An open table.

    Attributes:
      path: of the file.
      images: the pictures that have a line, as `key` names them.
    """

    def __init__(self, path: Path, columns: Sequence[str], file: BinaryIO) -> None:
        """Takes the lines that are there; of an empty file writes the first one.

        Raises:
          ClipbiasError: a line is not as it was written.
        """
        self.path = path
        self.images: set[str] = set()
        self._columns = columns
        self._file = file
        header = _line(columns)
        end = 0
        for number, line in enumerate(_whole_lines(file), start=1):
            cells = _cells(line)
            # Programs differ in separators, quotes, encodings and ends of lines: the bytes show that another wrote it.
            if len(cells) != len(columns) or _line(cells) != line or (number == 1 and line != header):
                raise self._changed(number)
            if number > 1:
                self.images.add(cells[0])
            end += len(line)
        file.seek(end)
        if not end and not header.startswith(file.read(len(header))):
            raise self._changed(1)
        file.seek(end)
        file.truncate()
        if not end:
            self._write([dict(zip(columns, columns, strict=True))])

    def _changed(self, number: int) -> ClipbiasError:
        return ClipbiasError(
            f"{self.path} has a line {number} that predict did not write, as when a spreadsheet has saved it; choose "
            "another --config.output, or remove it."
        )

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds finished lines, the values by column; they are on the disk when this returns."""
        self._write(rows)

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = [_line([row.get(column, "") for column in self._columns]) for row in rows]
        with _writing(self.path):
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())


def key(image: object) -> str:
    """The name of a picture in a table; half surrogate pairs, which UTF-8 lacks, become escapes."""
    return str(image).encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def open_table(name: str, columns: Sequence[str], facts: Mapping[str, Any]) -> Iterator[PredictionTable]:
    """Opens a table, a new one or one to be continued.

    Args:
      name: of a file that ends with ".csv".
      columns: the first one names the picture.
      facts: what the lines depend on, as JSON values by what they are called in a message.

    Raises:
      ClipbiasError: the file cannot be written, another process writes it, or it has lines that depend on other facts.
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
            _check_facts(path, about, facts)
        else:
            write_text(about, json.dumps(facts, indent=1) + "\n")
        yield PredictionTable(path, columns, file)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ClipbiasError(f"cannot write {path}: {reason(error)}; choose another --config.output.") from error


def _check_facts(path: Path, about: Path, facts: Mapping[str, Any]) -> None:
    """Raises `ClipbiasError` where the lines of a table depend on other facts."""
    if not about.exists():
        raise ClipbiasError(f"{path} is no table to continue: {about.name} is not beside it; choose another file.")
    before = read_json(about, dict, what="what a table depends on")
    if other := [name for name, value in facts.items() if before.get(name) != value]:
        raise ClipbiasError(
            f"{path} has lines of other settings ({', '.join(other)}); choose another --config.output, or remove it."
        )


def _line(cells: Sequence[str]) -> bytes:
    """A line of a CSV file."""
    text = io.StringIO(newline="")
    escaped = [f"'{cell}" if _FORMULA.match(cell) else cell for cell in cells]
    # The writer quotes the characters that end its lines: both kinds, which readers take for an end.
    csv.writer(text, lineterminator="\r\n").writerow(escaped)
    return (text.getvalue().removesuffix("\r\n") + "\n").encode("utf-8", "backslashreplace")


def _cells(line: bytes) -> list[str]:
    """The cells that `_line` made a line of; others of a line that it did not make."""
    csv.field_size_limit(max(csv.field_size_limit(), len(line)))  # a prediction set of thousands of classes is long
    rows = list(csv.reader(io.StringIO(line.decode(errors="replace"), newline="")))
    return [cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell for cell in rows[0]]


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a CSV file that are whole; a quoted name may have line breaks."""
    line = b""
    for part in file:
        line += part
        if line.endswith(b"\n") and line.count(b'"') % 2 == 0:
            yield line
            line = b""
