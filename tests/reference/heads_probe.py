"""Linear probe (Radford et al. 2021) with CoOp's search of C. Letters: see `heads`; c is the inverse regularisation.

    minimise ½ ‖W‖² + c Σ_n CE_n,  logits = f Wᵀ + b

on raw features, not normalised; the sum is over images, the intercept b is not penalised. The minimum is found by
Newton's method with the whole Hessian of C (d + 1) rows: for small problems.

Where the classes can be told apart and c is large, an L-BFGS that stops at scikit-learn's default tolerance stops well
before the minimum: at c = 100 and above its weights may differ by tenths, and its accuracies too. Compare fits at small
c or at a tight tolerance, and the search of c by `search_inverse` on the accuracies themselves.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from tests.reference import heads

SWEEP = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
STEPS = 8

Fitted = tuple[np.ndarray, np.ndarray]  # W [C, d] and b [C]


def logits(*, features: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """`f Wᵀ + b` on raw features, [B, d] -> [B, C]."""
    return heads.double(features) @ heads.double(weight).T + bias


def objective(
    *, features: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray, inverse: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """`½ ‖W‖² + c Σ CE`, and its gradient with respect to [W, b], [C, d + 1]; and the probabilities [N, C]."""
    f = heads.double(features)
    labels = np.asarray(labels)
    scores = logits(features=f, weight=weight, bias=bias)
    row = np.arange(len(f))
    # Relative to the label's own logit: the loss of a row that is fitted well keeps its digits.
    margins = scores - scores[row, labels][:, None]
    highest = margins.max(-1, keepdims=True)
    others = np.exp(margins - highest)
    others[row, labels] = 0.0
    true_exp = np.exp(-highest[:, 0])
    total = others.sum(-1)
    losses = np.where(highest[:, 0] > 0, highest[:, 0] + np.log(true_exp + total), np.log1p(total))
    probabilities = others / (true_exp + total)[:, None]
    residuals = probabilities.copy()
    residuals[row, labels] = -probabilities.sum(-1)
    probabilities[row, labels] = true_exp / (true_exp + total)
    gradient = inverse * np.concatenate([residuals.T @ f, residuals.sum(0)[:, None]], 1)
    gradient[:, :-1] += weight
    return float(0.5 * (weight**2).sum() + inverse * losses.sum()), gradient, probabilities


def hessian(features: np.ndarray, probabilities: np.ndarray, inverse: float) -> np.ndarray:
    """[C (d + 1), C (d + 1)] of the objective: `c Σ_n (diag(p) - p pᵀ) ⊗ f̃ f̃ᵀ + I` on W; f̃ = (f, 1)."""
    tilde = np.concatenate([heads.double(features), np.ones((len(features), 1))], 1)
    classes = probabilities.shape[1]
    width = tilde.shape[1]
    full = np.zeros((classes, width, classes, width))
    for c in range(classes):
        for k in range(classes):
            weights = probabilities[:, c] * ((c == k) - probabilities[:, k])
            full[c, :, k] = inverse * (tilde * weights[:, None]).T @ tilde
        full[c, range(width - 1), c, range(width - 1)] += 1.0
    return full.reshape(classes * width, classes * width)


def fit(*, features: np.ndarray, labels: np.ndarray, classes: int, inverse: float) -> Fitted:
    """W [C, d] and b [C] at the minimum for c = `inverse`, from zeros by Newton steps that halve until they descend.

    The sum of b's entries is free; it stays 0, as in every method that starts there and follows gradients.
    """
    f = heads.double(features)
    width = f.shape[1] + 1
    point = np.zeros((classes, width))
    shift = np.zeros((classes, width))
    shift[:, -1] = 1.0

    def at(point: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        return objective(features=f, labels=labels, weight=point[:, :-1], bias=point[:, -1], inverse=inverse)

    value, gradient, probabilities = at(point)
    for _ in range(500):
        # The objective does not change along `shift`; any curvature there makes the system solvable.
        curvature = hessian(f, probabilities, inverse) + np.outer(shift, shift)
        step = -np.linalg.solve(curvature, gradient.ravel()).reshape(point.shape)
        slope = float((gradient * step).sum())
        length = 1.0
        trial = at(point + step)
        while trial[0] > value + 1e-4 * length * slope and length > 1e-10:
            length /= 2
            trial = at(point + length * step)
        if length <= 1e-10 or -slope <= 1e-15 * abs(value):
            # Values no longer tell points apart: the last full steps go by the gradient alone.
            trial = at(point + step)
            if np.linalg.norm(trial[1]) >= np.linalg.norm(gradient):
                return point[:, :-1], point[:, -1]
            length = 1.0
        point = point + length * step
        value, gradient, probabilities = trial
    raise ArithmeticError(f"Newton's method did not converge at c = {inverse}.")


@dataclasses.dataclass
class Probe:
    """What the search found."""

    inverse: float  # c of the kept classifier
    weight: np.ndarray  # [C, d]
    bias: np.ndarray  # [C]
    sweep: list[float]  # validation accuracies of SWEEP
    ends: list[tuple[float, float]]  # lo and hi of each of the eight steps
    accuracies: list[tuple[float, float]]  # their validation accuracies


def search_inverse(
    accuracy_of: Callable[[float], float],
) -> tuple[float, list[float], list[tuple[float, float]], list[tuple[float, float]]]:
    """The search alone: kept c, accuracies of SWEEP, the ends of each step and their accuracies.

    The first best of SWEEP; `lo, hi = c/10, 10 c`; then eight times: if acc(lo) < acc(hi) hi is kept and lo moves to
    the geometric middle, else lo is kept and hi moves there, so ties go to the smaller c. The last step's kept end is
    the result.
    """
    sweep = [accuracy_of(inverse) for inverse in SWEEP]
    peak = SWEEP[int(np.argmax(sweep))]
    low = peak / 10
    high = peak * 10
    strength = peak
    ends = []
    accuracies = []
    for _ in range(STEPS):
        pair = accuracy_of(low), accuracy_of(high)
        ends.append((low, high))
        accuracies.append(pair)
        middle = 10 ** (0.5 * (np.log10(low) + np.log10(high)))
        if pair[0] < pair[1]:
            strength = high
            low = middle
        else:
            strength = low
            high = middle
    return float(strength), sweep, ends, accuracies


def search(
    *,
    features: np.ndarray,
    labels: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    classes: int,
) -> Probe:
    """The probe with the c that validation chooses; features [N, d] and [Nval, d] are raw, one test-time pass."""
    fits: dict[float, Fitted] = {}

    def accuracy_of(inverse: float) -> float:
        if inverse not in fits:
            fits[inverse] = fit(features=features, labels=labels, classes=classes, inverse=inverse)
        weight, bias = fits[inverse]
        return heads.accuracy(logits(features=validation_features, weight=weight, bias=bias), validation_labels)

    strength, sweep, ends, accuracies = search_inverse(accuracy_of)
    return Probe(strength, *fits[strength], sweep, ends, accuracies)
