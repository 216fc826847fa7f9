"""The files of a bundle, and how they are read.

`bundle.json` says where the runs come from. Each dataset has one `.npz`, a zip archive that NumPy or any unzip reads:

    cells.jsonl                          a line per run: its row, protocol, and hashes
    summary.json                         means, standard errors and paired differences, as clipbias computed them
    lists/HASH.json                      names, labels and classes of test images, in the order of predictions
    predicted/KEY-EVALUATION.npy         the class of each image, int16 [n]; -1 for an image that could not be read
    log_probs/KEY-EVALUATION.npy         float16 [n, 7]: the five largest log-probabilities, the label's, and the
                                         log-sum-exp of the logits; a logit is a log-probability plus the latter
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.io import read_json

Line = Mapping[str, Any]
FORMAT = 1
INDEX, CELLS, SUMMARY = "bundle.json", "cells.jsonl", "summary.json"
# Bytes that a file may have, and what its members may have unpacked.
LARGEST, UNPACKED = 100_000_000, 1_000_000_000
# Training images per class of the runs whose log-probabilities are kept; 0 is a method that draws none.
WITH_LOG_PROBS = (0, 16)


@dataclasses.dataclass(frozen=True)
class ImageList:
    """Test images in the order of the predictions."""

    names: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def hash(self) -> str:
        """First 16 hex digits of SHA-256 over all three as JSON."""
        return hashlib.sha256(self.json().encode()).hexdigest()[:16]

    def json(self) -> str:
        """As it is stored."""
        return json.dumps({"names": self.names, "labels": self.labels.tolist(), "class_names": self.class_names})


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions of a run in one evaluation.

    Attributes:
      images: what was predicted.
      predicted: int `[n]`, -1 for an image that could not be read.
      log_probs: float32 `[n, 7]`, or `None` where they are not kept.
    """

    images: ImageList
    predicted: np.ndarray
    log_probs: np.ndarray | None

    @property
    def read(self) -> np.ndarray:
        """Which images could be read, bool `[n]`."""
        return self.predicted >= 0

    @property
    def right(self) -> np.ndarray:
        """Whether each image that could be read is right, bool."""
        return (self.predicted == self.images.labels)[self.read]


@dataclasses.dataclass(frozen=True)
class DatasetFile:
    """The runs of one dataset.

    Attributes:
      lines: of the runs.
      summary: means and differences.
      predictions: by the run's key and the name of the evaluation; what is missing or has another length is not there.
      lists: test images by their hash.
    """

    lines: Sequence[Line]
    summary: Mapping[str, Any]
    predictions: Mapping[tuple[str, str], Predictions]
    lists: Mapping[str, ImageList]


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle that was read.

    Attributes:
      name: of its folder.
      facts: of `bundle.json`.
      datasets: by name.
    """

    name: str
    facts: Mapping[str, Any]
    datasets: Mapping[str, DatasetFile]

    @property
    def lines(self) -> list[Line]:
        """Of all runs."""
        return [line for file in self.datasets.values() for line in file.lines]


def read_bundle(folder: Path) -> Bundle:
    """Reads a bundle. Raises `ClipbiasError` where it is none, or a file is damaged or too large."""
    facts = read_json(folder / INDEX, dict, what="the index of a bundle")
    if facts.get("format") != FORMAT:
        raise ClipbiasError(f"{folder / INDEX} has format {facts.get('format')!r}; this program reads {FORMAT}.")
    try:
        files = {str(name): str(facts["datasets"][name]["file"]) for name in facts["datasets"]}
        if foreign := [file for file in files.values() if Path(file).name != file]:
            raise ClipbiasError(f"{folder / INDEX} names {foreign[0]!r}, which is not in its folder.")
        return Bundle(folder.name, facts, {name: read_dataset(folder / file) for name, file in files.items()})
    except (KeyError, TypeError) as error:
        raise ClipbiasError(f"{folder / INDEX} is not the index of a bundle: {error} is missing or no name.") from error


def read_dataset(path: Path) -> DatasetFile:
    """Reads the runs of one dataset. Nothing in the file is run. Raises `ClipbiasError` as `read_bundle` does."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > UNPACKED:
                raise ClipbiasError(f"{path} unpacks to more than {UNPACKED / 1e9:g} GB; it is not read.")
            members = {name: archive.read(name) for name in archive.namelist()}
        lists = {}
        for name in members:
            if name.startswith("lists/"):
                stored = json.loads(members[name])
                labels, names = np.asarray(stored["labels"], np.int64), tuple(stored["names"])
                if labels.shape != (len(names),):
                    raise ValueError(f"{name} has {len(names)} names and {len(labels)} labels")
                found = ImageList(names, labels, tuple(stored["class_names"]))
                lists[found.hash] = found
        lines = [json.loads(line) for line in members[CELLS].decode().splitlines()]
        predictions = {}
        for line in lines:
            for evaluation, list_hash in line["lists"].items():
                place, images = f"{line['key']}-{evaluation}.npy", lists.get(list_hash)
                predicted = _array(members, f"predicted/{place}", np.int16)
                if images is None or predicted is None or predicted.shape != images.labels.shape:
                    continue
                kept = _array(members, f"log_probs/{place}", np.float16)
                if kept is not None and kept.shape != (len(predicted), 7):
                    kept = None
                found_probs = None if kept is None else kept.astype(np.float32)
                predictions[line["key"], evaluation] = Predictions(images, predicted.astype(np.int64), found_probs)
        return DatasetFile(lines, json.loads(members[SUMMARY]), predictions, lists)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, EOFError) as error:
        raise ClipbiasError(f"{path} is not the file of a bundle ({type(error).__name__}: {error}).") from error


def _array(members: Mapping[str, bytes], name: str, dtype: type) -> np.ndarray | None:
    if name not in members:
        return None
    array = np.load(io.BytesIO(members[name]), allow_pickle=False)
    if array.dtype != dtype:
        raise ValueError(f"{name} is {array.dtype}, not {np.dtype(dtype)}")
    return array


def array_bytes(array: np.ndarray) -> bytes:
    """An array as a member `.npy`."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def hash_arrays(*arrays: np.ndarray | None) -> str:
    """SHA-256 over what is predicted: the bytes of int16 classes, and of float16 log-probabilities if any."""
    found = hashlib.sha256()
    for array, kind in zip(arrays, (np.int16, np.float16), strict=True):
        found.update(b"" if array is None else np.ascontiguousarray(array, kind).tobytes())
    return found.hexdigest()


def largest_file(test_images: int, runs: int, with_log_probs: int, name_bytes: int = 56) -> int:
    """Bytes of a dataset's file before compression, which bounds its size.

    Args:
      test_images: of the dataset.
      runs: on all of them (base and new classes together count as one).
      with_log_probs: the runs among them whose log-probabilities are kept.
      name_bytes: of an image's name and label in a list; the second list has base and new classes apart.
    """
    per_line = 4_000  # of `cells.jsonl`, the summary and the archive's index
    return test_images * (2 * runs + 14 * with_log_probs + 2 * name_bytes) + per_line * runs
