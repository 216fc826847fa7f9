"""The calibrated log-likelihood: logits divided by a temperature that was fitted on other images.

A temperature moves no decision, but the raw log-likelihood books it as a gain. So each model, mixture or replacement
gets a temperature of its own by maximum likelihood (Guo et al. 2017). The images are split into halves, each of which
is scored with the temperature of the other.

A half that a model gets wholly right has no temperature of its own: its likelihood rises down to the lower bound, where
a single mistake in the other half would cost hundreds of nats. It takes the temperature of all images.

In every resample of the images the temperatures are fitted anew. The sum of log-likelihoods and its first two
derivatives by `s = -log(temperature)` are linear in the counts of the images, so that one matrix product gives them at
nodes for all resamples. Between two nodes a polynomial of degree five with these values is exact to about 1e-8.

What a wrong temperature costs grows with the square of the distance `d` between both halves' temperatures. In resamples
`d` has a second error beside the images' own, as large and independent of it, and the variance of `d²` is three times
what other images give (24 σ⁴ against 8 σ⁴ for errors of variance σ² in each half). So this part of a resample's change
is divided by the root of three. Without that, 95 % intervals of effects covered up to 99 %.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from clipbias.explain.uncertainty import draw_counts, weigh
from clipbias.training.calibration import COLDEST, HOTTEST, fit_temperatures, log_likelihoods

# Images times classes up to which temperatures are fitted anew in every resample.
REFIT_UP_TO = 100_000
_LOW = -np.log(HOTTEST)
_HIGH = -np.log(COLDEST)
_NODES = np.linspace(_LOW, _HIGH, 37)
_STEP = _NODES[1] - _NODES[0]
# Numbers held at once for one form: images by nodes by classes.
_AT_ONCE = 4_000_000


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """Log-likelihoods of the true class after calibration, in nats.

    Attributes:
      values: `[n, K]`, each image with the temperature of the other half.
      draws: `[RESAMPLES, K]`, means over resamples of the images, the part of new temperatures as said above.
      temperatures: `[2, K]`, of the first half and of the second.
      refitted: whether resamples have temperatures of their own. If not, their spread is not in the draws.
    """

    values: np.ndarray
    draws: np.ndarray
    temperatures: np.ndarray
    refitted: bool


def halves(labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Which images are in the second half, bool `[n]`: half of every class, up to one image, drawn by the seed."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(np.asarray(labels)[shuffled], kind="stable")]
    second = np.zeros(len(labels), bool)
    second[by_class[1::2]] = True
    return second


def calibrate(
    logits: np.ndarray,
    labels: np.ndarray,
    counts: np.ndarray | None = None,
    *,
    seed: int = 0,
    refit: bool | None = None,
) -> Calibrated:
    """Cross-fitted log-likelihoods of logits `[n, K, C]`, each of the `K` with temperatures of its own.

    Args:
      logits: of models, mixtures or replacements on the same images.
      labels: `[n]`.
      counts: `[RESAMPLES, n]` of `draw_counts`; drawn by the seed where it is `None`.
      seed: draws the halves.
      refit: whether temperatures are fitted in every resample; `None` where images times classes allow it.
    """
    labels = np.asarray(labels)
    n, forms, classes = logits.shape
    counts = draw_counts(n, seed=seed) if counts is None else counts
    refit = n * classes <= REFIT_UP_TO if refit is None else refit
    second = halves(labels, seed=seed)
    temperatures = np.stack([fit_temperatures(logits[part], labels[part]) for part in (~second, second)])
    lowest = temperatures == COLDEST
    if lowest.any():
        temperatures = np.where(lowest, fit_temperatures(logits, labels), temperatures)
    log_scales = -np.log(np.where(second[:, None], temperatures[0], temperatures[1]))
    values = log_likelihoods(logits, labels, log_scales[:, :, None])[..., 0, 0]
    fixed = weigh(counts, values) / n
    if not refit:
        return Calibrated(values, fixed, temperatures, False)
    size = max(1, _AT_ONCE // (n * 3 * len(_NODES)))
    parts = [slice(start, start + size) for start in range(0, forms, size)]
    draws = [_draws(logits[:, k], labels, second, counts, -np.log(temperatures[:, k])) for k in parts]
    refitted = np.concatenate(draws, axis=1) / n
    return Calibrated(values, fixed + (refitted - fixed) / np.sqrt(3), temperatures, True)


def raw_log_likelihoods(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log-likelihoods `[n, K]` of the true class as the logits say it: temperature 1."""
    return log_likelihoods(logits, labels, np.zeros((1, 1, 1)))[..., 0, 0]


