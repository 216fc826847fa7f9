"""What was predicted for every image of an evaluation, in a file beside its results.

`predictions/NAME.npz` holds "images" (names), "labels" and "predicted" (class numbers, -1 where an image could not be
read), "class_names", the "log_probs" of a sweep's runs (`outcomes.BatchOutcome`), and the "fingerprint" of all inputs,
by which they are found again.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipbias.clip.precision import named
from clipbias.data import Split
from clipbias.io import atomic_path, check_file, read_bytes
from clipbias.tuning import Learnables, Task
from clipbias.tuning.registry import source_digest

FOLDER = "predictions"


def fingerprint(task: Task, learnables: Learnables, method: str, split: Split | None) -> str:
    """Names the predictions of a tuned model: its weights, preprocessing, texts and learnables, the images and labels.

    Args:
      task: bound to the classes.
      learnables: of one run.
      method: the method's name, whose program counts if it is of the user's own.
      split: the images; `None` names the model alone.
    """
    facts: list[Any] = [
        None if split is None else split.stored_digest,
        task.clip.fingerprint,
        repr(task.clip.preprocessing),
        method,
        source_digest(method),
    ]
    facts += [repr(sorted(task.options().items())), task.class_names, task.texts, named(task.classifier.dtype)]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(learnables), key=lambda x: str(x[0])):
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def predictions_name(name: str) -> str:
    """What predictions are called in files."""
    return re.sub(r"[^\w.-]+", "_", name)


def save_predictions(
    workdir: Path,
    name: str,
    task: Task,
    learnables: Learnables,
    method: str,
    split: Split,
    predicted: np.ndarray,
    log_probs: np.ndarray | None = None,
) -> str:
    """Writes `predictions/NAME.npz` of a run's folder, atomically; `predicted [n]` are class numbers or -1.

    Returns:
      The fingerprint of all inputs.
    """
    inputs = fingerprint(task, learnables, method, split)
    path = workdir / FOLDER / f"{predictions_name(name)}.npz"
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            images=np.asarray(split.keys),
            labels=np.asarray(split.labels, np.int32),
            predicted=np.asarray(predicted, np.int32),
            class_names=np.asarray(task.class_names),
            fingerprint=np.asarray(inputs),
            **({} if log_probs is None else {"log_probs": log_probs}),
        )
    return inputs


class KnownPredictions:
    """Those in the folders of runs, by fingerprint. What is damaged counts as not there."""

    def __init__(self, workdirs: Iterable[Path]) -> None:
        self._paths: dict[str, Path] = {}
        for workdir in workdirs:
            for path in sorted((workdir / FOLDER).glob("*.npz")):
                stored = _read(path, "fingerprint")
                if stored is not None and stored.ndim == 0:
                    self._paths.setdefault(str(stored), path)

    def find(self, task: Task, learnables: Learnables, method: str, split: Split) -> np.ndarray | None:
        """The class number that was predicted for every image, int32 `[n]`, -1 where one could not be read.

        `None` where nothing with exactly this model and these images is known.
        """
        path = self._paths.get(fingerprint(task, learnables, method, split)) if self._paths else None
        predicted = None if path is None else _read(path, "predicted")
        if predicted is None or predicted.shape != (len(split),) or predicted.dtype != np.int32:
            return None
        return predicted if predicted.min() >= -1 and predicted.max() < len(task.class_names) else None


def _read(path: Path, name: str) -> np.ndarray | None:
    try:
        check_file(path)
        with np.load(BytesIO(read_bytes(path)), allow_pickle=False) as stored:
            return stored[name]
    except Exception:  # a damaged archive raises nearly anything
        return None
