"""Reading array_record datasets of tensorflow-datasets without tensorflow."""

import dataclasses
import json
import re
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from clipbias import files
from clipbias.errors import ClipbiasError

INDEX_FILE = "clipbias_index_{split}.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """One split of a prepared dataset.

    Attributes:
      ids: The identifying feature of each record, or its number where there is none.
      labels: int32 [n].
      order: The records in the order in which they were given to the builder, int64 [n]; TFDS shuffles them.
      read: Record number to encoded image bytes.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    order: np.ndarray
    read: "Reader"


class Reader:
    """Record number to encoded image bytes; opens the files at the first use."""

    def __init__(self, prepared: "Prepared", split: str) -> None:
        self._prepared = prepared
        self._split = split
        self._source: Any = None
        self._lock = threading.Lock()

    def __call__(self, number: int) -> bytes:
        with self._lock:
            if self._source is None:
                self._source = self._prepared.source(self._split)
        return self._source[int(number)]["image"]


class Prepared:
    """A dataset that TFDS has prepared as array_record in `folder` (the one that holds `dataset_info.json`)."""

    def __init__(self, folder: epath.PathLike) -> None:
        import tensorflow_datasets as tfds

        self.folder = epath.Path(folder)
        self._tfds = tfds
        self._builder = tfds.builder_from_directory(self.folder)
        file_format = self._builder.info.file_format
        if file_format is None or file_format.value != "array_record":
            raise ClipbiasError(
                f"{self.folder} is stored as {file_format.value if file_format else 'an unknown format'}, which needs "
                f"tensorflow to read; convert it: tfds convert_format --dataset_version_dir={self.folder} "
                "--out_file_format=array_record --out_dir=<new folder>"
            )

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._builder.info.splits)

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self._builder.info.features["label"].names)

    @property
    def metadata(self) -> Mapping:
        return self._builder.info.metadata or {}

    def source(self, split: str) -> Any:
        """Random access to the records of a split; images stay encoded."""
        features = self._builder.info.features
        skip = {
            key: self._tfds.decode.SkipDecoding()
            for key, feature in features.items()
            if isinstance(feature, self._tfds.features.Image)
        }
        return self._builder.as_data_source(split, decoders=skip)

    def records(self, split: str, id_feature: str | None) -> Records:
        """Identifiers and labels of a split; the first time this reads it whole and leaves an index beside it."""
        count = self._builder.info.splits[split].num_examples
        path = self.folder / INDEX_FILE.format(split=split)
        index = json.loads(path.read_text()) if path.exists() else {}
        if index.get("id_feature") != id_feature or len(index.get("labels", ())) != count:
            index = self._read_index(split, id_feature)
            try:
                files.write_text(path, json.dumps(index, ensure_ascii=False))
            except ClipbiasError as error:  # a read-only copy works too, only slower
                logging.warning("The index of %s is not kept: %s", self.folder, error)
        ids = tuple(index["ids"]) if id_feature else tuple(f"{number:07d}" for number in range(count))
        positions = index["positions"] or range(count)
        return Records(
            ids, np.asarray(index["labels"], np.int32), np.argsort(positions, kind="stable"), Reader(self, split)
        )

    def _read_index(self, split: str, id_feature: str | None) -> dict:
        features = self._builder.info.features
        for wanted in ("image", "label", id_feature):
            if wanted is not None and wanted not in features:
                raise ClipbiasError(f"{self.folder} has no feature {wanted!r}; it has {', '.join(features)}.")
        ids, labels, positions = [], [], []
        source = self.source(split)
        for number in range(len(source)):
            record = source[number]
            labels.append(int(record["label"]))
            if id_feature:
                ids.append(bytes(record[id_feature]).decode("utf-8"))
            if "position" in features:
                positions.append(int(record["position"]))
        return {"id_feature": id_feature, "ids": ids, "labels": labels, "positions": positions}


def find_prepared(data_dir: epath.PathLike, builder: str, lowest_version: str = "0.0.0") -> Prepared:
    """The newest prepared version of `builder` below `data_dir`.

    Raises:
      ClipbiasError: none is prepared, only versions that are too old are, or it is not array_record.
    """
    place = epath.Path(data_dir).expanduser() / builder
    versions = [path for path in place.iterdir() if _is_prepared(path)] if place.exists() else []
    wanted = [path for path in versions if _key(path.name) >= _key(lowest_version)]
    if not wanted:
        found = f"only version {', '.join(sorted(path.name for path in versions))}" if versions else "nothing"
        at_least = f" in version {lowest_version} or later" if lowest_version != "0.0.0" else ""
        exact = f":{lowest_version}" if lowest_version != "0.0.0" else ""
        raise ClipbiasError(
            f"{builder} is not prepared{at_least} under {data_dir} (found {found}); prepare it where tensorflow is "
            f"installed (pip install 'clipbias[tensorflow]'): python -c \"import tensorflow_datasets as tfds; "
            f"tfds.builder('{builder}{exact}', data_dir='{data_dir}', file_format='array_record')"
            '.download_and_prepare()"'
        )
    return Prepared(max(wanted, key=lambda path: _key(path.name)))


def _is_prepared(path: epath.Path) -> bool:
    return bool(_VERSION.fullmatch(path.name)) and (path / "dataset_info.json").exists()


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