def _draws(
    logits: np.ndarray, labels: np.ndarray, second: np.ndarray, counts: np.ndarray, fitted: np.ndarray
) -> np.ndarray:
    """Sums of cross-fitted log-likelihoods `[RESAMPLES, K]` of logits `[n, K, C]`.

    Args:
      fitted: `s` of both halves without resampling `[2, K]`, around which the resamples' lie.
    """
    around = 0.6
    forms = np.arange(logits.shape[1])
    sums = np.zeros((len(counts), logits.shape[1]))
    while len(forms):
        nodes = [_nodes_around(fitted[:, k], around) for k in forms]
        profile = np.concatenate(
            [
                log_likelihoods(logits[:, [k]], labels, at[None, None]).reshape(len(labels), -1)
                for k, at in zip(forms, nodes, strict=True)
            ],
            axis=1,
        )
        ends = np.cumsum([3 * len(at) for at in nodes])[:-1]
        halves_of = [
            [part.reshape(-1, 3, len(counts)) for part in np.split(_weigh(counts[:, half], profile[half]), ends)]
            for half in (~second, second)
        ]
        inside = np.array(
            [all(_inside(half, at) for half in both) for *both, at in zip(*halves_of, nodes, strict=True)]
        )
        done = [both for *both, good in zip(*halves_of, inside, strict=True) if good]
        if done:
            sums[:, forms[inside]] = _cross(done).T
        forms = forms[~inside]
        around = 2 * around
    return sums


def _weigh(counts: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """`weigh`, as `[q, RESAMPLES]`: what belongs to a node lies together."""
    rounds = max(1, _AT_ONCE // max(len(profile), 1))
    starts = range(0, len(counts), rounds)
    return np.concatenate([profile.T @ counts[at : at + rounds].T.astype(np.float64) for at in starts], axis=1)


def _nodes_around(fitted: np.ndarray, around: float) -> np.ndarray:
    return _NODES[(fitted.min() - around - _STEP < _NODES) & (fitted.max() + around + _STEP > _NODES)]


def _inside(sums: np.ndarray, nodes: np.ndarray) -> bool:
    """Whether the maxima of all sums `[G, 3, R]` lie between the first node and the last, or at a bound."""
    first = nodes[0] == _NODES[0]
    last = nodes[-1] == _NODES[-1]
    return bool((first or (sums[0, 1] >= 0).all()) and (last or (sums[-1, 1] < 0).all()))


def _cross(sums: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """`[K, R]`: each half's sum at the other half's maximum, added up, of sums `[G, 3, R]` by form and half."""
    totals = np.zeros((len(sums), sums[0][0].shape[-1]))
    for fitted_half, other in ((0, 1), (1, 0)):
        fitted = [_fitted(both[fitted_half], both[other]) for both in sums]
        others = [both[other] for both in sums]
        nodes, rising = zip(*map(_place, fitted), strict=True)
        fitted_polynomial, other_polynomial = (
            _stack([_polynomial(each, node) for each, node in zip(sums_of, nodes, strict=True)])
            for sums_of in (fitted, others)
        )
        at = _maximum(fitted_polynomial)
        for k, count in enumerate(map(len, fitted)):
            at[k] = np.where(rising[k] == 0, 0.0, np.where(rising[k] == count, 1.0, at[k]))
        totals += _value(other_polynomial, at)
    return totals


def _fitted(half: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Sums `[G, 3, R]` whose maximum is a half's temperature: those of all images where its own is at the lower bound.

    Sums that rise at the last node are at that bound (`_inside`).
    """
    lowest = half[-1, 1] >= 0
    return np.where(lowest, half + other, half) if lowest.any() else half


def _stack(polynomials: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.stack(coefficient) for coefficient in zip(*polynomials, strict=True)]


def _place(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The node before the maximum of sums `[G, 3, R]`, and at how many nodes they rise.

    They rise up to one maximum, where a slope may underflow to zero, and fall from there on.
    """
    rising = (sums[:, 1] >= 0).sum(0)
    return np.clip(rising - 1, 0, len(sums) - 2), rising


def _maximum(coefficients: list[np.ndarray]) -> np.ndarray:
    """Where polynomials `[K, R]` are greatest between 0 and 1."""
    slopes = [power * coefficients[power] for power in range(1, 6)]
    curves = [power * slopes[power] for power in range(1, 5)]
    low = np.zeros(slopes[0].shape)
    high = np.ones(slopes[0].shape)
    at = np.full(slopes[0].shape, 0.5)
    for _ in range(50):
        slope = _value(slopes, at)
        curve = _value(curves, at)
        low = np.where(slope > 0, at, low)
        high = np.where(slope > 0, high, at)
        newton = at - slope / np.where(curve < 0, curve, -np.inf)
        good = (curve < 0) & (newton >= low) & (newton <= high)
        following = np.where(good, newton, (low + high) / 2)
        done = np.abs(following - at).max() < 1e-9
        at = following
        if done:
            break
    return at


def _value(coefficients: list[np.ndarray], at: np.ndarray) -> np.ndarray:
    total = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * at + coefficient
    return total


def _polynomial(sums: np.ndarray, node: np.ndarray) -> list[np.ndarray]:
    """Coefficients, the constant first, of the polynomial with the values and derivatives at a node and the next."""
    every = np.arange(sums.shape[-1])
    scale = _STEP ** np.arange(3)[:, None]
    (f, d, c), (g, e, b) = (scale * sums[node + after, :, every].T for after in (0, 1))
    rise = g - f
    return [
        f,
        d,
        c / 2,
        10 * rise - 6 * d - 4 * e - 1.5 * c + 0.5 * b,
        -15 * rise + 8 * d + 7 * e + 1.5 * c - b,
        6 * rise - 3 * d - 3 * e - 0.5 * c + 0.5 * b,
    ]
