"""Recomputes the rows of work folders from the predictions that lie in them.

    python -m tools.recompute workdir/demo
    python -m tools.recompute /results/lab/most_shots /results/lab/few_shot

Prints one line per problem and ends with status 1 if there is any. It shares no code with what wrote the rows, which
have the identities of their predictions. It trusts neither: whoever can change one can change the other.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from absl import app
from sklearn.metrics import precision_recall_fscore_support

from clipbias.errors import ClipbiasError
from clipbias.io import read_json_lines
from clipbias.sentences import counted
from clipbias.terminal import printable
from experiments import common

BINS = 15
# How a row stands.
AGREES, DIFFERS, FAILED = "agrees", "differs", "failed"
# A row's fields with one evaluation, and with several.
FIELDS = {
    "accuracy": "accuracies",
    "images": "tested_images",
    "calibration": "calibrations",
    "class_summary": "class_summaries",
}


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of predictions. Raises `ValueError` if they are impossible."""
    with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as file:
        arrays = {name: np.asarray(file[name]) for name in file.files}
    labels, predicted = arrays["labels"], arrays["predicted"]
    if labels.min() < 0 or predicted.min() < -1 or max(labels.max(), predicted.max()) >= len(arrays["class_names"]):
        raise ValueError("it has numbers that belong to no class")
    return arrays


def calibration_errors(log_probs: np.ndarray, right: np.ndarray) -> dict[str, tuple[float, float]]:
    """Both calibration errors in percent, each with the most that half precision may have changed.

    Rounding changes each confidence, and may move images that are near the edge of a bin into the next bin.
    """
    confidence = np.exp(log_probs.astype(np.float64))
    rounding = confidence * (np.abs(log_probs.astype(np.float64)) * 2.0**-11 + 2.0**-24)
    parts = np.array_split(np.lexsort((right, confidence)), BINS)
    by_width = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int)
    by_count = np.empty(len(confidence), int)
    for number, part in enumerate(parts):
        by_count[part] = number
    edges = np.array([confidence[part[0]] for part in parts[1:] if len(part)])
    errors = {}
    for name, bins, limits in (("ece", by_width, np.arange(1, BINS) / BINS), ("adaptive_ece", by_count, edges)):
        near = (np.abs(confidence[:, None] - limits) <= 2 * rounding[:, None]).any(axis=1)
        error = np.abs(np.bincount(bins, right - confidence)).sum()
        tolerance = rounding.sum() + 2 * np.abs(right - confidence)[near].sum()
        errors[name] = (100 * float(error) / len(right), 100 * float(tolerance) / len(right) + 1e-4)
    return errors


def class_means(labels: np.ndarray, predicted: np.ndarray) -> dict[str, tuple[float, float]]:
    """The scores that count classes alike by scikit-learn, in percent, each with a tolerance."""
    _, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=np.unique(labels), zero_division=0)
    means = {"balanced_accuracy": recall.mean(), "macro_f1": f1.mean(), "worst_accuracy": recall.min()}
    return {name: (100 * float(value), 1e-9) for name, value in means.items()}


def compare(scores: Mapping[str, object], arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Yields a sentence for each problem of an evaluation: its scores by the row, its predictions' arrays."""
    read = arrays["predicted"] >= 0
    right = (arrays["predicted"] == arrays["labels"])[read]
    if not len(right):
        yield "no image has a prediction"
        return
    numbers = {"accuracy": (100 * right.mean(), 1e-9), "images": (len(right), 0), "correct": (right.sum(), 0)}
    numbers |= class_means(arrays["labels"][read], arrays["predicted"][read])
    if unread := len(read) - len(right):
        wrong_too = f"with all of them wrong {100 * right.sum() / len(read):.2f} %"
        yield f"{counted(unread, 'image')} without a prediction (-1): {wrong_too}"
    if "log_probs" in arrays:
        log_probs = arrays["log_probs"][read]
        if not np.isfinite(log_probs[:, [0, 5]]).all():
            yield "log-probabilities are not finite"
            return
        # A class that is predicted has the largest log-probability, any other at most the second. Compiled programs may
        # compute the label's in another way than the five largest: from logits that are rounded once less.
        first, label = log_probs[:, 0], log_probs[:, 5]
        bound = np.where(right, first, log_probs[:, 1])
        above = label.astype(np.float64) - bound
        rounding = np.spacing(np.abs(bound)) + 2.0**-23 * np.abs(log_probs[:, 6].astype(np.float64))
        wrong = np.where(right, np.abs(above), above) > rounding
        if wrong.any():
            yield f"classes and log-probabilities contradict each other on {counted(wrong.sum(), 'image')}"
        numbers |= calibration_errors(first, right)
    for name, (number, tolerance) in numbers.items():
        value = scores[name]
        agrees = isinstance(value, int | float) and abs(value - number) <= tolerance
        if not agrees and (name, value) != ("correct", None):  # a row of several evaluations has none
            yield f"{name} is {value} in the row, {number:.6g} by the predictions"


def scores_of(row: Mapping[str, Any], evaluation: str) -> dict[str, object]:
    """The numbers of an evaluation in a row."""
    accuracy, images, calibration, classes = (
        row[name] if name in row else row[by_evaluation][evaluation] for name, by_evaluation in FIELDS.items()
    )
    scores = {"accuracy": accuracy, "images": images, "correct": row.get("correct")}
    scores |= {name: calibration[name] for name in ("ece", "adaptive_ece")}
    return scores | {name: classes[name] for name in ("balanced_accuracy", "macro_f1", "worst_accuracy")}


def check_row(row: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Yields a sentence for each problem of a row of a work folder."""
    if row.get("status") == "failed":
        if "accuracy" in row or "predictions" in row:
            yield "the run counts as failed, but has results"
        return
    for evaluation, name in row["predictions"].items():
        try:
            arrays = read_predictions(folder / "predictions" / f"{name}.npz")
            problems = list(compare(scores_of(row, evaluation), arrays))
            if row["identities"][evaluation] != str(arrays["identity"]):
                problems.append(f"{name}.npz has the predictions of another run")
        except Exception as error:  # a damaged archive, or a row without a number, raises nearly anything
            problems = [f"cannot compare with {name}.npz: {error!r}"]
        yield from (f"{evaluation}: {problem}" for problem in problems)


def main(folders: Sequence[str]) -> int:
    """Prints the problems of all rows; returns the exit status."""
    if not folders:
        raise ClipbiasError("give work folders of `train` or `table1`: python -m tools.recompute workdir/demo.")
    different = {Path(folder).resolve(): Path(folder) for folder in folders}.values()
    counts = Counter[str]()
    for folder in different:
        keys = set[object]()
        for row in read_json_lines(folder / "results.jsonl"):
            key = str(row.get("key"))
            problems = ["the run is listed twice"] if key in keys else list(check_row(row, folder))
            keys.add(key)
            failed = row.get("status") == "failed" and not problems
            counts.update([FAILED if failed else DIFFERS if problems else AGREES])
            run = ", ".join(f"{name} {row.get(name)}" for name in ("method", "dataset", "shots", "seed"))
            for problem in problems:
                print(printable(f"{folder}: {run}: {problem}"))
    if not counts:
        raise ClipbiasError("none of the folders has a results.jsonl with rows.")
    failed_runs = f"; {counted(counts[FAILED], 'run')} failed" if counts[FAILED] else ""
    compared = counts[AGREES] + counts[DIFFERS]
    print(f"{counts[AGREES]} of {compared} rows agree with their predictions{failed_runs}. Neither is trusted.")
    return int(counts[DIFFERS] > 0)


if __name__ == "__main__":
    common.quiet()
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
