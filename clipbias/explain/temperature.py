"""The calibrated log-likelihood: logits divided by a temperature that was fitted on other images.

A temperature moves no decision, but the raw log-likelihood books it as a gain. So each model, mixture or replacement
gets a temperature of its own by maximum likelihood (Guo et al. 2017). The images are split into halves, each of which
is scored with the temperature of the other.

In every resample of the images the temperatures are fitted anew. The sum of log-likelihoods and its first two
derivatives by `s = -log(temperature)` are linear in the counts of the images, so that one matrix product gives them at
nodes for all resamples. Between two nodes a polynomial of degree five with these values is exact to about 1e-9.
"""

import dataclasses

import numpy as np

from clipbias.explain.uncertainty import draw_counts, weigh

LOWEST, HIGHEST = 0.01, 100.0
# Images times classes up to which temperatures are fitted anew in every resample.
REFIT_UP_TO = 100_000
_LOW, _HIGH = -np.log(HIGHEST), -np.log(LOWEST)
_NODES = np.linspace(_LOW, _HIGH, 49)
_STEP = _NODES[1] - _NODES[0]
# Numbers held at once for one form: images by nodes by classes.
_AT_ONCE = 4_000_000


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """Log-likelihoods of the true class after calibration, in nats.

    Attributes:
      values: `[n, K]`, each image with the temperature of the other half.
      draws: `[RESAMPLES, K]`, means over resamples of the images.
      temperatures: `[2, K]`, fitted on the first half and on the second.
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


def fit_temperatures(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The temperature `[K]` of greatest likelihood for logits `[n, K, C]`, between `LOWEST` and `HIGHEST`.

    The likelihood has one maximum, since its logarithm is concave in the inverse temperature.
    """
    differences = _differences(logits, labels)
    low, high = (np.full(logits.shape[1], end) for end in (_LOW, _HIGH))
    at = np.clip(np.zeros(logits.shape[1]), low, high)
    for _ in range(60):
        _, slope, curve = _log_likelihoods(differences, at[None, :, None]).sum(0)[:, 0].T
        low, high = np.where(slope > 0, at, low), np.where(slope > 0, high, at)
        newton = at - slope / np.where(curve < 0, curve, -1)
        following = np.where((curve < 0) & (newton > low) & (newton < high), newton, (low + high) / 2)
        done, at = np.abs(following - at).max() < 1e-12, following
        if done:
            break
    ends = np.array([_LOW, _HIGH])[None, None]
    slopes = _log_likelihoods(differences, ends).sum(0)[:, :, 1]
    # Far out a positive slope underflows to zero.
    at = np.where(slopes[:, 0] < 0, _LOW, np.where(slopes[:, 1] >= 0, _HIGH, at))
    return np.exp(-at)


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
    own = -np.log(np.where(second[:, None], temperatures[0], temperatures[1]))
    values = np.concatenate(
        [
            _log_likelihoods(_differences(logits[rows], labels[rows]), own[rows][:, :, None])[..., 0, 0]
            for rows in _rounds(n, forms * classes)
        ]
    )
    if not refit:
        return Calibrated(values, weigh(counts, values) / n, temperatures, False)
    draws = [_draws(logits[:, [k]], labels, second, counts, -np.log(temperatures[:, k])) for k in range(forms)]
    return Calibrated(values, np.stack(draws, axis=1) / n, temperatures, True)


