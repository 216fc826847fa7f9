"""What the records of one split are, without reading them: names, labels, and the order in which they were given.

The index lies beside the records, or where their folder may not be written, in the user's cache folder. It is made with
the records by `shards.build`; of records that others have prepared it is made at the first opening, which reads them
all. A million records are two arrays and a text (`keys.Keys`), no object each.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from clipbias import hosts
from clipbias import io as files
from clipbias.data.files_on_disk import stamp_of
from clipbias.data.keys import Keys
from clipbias.errors import ClipbiasError

FILE = "clipbias_index_{split}.npz"
EARLIER_FILE = "clipbias_index_{split}.json"  # what the first versions wrote
ANY_FILE = FILE.partition("{")[0]  # how both begin


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Of `n` records.

    Attributes:
      labels: int32 [n].
      ids: The identifying feature of each record, which may repeat; `None` where there is none.
      positions: int64 [n], where each record stood among those that were given to the builder, or `None`.
    """

    labels: np.ndarray
    ids: Keys | None
    positions: np.ndarray | None


class Place:
    """Where the index of a split is looked for, and kept."""

    def __init__(self, folder: os.PathLike, split: str, id_feature: str | None, count: int) -> None:
        """The split's records lie in `folder`, `count` of them; `id_feature` tells them apart."""
        self._folder, self._split, self._id_feature, self._count = epath.Path(folder), split, id_feature, count
        self._beside = self._folder / FILE.format(split=split)

    def find_or_make(self, make: Callable[[], Index]) -> Index:
        """The index, which is otherwise made, and kept, by one of the processes that want it."""
        found = self.find()
        if found is None:
            with self._alone():
                found = self.find()  # another process may have made it meanwhile
                if found is None:
                    found = make()
                    self.keep(found)
        return found

    def find(self) -> Index | None:
        """The index, if there is one that is whole and belongs to these records."""
        records = self._records()
        for path in (self._beside, self._in_cache(records)):
            found = _read(path, self._belongs(records), self._count) if path.is_file() else None
            if found is not None and (found.ids is None) == (self._id_feature is None):
                return found
        found = _read_earlier(self._folder / EARLIER_FILE.format(split=self._split), self._id_feature, self._count)
        if found is not None:
            self.keep(found)
        return found

    def keep(self, index: Index) -> None:
        """Writes the index, beside the records where that can be; says where it lies otherwise."""
        records = self._records()
        try:
            _write(self._beside, self._belongs(records), index)
        except ClipbiasError as error:
            path = self._in_cache(records)
            try:
                _write(path, self._belongs(records), index)
                logging.info("the index of %s is kept in %s, because %s", self._folder, path, error)
            except ClipbiasError:
                logging.warning("the index of %s is not kept, and made again the next time: %s", self._folder, error)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits until no other process makes this index, where files can be locked: hosts of a job start at once."""
        lock = None
        beside = () if files.is_remote(self._beside) else (self._beside,)  # an object store has no locks
        for path in (*beside, self._in_cache(self._records())):
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = open(path.with_suffix(".lock"), "a")  # noqa: SIM115 (held until the block ends)
                break
        if lock is None:
            yield
            return
        with lock:
            waiting = False
            while True:
                try:
                    files.lock_file(lock.fileno(), fcntl.LOCK_EX)
                    break
                except BlockingIOError:
                    if not waiting:
                        logging.info("waiting for the index of %s, which another process makes", self._folder)
                    waiting = True
                    hosts.check()
                    time.sleep(0.2)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(lock.name)

    def _records(self) -> list[tuple[str, int]]:
        """The names and the sizes of the files that hold the records."""
        if files.is_remote(self._folder):
            sizes = {name: size for name, size in files.entries(self._folder).items() if size is not None}
        else:
            with os.scandir(self._folder) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        return sorted(one for one in sizes.items() if f"-{self._split}." in one[0])

    def _belongs(self, records: Sequence[tuple[str, int]]) -> str:
        """What an index says that it is of: a copy of the records has the same."""
        return hashlib.sha256(json.dumps([self._id_feature, records]).encode()).hexdigest()

    def _in_cache(self, records: Sequence[tuple[str, int]]) -> Path:
        stamps = "\n".join(stamp_of(self._folder / name)[0] for name, _ in records)
        name = hashlib.sha256(f"{self._split} {self._id_feature}\n{stamps}".encode()).hexdigest()
        return files.cache_folder() / "records" / f"{name}.npz"


def _write(path: os.PathLike, of: str, index: Index) -> None:
    text, lengths = (b"", np.zeros(0, np.int64)) if index.ids is None else index.ids.compact()
    arrays: dict[str, Any] = {
        "of": np.frombuffer(of.encode(), np.uint8),
        "labels": np.asarray(index.labels, np.int32),
        "positions": np.zeros(0, np.int64) if index.positions is None else np.asarray(index.positions, np.int64),
        "names": np.frombuffer(text, np.uint8),
        "lengths": lengths.astype(np.int32),
        "distinct": np.asarray(index.ids is not None and index.ids.repeated() is None),
    }
    if files.is_remote(path):
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        try:
            files.write_bytes(path, content.getvalue())
        except OSError as error:
            raise ClipbiasError(f"cannot write {path}: {files.reason(error)}.") from error
        return
    with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _read(path: epath.Path | Path, of: str, count: int) -> Index | None:
    try:
        opened = io.BytesIO(files.read_bytes(path)) if files.is_remote(path) else open(path, "rb")  # noqa: SIM115
        with opened as file, np.load(file, allow_pickle=False) as stored:
            kinds = {"labels": np.int32, "positions": np.int64, "names": np.uint8, "lengths": np.int32}
            arrays = {name: stored[name] for name in kinds}
            fits = all(found.ndim == 1 and found.dtype == kinds[name] for name, found in arrays.items())
            if not fits or stored["of"].tobytes() != of.encode() or len(arrays["labels"]) != count:
                return None
            distinct = bool(stored["distinct"]) or None
        ids = None
        if len(arrays["lengths"]):
            ids = Keys.laid_out(arrays["names"].tobytes(), arrays["lengths"].astype(np.int64), distinct=distinct)
    except Exception:  # a damaged archive raises nearly anything
        return None
    positions = arrays["positions"] if len(arrays["positions"]) else None
    whole = all(part is None or len(part) == count for part in (ids, positions))
    return Index(arrays["labels"], ids, positions) if whole else None


def _read_earlier(path: epath.Path, id_feature: str | None, count: int) -> Index | None:
    """An index of the first versions, JSON lists of all values."""
    if not path.exists():
        return None
    try:
        index = files.read_json(path, dict)
        kinds = {"labels": int, "positions": int, "ids": str}
        whole = all(isinstance(value, kind) for name, kind in kinds.items() for value in index[name])
        wanted = {"labels": count, "positions": len(index["positions"]) and count, "ids": count if id_feature else 0}
        if not whole or index.get("id_feature") != id_feature:
            return None
        if any(len(index[name]) != size for name, size in wanted.items()):
            return None
        labels, positions = np.asarray(index["labels"], np.int32), np.asarray(index["positions"], np.int64)
    except (ClipbiasError, KeyError, TypeError, OverflowError):
        return None
    return Index(labels, Keys.of(index["ids"]) if id_feature else None, positions if len(positions) else None)
