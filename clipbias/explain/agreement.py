"""How far a replacement decides as a tuned model does, from the logits or decisions of both on the same images.

Intervals are those of closed form, which hold where no image differs: a bootstrap would then claim certainty.
"""

import numpy as np

from clipbias.data.few_shot import wilson_interval
from clipbias.explain.uncertainty import LEVEL, Estimate, mean_of_few

# Two programs that compute the same unit-length feature in float32 differ by less.
ROUNDING = 1e-5


def divergences(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """`KL(softmax teacher ‖ softmax student)` of logits `[n, C]`, in nats and float64: `[n]`."""
    log_p = _log_softmax(teacher)
    return (np.exp(log_p) * (log_p - _log_softmax(student))).sum(-1)


def mean_divergence(teacher: np.ndarray, student: np.ndarray) -> Estimate:
    """The mean divergence over images, with Student's interval, which does not go below 0."""
    mean = mean_of_few(divergences(teacher, student).tolist())
    return mean if mean.low is None else Estimate(mean.value, max(0.0, mean.low), mean.high)


def agreement(same: np.ndarray) -> Estimate | None:
    """The share of images `[n]` with the same decision, with Wilson's interval (1927); `None` without an image."""
    if not len(same):
        return None
    share = int(np.count_nonzero(same)) / len(same)
    low, high = wilson_interval(100 * share, len(same))
    return Estimate(share, low / 100, high / 100)


def mean_cosine(frozen: np.ndarray, tuned: np.ndarray, other: np.ndarray) -> Estimate | None:
    """The mean cosine between what two models change of image features, with Student's interval.

    Args:
      frozen, tuned, other: unit-length features `[n, d]` of the same images.

    Returns:
      Over the images that both move by more than rounding; `None` without such an image.
    """
    changes = [np.asarray(each, np.float64) - np.asarray(frozen, np.float64) for each in (tuned, other)]
    norms = [np.linalg.norm(each, axis=-1) for each in changes]
    moved = (norms[0] > ROUNDING) & (norms[1] > ROUNDING)
    if not moved.any():
        return None
    cosines = (changes[0] * changes[1]).sum(-1)[moved] / (norms[0] * norms[1])[moved]
    return mean_of_few(cosines.tolist())


def accuracy_difference(correct: np.ndarray, teacher_correct: np.ndarray) -> Estimate:
    """The accuracy of a student less that of its teacher on the same images, as a share.

    The interval is that of Agresti and Min (2005): half an image is added to each cell of the two by two table.

    Args:
      correct: which images the student has right, bool `[n]`.
      teacher_correct: which the teacher has.
    """
    from scipy import stats

    student_alone = int(np.count_nonzero(correct & ~teacher_correct))
    teacher_alone = int(np.count_nonzero(~correct & teacher_correct))
    images = len(correct)
    difference = (student_alone - teacher_alone) / (images + 2)
    variance = ((student_alone + teacher_alone + 1) / (images + 2) - difference**2) / (images + 2)
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * float(np.sqrt(variance))
    return Estimate((student_alone - teacher_alone) / images, difference - half, difference + half)


def proven_margin(difference: Estimate) -> float:
    """The smallest loss of accuracy that an interval of `accuracy_difference` rules out; 0 for a sure gain."""
    assert difference.low is not None, "a paired difference has an interval"
    return max(0.0, -difference.low)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    below = logits - logits.max(-1, keepdims=True)
    return below - np.log(np.exp(below).sum(-1, keepdims=True))
