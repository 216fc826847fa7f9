"""UPL (Huang et al. 2022): pseudo-labels of plain CLIP, and an ensemble of CoOp's runs on them.

The learnable is `text_context` [S, T, Dt], a context for each run.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import methods, numpy_clip, weights
from tests.reference.methods import Learnables, Reference


def pseudo_labels(
    clip: Reference, class_names: Sequence[str], images: np.ndarray, *, template: str, shots: int
) -> list[tuple[int, int]]:
    """(image, label): of each class the `shots` images of highest probability among those labelled so, surest first."""
    scores = methods.task_logits(clip, "zero_shot", class_names, {}, images, template=template)
    probabilities = numpy_clip.softmax(scores)
    picks = []
    for label in range(len(class_names)):
        places = [image for image, row in enumerate(probabilities) if row.argmax() == label]
        picks += [(image, label) for image in sorted(places, key=lambda image: -probabilities[image, label])[:shots]]
    return picks


def each(learnables: Learnables) -> list[dict[str, np.ndarray]]:
    """The learnables of each run."""
    return [{"text_context": context} for context in learnables["text_context"]]


def logits(clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray) -> np.ndarray:
    """[B, C]: the mean of the runs' logits, not of their probabilities."""
    runs = each(weights.double(learnables))
    return np.mean([methods.task_logits(clip, "coop", class_names, run, images, worded=False) for run in runs], axis=0)


def losses(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """The runs' mean cross-entropies, added up."""
    scores = [
        methods.task_logits(clip, "coop", class_names, run, images, worded=False)
        for run in each(weights.double(learnables))
    ]
    return {"cross_entropy": sum(numpy_clip.cross_entropy(row, labels) for row in scores)}
