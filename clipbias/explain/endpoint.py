"""The endpoint: two confirmatory conclusions about a cell, a method on a dataset. All other numbers are exploratory.

    tokens alone   (RPP − RRR) − ½ (PPP − RRR) > 0     attention frozen, more than half of the gain is left
    constant       (mean − nothing) − ½ (PPP − RRR) > 0     the mean of what is added does more than half of the gain

in calibrated log-likelihood, each a difference and no ratio, so that nothing is divided by a gain near 0. The p-value
is one-sided, of resamples of seeds and images crossed. Over all conclusions of the studies at hand Holm's method (1979)
bounds the probability of any wrong one.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from clipbias.explain.conclusions import FEWEST_IMAGES, HALF
from clipbias.explain.effects import Measured, Sample, measure, over_seeds
from clipbias.explain.results import EndpointCell, EndpointTest
from clipbias.explain.uncertainty import Estimate, estimate, excludes

RESAMPLES = 20_000
WRONG = 0.05  # at most so often any conclusion of a family is wrong
TOKENS_ALONE = "tokens alone"
CONSTANT = "constant"
# Of each part the stream that has it, and the same without.
PARTS: Mapping[str, tuple[str, str]] = {TOKENS_ALONE: ("RPP", "RRR"), CONSTANT: ("mean", "nothing")}
_GAIN = ("PPP", "RRR")


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """A conclusion among all of a family.

    Attributes:
      gain: in nats of calibrated log-likelihood.
      adjusted: the p-value after Holm's correction.
    """

    gain: Estimate
    test: EndpointTest
    adjusted: float

    @property
    def is_shown(self) -> bool:
        """Whether the part does more than half of a gain that is surely there."""
        return self.adjusted <= WRONG and excludes(self.gain) > 0


def endpoint_streams(streams: Sequence[str]) -> list[str]:
    """The streams that the conclusions need, of those that there are; none where a method has no slots."""
    if not {*_GAIN} <= {*streams}:
        return []
    needed = [name for pair in PARTS.values() if {*pair} <= {*streams} for name in pair]
    return list(dict.fromkeys([*_GAIN, *needed]))


def measure_cell(
    keys: Sequence[str], logits: Sequence[np.ndarray], labels: np.ndarray, streams: Sequence[str]
) -> EndpointCell | None:
    """The conclusions about models that differ in their seed alone; `None` where images or streams are too few.

    Args:
      keys: of the `S` models.
      logits: `[n, K, C]` of each model, on the same images.
      labels: `[n]`.
      streams: names of the `K`.
    """
    needed = endpoint_streams(streams)
    if len(labels) < FEWEST_IMAGES or len(needed) <= len(_GAIN):
        return None
    at = [list(streams).index(name) for name in needed]
    measured = over_seeds([measure(of_seed[:, at], labels, resamples=RESAMPLES) for of_seed in logits])
    return summarize_cell(keys, measured, needed)


def summarize_cell(keys: Sequence[str], measured: Measured, streams: Sequence[str]) -> EndpointCell:
    """The conclusions from outcomes under `streams`, in their order."""
    gain = _difference(streams, *_GAIN)
    weights = {part: _difference(streams, *pair) for part, pair in PARTS.items() if {*pair} <= {*streams}}
    calibrated = measured.samples["calibrated"]
    accuracy = measured.samples["accuracy"]
    return EndpointCell(
        models=tuple(keys),
        gain=_estimate(calibrated, gain),
        tests=tuple(
            EndpointTest(
                name=part,
                calibrated=_estimate(calibrated, of_part - HALF * gain),
                accuracy=_estimate(accuracy, of_part - HALF * gain),
                p=p_value(calibrated.draws @ (of_part - HALF * gain)),
            )
            for part, of_part in weights.items()
        ),
    )


def _difference(streams: Sequence[str], with_it: str, without: str) -> np.ndarray:
    unit = np.eye(len(streams))
    return unit[list(streams).index(with_it)] - unit[list(streams).index(without)]


def _estimate(sample: Sample, weights: np.ndarray) -> Estimate:
    return estimate(float(sample.mean @ weights), sample.draws @ weights)


def p_value(draws: np.ndarray) -> float:
    """Of the claim that a number is above 0, one-sided, from its resamples `[R]`. It is never 0."""
    return float((1 + np.count_nonzero(draws <= 0)) / (1 + len(draws)))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P-values after Holm's correction (1979), in the order given: each against all that are not smaller."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return adjusted


def conclude_cells(cells: Sequence[EndpointCell]) -> list[tuple[Conclusion, ...]]:
    """The conclusions of each cell, corrected over all of them."""
    adjusted = iter(holm([test.p for cell in cells for test in cell.tests]).tolist())
    return [tuple(Conclusion(cell.gain, test, next(adjusted)) for test in cell.tests) for cell in cells]
