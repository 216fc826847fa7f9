"""The few-shot splits of the CoOp benchmark, bit for bit, and imbalanced ones of as many images.

Besides, how many images a number rests on, in numbers, intervals and words.
"""

import heapq
import math
import random
from collections.abc import Sequence

import numpy as np
from absl import logging

from clipbias.data.dataset import Split
from clipbias.errors import ClipbiasError
from clipbias.sentences import counted

# Validation picks per class never exceed this, whatever the number of shots (Zhou et al. 2022).
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
    """Draws `shots` training and `min(shots, 4)` validation images of each class.

    One `random.Random(seed)` stream serves both: first every class of `train`, in the order in which classes first
    appear in the list, then every class of `val`. A class with fewer images gives all it has, in list order, and takes
    nothing from the stream; that is logged. The order of the result is the order of the picks.

    Training images of each class may be `counts`, int `[C]`, in place of `shots`, such as `imbalanced_counts`. Class
    names are for the log. Returns indices into the full splits `train` and `val`, int64.
    """
    if shots < 1:
        raise ClipbiasError(f"shots is {shots}; it must be at least 1 (full training data is another protocol).")
    stream = random.Random(seed)
    train_indices = _draw(stream, train.labels, shots, "train", class_names, counts)
    val_indices = [] if val is None else _draw(stream, val.labels, min(shots, MAX_VAL_SHOTS), "val", class_names)
    return np.asarray(train_indices, np.int64), np.asarray(val_indices, np.int64)


def imbalanced_counts(available: np.ndarray, *, shots: int, seed: int, concentration: float) -> np.ndarray:
    """Draws how many of the `available [C]` training images each class has, int64 `[C]`: on average `shots`.

    Shares of the classes come from a symmetric Dirichlet distribution with a positive `concentration`; the lower, the
    more imbalanced. Each class that has images has at least one and at most all of them. Each further image goes to the
    class with the highest share for its next image among those that have one left, `share / (count + 1/2)`: counts are
    rounded as in Webster's apportionment.

    The shares are drawn from `random.Random(seed)`, whose numbers are the same on every machine.
    """
    stream = random.Random(seed)
    # Gamma variates, divided by their sum, are a draw of a Dirichlet distribution; only their ratios count here.
    shares = [stream.gammavariate(concentration, 1.0) for _ in available]
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
    """Selects images by pseudo-label, as UPL does (Huang et al. 2022): the most confident images of each class.

    Args:
      predicted: `[n]`, the predicted class of each image; -1 for unreadable images.
      other_odds: `[n]`, 1/p - 1 for the probability p of that class. It stays exact where p rounds to 1.
      shots: Images per class at most, `None` for all. A class may have fewer, or none.

    Returns: indices, int64, class by class, the most confident image first, and the earlier one of equal images.
    """
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
    # Class by class in the order in which they first appear, and the images of each in list order.
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


# How many images a number rests on.

# Test images; of fewer the normal distribution is no good approximation, and accuracies have a Wilson interval.
SMALL = 100
# Half the width of a 95 % interval, in standard errors.
WITHIN = 1.959963984540054


def images_per_class(labels: np.ndarray, classes: int) -> list[int]:
    """The smallest and the largest number of images of a class, `[lowest, highest]`."""
    counts = np.bincount(labels, minlength=classes)
    return [int(counts.min()), int(counts.max())]


def range_words(numbers: Sequence[int]) -> str:
    """The smallest and the largest of some numbers: "16", or "6 to 16"."""
    return " to ".join(f"{number:,}" for number in dict.fromkeys((min(numbers), max(numbers))))


def wilson_interval(accuracy: float, images: float) -> tuple[float, float]:
    """The 95 % interval of an accuracy in percent on `n` test images (Wilson 1927).

    `(p + z²/2n ± z √(p (1 − p)/n + z²/4n²)) / (1 + z²/n)`; the accuracy may be a mean over seeds.
    """
    share = min(max(accuracy / 100, 0.0), 1.0)
    square = WITHIN**2 / images
    centre = share + square / 2
    half = WITHIN * math.sqrt(share * (1 - share) / images + square / images / 4)
    low, high = ((centre - half) / (1 + square), (centre + half) / (1 + square))
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def accuracy_words(accuracy: float, images: int, what: str = "test image") -> str:
    """An accuracy with the number of images: "91.67 % of 12 test images (95 % interval 64.6 to 98.5)"."""
    words = f"{accuracy:.2f} % of {counted(images, what)}"
    if images >= SMALL:
        return words
    low, high = wilson_interval(accuracy, images)
    return f"{words} (95 % interval {low:.1f} to {high:.1f})"
