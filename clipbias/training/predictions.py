"""Predictions in files beside the results of a run, found again by their identity."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from clipbias.data import Split
from clipbias.errors import ClipbiasError
from clipbias.identity import identity
from clipbias.io import load_arrays, save_arrays
from clipbias.tuning.tuned import Tuned

PREDICTIONS_FOLDER = "predictions"


def predictions_name(name: str) -> str:
    # Names of datasets have slashes, such as `demo/digits`.
    return re.sub(r"[^\w.-]+", "_", name)


def predictions_identity(model: Tuned, images_identity: str) -> str:
    # All that predictions depend on: neither the folder nor the name of a run says which model predicted.
    return identity([model.identity, images_identity])


def save_predictions(
    workdir: Path,
    name: str,
    model: Tuned,
    split: Split,
    predicted: np.ndarray,
    log_probs: np.ndarray | None = None,
    *,
    images_identity: str | None = None,
) -> str:
    """Writes `predictions/NAME.npz` in a run's folder, atomically, and returns the identity of the predictions.

    It holds "images" (names), "labels", "predicted" (-1 for an unreadable image), "class_names", "identity", and for
    runs of a sweep "log_probs" (`forward.BatchPredictions`).
    """
    known_by = predictions_identity(model, images_identity or split.identity)
    path = workdir / PREDICTIONS_FOLDER / f"{predictions_name(name)}.npz"
    arrays = {
        "images": np.asarray(split.keys),
        "labels": np.asarray(split.labels, np.int32),
        "predicted": np.asarray(predicted, np.int32),
        "class_names": np.asarray(model.class_names),
        "identity": np.asarray(known_by),
    }
    save_arrays(path, arrays if log_probs is None else {**arrays, "log_probs": log_probs})
    return known_by


class KnownPredictions:
    """Predictions in the folders of runs, by identity. Damaged files count as missing."""

    def __init__(self, workdirs: Iterable[Path]) -> None:
        self._paths: dict[str, Path] = {}
        for workdir in workdirs:
            for path in sorted((workdir / PREDICTIONS_FOLDER).glob("*.npz")):
                if (stored := stored_identity(path)) is not None:
                    self._paths.setdefault(stored, path)

    def find(self, model: Tuned, split: Split) -> np.ndarray | None:
        """Finds the class of every image, int32 `[n]`, -1 for an unreadable one, predicted by exactly this model."""
        # The identity needs every file of the split; without prediction files it is not computed. A damaged file may
        # hold any array, so its predictions are checked before they stand for computed ones.
        path = self._paths.get(predictions_identity(model, split.identity)) if self._paths else None
        predicted = None if path is None else _read(path, "predicted")
        if predicted is None or predicted.shape != (len(split),) or predicted.dtype != np.int32:
            return None
        return predicted if predicted.min() >= -1 and predicted.max() < len(model.class_names) else None


def stored_identity(path: Path) -> str | None:
    """Reads the identity of predictions; `None` where the file is missing or damaged."""
    stored = _read(path, "identity")
    return None if stored is None or stored.ndim else str(stored)


def _read(path: Path, name: str) -> np.ndarray | None:
    try:
        return load_arrays(path, name)[name]
    except ClipbiasError:
        return None
