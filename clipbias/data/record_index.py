"""What the records of one split are, without reading them: names, labels, and the order in which they were given.

The index lies beside the records, or where their folder may not be written, in the user's cache folder. It is made
once, by reading all records: when shards are built, or when records of others are opened for the first time.
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
    """Of `n` records.

    Attributes:
      labels: int32 [n].
      ids: the identifying feature of each record, which may repeat; empty where there is none.
      positions: int64 [n], where each record stood among those that were given to the builder, or [0].
    """

    labels: np.ndarray
    ids: tuple[str, ...]
    positions: np.ndarray


def find_or_make(
    folder: epath.Path, split: str, id_feature: str | None, count: int, make: Callable[[], RecordIndex]
) -> RecordIndex:
    """The index of the `count` records of a split in `folder`, which `id_feature` tells apart; made where it lacks."""
    files = sorted(path for path in folder.iterdir() if f"-{split}." in path.name)
    stats = [path.stat() for path in files]
    # A copy of the records has the same names and sizes. In the cache folder, place and times count, too.
    of = _hash([id_feature, count, [(path.name, stat.length) for path, stat in zip(files, stats, strict=True)]])
    kept = _hash([of, str(folder), [stat.mtime for stat in stats]])
    places = (folder / FILE.format(split=split), epath.Path(cache_folder()) / "records" / f"{kept}.npz")
    for path in places:
        if (index := _read(path, of, count)) is not None:
            return index
    index = make()
    for path in places:
        try:
            _write(path, of, index)
            break
        except ClipbiasError as error:
            logging.warning("The index of %s is not kept here: %s", folder, error)
    return index


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _write(path: epath.Path, of: str, index: RecordIndex) -> None:
    ids = np.frombuffer(json.dumps(index.ids).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, of=np.array(of), labels=index.labels, ids=ids, positions=index.positions)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getvalue())


def _read(path: epath.Path, of: str, count: int) -> RecordIndex | None:
    """The index in a file; `None` where there is none, or it is damaged or of other records."""
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as stored:
            if str(stored["of"]) != of:
                return None
            ids = tuple(json.loads(stored["ids"].tobytes()))
            index = RecordIndex(stored["labels"], ids, stored["positions"])
    except Exception:  # a damaged archive raises nearly anything
        return None
    whole = len(index.labels) == count and all(len(part) in (0, count) for part in (index.ids, index.positions))
    return index if whole else None
