"""Which test images the runs of a table answered rightly, from the predictions in their work folder."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.io import check_file, read_bytes


class Answered:
    """Answers by run. What is damaged, of other images, or does not agree with its row counts as not there."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        # Of each measure and dataset the images that the first of its runs was tested on.
        self._images: dict[tuple[str, str], np.ndarray] = {}

    def correct(self, measure: str, rows: Mapping[int | None, Mapping[str, Any]]) -> dict[int | None, np.ndarray]:
        """By seed, whether each test image was right, bool `[n]`; empty unless that is known of all seeds.

        Args:
          measure: a column of the table; "accuracy" is the evaluation called "test".
          rows: of a cell, by seed.
        """
        found = {seed: self._read("test" if measure == "accuracy" else measure, row) for seed, row in rows.items()}
        return {} if any(one is None for one in found.values()) else found  # type: ignore[return-value]

    def _read(self, evaluation: str, row: Mapping[str, Any]) -> np.ndarray | None:
        name = (row.get("predictions") or {}).get(evaluation)
        if self._folder is None or not name or Path(name).name != name:
            return None
        path = self._folder / f"{name}.npz"
        try:
            check_file(path)
            with np.load(BytesIO(read_bytes(path)), allow_pickle=False) as stored:
                images, labels, predicted = (stored[part] for part in ("images", "labels", "predicted"))
            read = predicted >= 0
            images, correct = images[read], (labels == predicted)[read]
        except (ClipbiasError, Exception):  # a damaged archive raises nearly anything
            return None
        accuracy = (row.get("accuracies") or {}).get(evaluation, row.get("accuracy"))
        if not len(correct) or abs(100 * float(correct.mean()) - float(accuracy or 0.0)) > 1e-6:
            return None
        known = self._images.setdefault((evaluation, str(row["dataset"])), images)
        return correct if np.array_equal(known, images) else None
