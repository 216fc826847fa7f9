"""The index of a split's records: names, labels and order, known without reading the records.

The index lies beside the records, or in the user's cache folder if theirs is read-only. It is made once, by reading all
records: when shards are built, or when a prepared dataset is opened for the first time.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable

import numpy as np
from absl import logging
from etils import epath

from clipbias.errors import ClipbiasError
from clipbias.io import atomic_path, cache_folder, read_bytes

FILE = "clipbias_index_{split}.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class RecordIndex:
    """The index of `n` records.

    Attributes:
      labels: int32 [n].
      ids: the identifying feature of each record, which may repeat; empty without one.
      positions: int64 [n], the place of each record in the builder's input; empty if unknown.
    """

    labels: np.ndarray
    ids: tuple[str, ...]
    positions: np.ndarray


def find_or_make(
    folder: epath.Path, split: str, id_feature: str | None, count: int, make: Callable[[], RecordIndex]
) -> RecordIndex:
    """The index of the `count` records of a split in `folder`, identified by `id_feature`; made if there is none."""
    files = sorted(path for path in folder.iterdir() if f"-{split}." in path.name)
    stats = [path.stat() for path in files]
    # A copy of the records has the same names and sizes. In the cache folder, place and times count, too.
    records = _hash([id_feature, count, [(path.name, stat.length) for path, stat in zip(files, stats, strict=True)]])
    cached = _hash([records, str(folder), [stat.mtime for stat in stats]])
    places = (folder / FILE.format(split=split), epath.Path(cache_folder()) / "records" / f"{cached}.npz")
    for path in places:
        if (index := _read(path, records, count)) is not None:
            return index
    index = make()
    for path in places:
        try:
            _write(path, records, index)
            break
        except ClipbiasError as error:
            logging.warning("The index of %s is not kept here: %s", folder, error)
    return index


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _write(path: epath.Path, records: str, index: RecordIndex) -> None:
    ids = np.frombuffer(json.dumps(index.ids).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, of=np.array(records), labels=index.labels, ids=ids, positions=index.positions)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getvalue())


def _read(path: epath.Path, records: str, count: int) -> RecordIndex | None:
    """The index in a file; `None` without a file, or if it is damaged or of records with another hash."""
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as stored:
            if str(stored["of"]) != records:
                return None
            ids = tuple(json.loads(stored["ids"].tobytes()))
            index = RecordIndex(stored["labels"], ids, stored["positions"])
    except Exception:  # a damaged archive raises nearly anything
        return None
    whole = len(index.labels) == count and all(len(part) in (0, count) for part in (index.ids, index.positions))
    return index if whole else None
