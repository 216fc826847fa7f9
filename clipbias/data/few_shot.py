"""The few-shot splits of the CoOp benchmark, bit for bit; imbalanced splits."""

import heapq
import random
from collections.abc import Sequence

import numpy as np
from absl import logging

from clipbias.data.dataset import Split
from clipbias.errors import ClipbiasError

# Most validation images per class (Zhou et al. 2022).
MAX_VAL_SHOTS = 4


def few_shot(
    train: Split,
    val: Split | None,
    *,
    shots: int,
    seed: int,
    class_names: Sequence[str] = (),
    counts: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws `shots` training and `min(shots, 4)` validation images of each class, as CoOp's code does.

    `counts`, int `[C]`, replaces `shots` for training images. Returns indices, int64, in the order of the picks.
    """
    if shots < 1:
        raise ClipbiasError(f"shots is {shots}; it must be at least 1 (full training data is another protocol).")
    # One stream serves both splits, first `train`, then `val`: another order gives other images than the published.
    stream = random.Random(seed)
    train_indices = _draw(stream, train.labels, shots, "train", class_names, counts)
    val_indices = [] if val is None else _draw(stream, val.labels, min(shots, MAX_VAL_SHOTS), "val", class_names)
    return np.asarray(train_indices, np.int64), np.asarray(val_indices, np.int64)


def imbalanced_counts(available: np.ndarray, *, shots: int, seed: int, concentration: float) -> np.ndarray:
    """Draws the number of training images of each class, int64 `[C]`: on average `shots`, at most `available [C]`.

    Shares of the classes come from a symmetric Dirichlet distribution with a positive `concentration`; the lower, the
    more imbalanced. Every class with images has at least one. Counts are rounded by Webster's apportionment.
    """
    stream = random.Random(seed)  # the same numbers on every machine
    # Gamma variates, divided by their sum, are a draw of a Dirichlet distribution; only their ratios count here.
    shares = [stream.gammavariate(concentration, 1.0) for _ in available]
    # Webster: each further image goes to the class with the highest `share / (count + 1/2)` that has an image left.
    # One image for each class first: a class without any could not be learned at all.
    counts = np.minimum(available, 1).astype(np.int64)
    queue = [(-shares[label] / 1.5, label) for label in np.flatnonzero(available > 1).tolist()]
    heapq.heapify(queue)
    for _ in range(min(shots * int(counts.sum()), int(available.sum())) - int(counts.sum())):
        _, label = heapq.heappop(queue)
        counts[label] += 1
        if counts[label] < available[label]:
            heapq.heappush(queue, (-shares[label] / (counts[label] + 0.5), label))
    return counts


def most_confident(predicted: np.ndarray, other_odds: np.ndarray, *, shots: int | None) -> np.ndarray:
    """Selects the most confident images of each predicted class, as UPL does (Huang et al. 2022).

    `predicted [n]` are classes, -1 for unreadable images; `other_odds [n]` are 1/p - 1 for their probabilities p.
    Returns indices, int64, class by class, the most confident image first, at most `shots` of each.
    """
    # Odds and not probabilities: of confident images p rounds to 1, and their order would be lost.
    # Stable, so that equal confidences keep the order of the list on every machine.
    order = np.argsort(other_odds, kind="stable")
    by_class = [order[predicted[order] == label] for label in np.unique(predicted[predicted >= 0])]
    return np.concatenate([indices[:shots] for indices in by_class] or [order[:0]]).astype(np.int64)


def _draw(
    stream: random.Random,
    labels: np.ndarray,
    shots: int,
    split_name: str,
    class_names: Sequence[str],
    counts: np.ndarray | None = None,
) -> Sequence[int]:
    # The order of CoOp's dictionaries, which decides how the stream is used: classes as they first appear, images of
    # each in list order. A class with too few images gives all of them, and takes nothing from the stream.
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(labels) else []
    picks: list[int] = []
    short = []
    for part in sorted(parts, key=lambda part: part[0]):
        indices = part.tolist()
        label = int(labels[indices[0]])
        count = shots if counts is None else int(counts[label])
        if len(indices) < count:
            short.append(f"{class_names[label] if class_names else f'class {label}'} has {len(indices)}")
            picks.extend(indices)
        else:
            picks.extend(stream.sample(indices, count))
    if short:
        examples = ", ".join(short[:5]) + (f" and {len(short) - 5} more" if len(short) > 5 else "")
        logging.warning("Fewer than %d %s images in some classes, all of them used: %s.", shots, split_name, examples)
    return picks


def images_per_class(labels: np.ndarray, classes: int) -> list[int]:
    """Returns the smallest and the largest number of images of a class, `[lowest, highest]`."""
    counts = np.bincount(labels, minlength=classes)
    return [int(counts.min()), int(counts.max())]


def range_words(counts: Sequence[int]) -> str:
    """Formats the smallest and the largest of some numbers: "16", or "6 to 16"."""
    return " to ".join(f"{number:,}" for number in dict.fromkeys((min(counts), max(counts))))
