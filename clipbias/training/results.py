"""Finished cells of a grid, one JSON object per line, in the order they ended."""

import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from clipbias.errors import ClipbiasError
from clipbias.io import read_json_lines, write_text
from clipbias.schema import Row as RowOfFile
from clipbias.schema import fitted

Row = dict[str, Any]
KEY = ("protocol", "method", "dataset", "shots", "seed", "config_hash")


def cell_key(row: Row) -> tuple[Any, ...]:
    """What tells one cell from another."""
    return tuple(row.get(name) for name in KEY)


# Those that a table is made of, and what learning rates to choose from came to on validation images.
RESULTS, TRIALS = "results.jsonl", "trials.jsonl"


def result_files(workdir: Path, name: str = RESULTS) -> list[Path]:
    """The files of results in a work folder: that of a job which ran the whole grid, and those of its parts."""
    return [path for path in (workdir / name, *sorted(workdir.glob(f"parts/*/{name}"))) if path.is_file()]


class Results:
    """The file `results.jsonl`. A line that is damaged, or that a crash cut short, is dropped when the file is opened:
    its cell is run again.
    """

    def __init__(self, path: str | os.PathLike, others: Callable[[], Iterable[Path]] = tuple) -> None:
        """Reads the file.

        Args:
          path: where it lies, and rows are added.
          others: the files of jobs that run other parts of the same grid.
        """
        self._path, self._others = Path(path), others
        rows: list[Row] = [row for row in read_json_lines(self._path) if fitted(row, RowOfFile)]
        self._by_cell: dict[tuple[Any, ...], Row] = {}
        self._own = {cell_key(row): row for row in rows}
        self.read_others()
        if self._path.exists() and jax.process_index() == 0:
            whole = "".join(json.dumps(row) + "\n" for row in rows)
            if self._path.read_bytes() != whole.encode():
                write_text(self._path, whole)

    @classmethod
    def of(cls, workdir: Path, own_folder: Path | None = None, name: str = RESULTS) -> "Results":
        """All results in a work folder, or what another file holds; those that are added go to `own_folder`."""
        path = (own_folder or workdir) / name
        return cls(path, lambda: [other for other in result_files(workdir, name) if other != path])

    def read_others(self) -> None:
        """Reads again what other jobs have written. Of a cell that two jobs ran, one that ended well counts."""
        found: dict[tuple[Any, ...], Row] = {}
        for path in self._others():
            found |= {cell_key(row): row for row in read_json_lines(path) if fitted(row, RowOfFile)}
        well = {key: row for key, row in found.items() if row["status"] == "ok"}
        own_well = {key: row for key, row in self._own.items() if row["status"] == "ok"}
        self._by_cell = found | self._own | well | own_well

    @property
    def rows(self) -> list[Row]:
        """The latest row of each cell: a cell that failed and was run again counts once."""
        return list(self._by_cell.values())

    def get(self, row: Row) -> Row | None:
        """The latest row of the cell that `row` names, or `None`."""
        return self._by_cell.get(cell_key(row))

    def finished(self, row: Row, *, images: Collection[str] | None = None) -> bool:
        """Whether the cell that `row` names ended well, on images with one of these hashes where both are known.

        Earlier versions wrote no hash of the images; what they finished stays finished.
        """
        done = self.get(row)
        if done is None or done.get("status") != "ok":
            return False
        return images is None or done.get("image_hash") in (None, *images)

    def append(self, rows: Sequence[Row]) -> None:
        """Adds rows, on disk before this returns. Several at once are there together or not at all but for a crash."""
        new = {cell_key(row): row for row in rows}
        self._own |= new
        self._by_cell |= new
        if jax.process_index() != 0:
            return
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ClipbiasError(
                f"cannot write {self._path}: {error.strerror}; make room, or see to the disk, and run again."
            ) from error