def raw_log_likelihoods(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log-likelihoods `[n, K]` of the true class as the logits say it: temperature 1."""
    rows = _rounds(len(labels), logits.shape[1] * logits.shape[2])
    zero = np.zeros((1, 1, 1))
    return np.concatenate([_log_likelihoods(_differences(logits[r], labels[r]), zero)[..., 0, 0] for r in rows])


def _rounds(n: int, width: int) -> list[slice]:
    size = max(1, _AT_ONCE // width)
    return [slice(start, start + size) for start in range(0, n, size)]


def _differences(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Logits `[n, K, C]` less the true class's, float64."""
    logits = np.asarray(logits, np.float64)
    return logits - np.take_along_axis(logits, np.asarray(labels)[:, None, None], axis=-1)


def _log_likelihoods(differences: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Log-likelihoods and their first two derivatives by `s`, `[n, K, G, 3]`, at `s = at [n or 1, K or 1, G]`."""
    inverse = np.exp(at)
    scaled = differences[:, :, None] * inverse[..., None]
    highest = scaled.max(-1, keepdims=True)
    weights = np.exp(scaled - highest)
    total = weights.sum(-1)
    mean = (weights * scaled).sum(-1) / total
    square = (weights * np.square(scaled)).sum(-1) / total
    return np.stack([-highest[..., 0] - np.log(total), -mean, -mean - (square - mean**2)], axis=-1)


def _draws(
    logits: np.ndarray, labels: np.ndarray, second: np.ndarray, counts: np.ndarray, fitted: np.ndarray
) -> np.ndarray:
    """Sums of cross-fitted log-likelihoods `[RESAMPLES]` of one form's logits `[n, 1, C]`.

    Args:
      fitted: `s` of both halves without resampling, around which the resamples' lie.
    """
    around = 1.0
    while True:
        nodes = _NODES[(fitted.min() - around - _STEP < _NODES) & (fitted.max() + around + _STEP > _NODES)]
        profile = np.concatenate(
            [
                _log_likelihoods(_differences(logits[rows], labels[rows]), nodes[None, None])[:, 0]
                for rows in _rounds(len(labels), len(nodes) * logits.shape[-1])
            ]
        )
        sums = [
            weigh(counts[:, part], profile[part].reshape(part.sum(), -1)).reshape(len(counts), -1, 3)
            for part in (~second, second)
        ]
        inside = all(
            (nodes[0] == _NODES[0] or (half[:, 0, 1] >= 0).all())
            and (nodes[-1] == _NODES[-1] or (half[:, -1, 1] < 0).all())
            for half in sums
        )
        if inside or len(nodes) == len(_NODES):
            break
        around *= 2
    places = [_maximum(half) for half in sums]
    return _between(sums[1], *places[0]) + _between(sums[0], *places[1])


def _maximum(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where sums `[R, G, 3]` are greatest: the node before, and the part of the step behind it, from 0 to 1."""
    # One maximum: they rise up to a node, where a slope may underflow to zero, and fall from there on.
    rising = (sums[:, :, 1] >= 0).sum(1)
    node = np.clip(rising - 1, 0, sums.shape[1] - 2)
    coefficients = _polynomial(sums, node)
    slopes = [power * coefficients[power] for power in range(1, 6)]
    curves = [power * slopes[power] for power in range(1, 5)]
    low, high = np.zeros(len(sums)), np.ones(len(sums))
    at = np.full(len(sums), 0.5)
    for _ in range(50):
        slope, curve = _value(slopes, at), _value(curves, at)
        low, high = np.where(slope > 0, at, low), np.where(slope > 0, high, at)
        newton = at - slope / np.where(curve < 0, curve, -np.inf)
        good = (curve < 0) & (newton > low) & (newton < high)
        following = np.where(good, newton, (low + high) / 2)
        done, at = np.abs(following - at).max() < 1e-11, following
        if done:
            break
    at = np.where(rising == 0, 0.0, np.where(rising == sums.shape[1], 1.0, at))
    return node, at


def _between(sums: np.ndarray, node: np.ndarray, at: np.ndarray) -> np.ndarray:
    return _value(_polynomial(sums, node), at)


def _value(coefficients: list[np.ndarray], at: np.ndarray) -> np.ndarray:
    total = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * at + coefficient
    return total


def _polynomial(sums: np.ndarray, node: np.ndarray) -> list[np.ndarray]:
    """Coefficients, the constant first, of the polynomial with the values and derivatives at a node and the next."""
    rows = np.arange(len(sums))
    scale = np.array([1.0, _STEP, _STEP**2])
    (f, d, c), (g, e, b) = ((sums[rows, node + after] * scale).T for after in (0, 1))
    rise = g - f
    return [
        f,
        d,
        c / 2,
        10 * rise - 6 * d - 4 * e - 1.5 * c + 0.5 * b,
        -15 * rise + 8 * d + 7 * e + 1.5 * c - b,
        6 * rise - 3 * d - 3 * e - 0.5 * c + 0.5 * b,
    ]
