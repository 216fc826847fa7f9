"""The few-shot splits of the CoOp benchmark, bit for bit."""

import random
from collections.abc import Sequence

import numpy as np
from absl import logging

from clipbias.data.dataset import Split
from clipbias.errors import ClipbiasError

# Validation picks per class never exceed this, whatever the number of shots (Zhou et al. 2022).
MAX_VAL_SHOTS = 4


def few_shot(
    train: Split, val: Split | None, *, shots: int, seed: int, class_names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Draws `shots` training and `min(shots, 4)` validation images of each class.

    One `random.Random(seed)` stream serves both: first every class of `train`, in the order in which classes first
    appear in the list, then every class of `val`. A class with fewer images gives all it has, in list order, and takes
    nothing from the stream; that is logged. The order of the result is the order of the picks.

    Args:
      train: The full training split.
      val: The full validation split, or None.
      shots: Images per class, at least 1.
      seed: The protocol's seed; the literature uses 1, 2, 3.
      class_names: For the log, which has labels without them.

    Returns:
      Indices into `train` and into `val`, int64.
    """
    if shots < 1:
        raise ClipbiasError(f"shots is {shots}; it must be at least 1 (full training data is another protocol).")
    stream = random.Random(seed)
    train_indices = _draw(stream, train.labels, shots, "train", class_names)
    val_indices = [] if val is None else _draw(stream, val.labels, min(shots, MAX_VAL_SHOTS), "val", class_names)
    return np.asarray(train_indices, np.int64), np.asarray(val_indices, np.int64)


def most_confident(predicted: np.ndarray, other_odds: np.ndarray, *, shots: int | None) -> np.ndarray:
    """Selects images by pseudo-label, as UPL does (Huang et al. 2022): the most confident images of each class.

    Args:
      predicted: `[n]`, the predicted class of each image; -1 for unreadable images.
      other_odds: `[n]`, 1/p - 1 for the probability p of that class. It stays exact where p rounds to 1.
      shots: Images per class at most, `None` for all. A class may have fewer, or none.

    Returns:
      Indices, int64, class by class, the most confident image first, and the earlier one of equal images.
    """
    order = np.argsort(other_odds, kind="stable")
    by_class = [order[predicted[order] == label] for label in np.unique(predicted[predicted >= 0])]
    return np.concatenate([indices[:shots] for indices in by_class] or [order[:0]]).astype(np.int64)


def _draw(
    stream: random.Random, labels: np.ndarray, shots: int, split_name: str, class_names: Sequence[str]
) -> Sequence[int]:
    # Class by class in the order in which they first appear, and the images of each in list order.
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(labels) else []
    picks: list[int] = []
    short = []
    for part in sorted(parts, key=lambda part: part[0]):
        indices = part.tolist()
        if len(indices) < shots:
            label = int(labels[indices[0]])
            short.append(f"{class_names[label] if class_names else f'class {label}'} has {len(indices)}")
            picks.extend(indices)
        else:
            picks.extend(stream.sample(indices, shots))
    if short:
        examples = ", ".join(short[:5]) + (f" and {len(short) - 5} more" if len(short) > 5 else "")
        logging.warning("Fewer than %d %s images in some classes, all of them used: %s.", shots, split_name, examples)
    return picks
