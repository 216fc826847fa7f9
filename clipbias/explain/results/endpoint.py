"""The confirmatory part of a causal test."""

import dataclasses

from clipbias.explain.uncertainty import Estimate


@dataclasses.dataclass(frozen=True)
class EndpointTest:
    """Whether a part of a method does more than half of its gain, before the correction for several conclusions.

    Attributes:
      name: which part, a name in `endpoint.PARTS`.
      calibrated: by how much it exceeds half of the gain, in nats of calibrated log-likelihood.
      accuracy: the same in points of accuracy.
      p: one-sided, of the first.
    """

    name: str
    calibrated: Estimate
    accuracy: Estimate
    p: float


@dataclasses.dataclass(frozen=True)
class EndpointCell:
    """The conclusions about a method on a dataset, over seeds and images crossed.

    Attributes:
      models: keys of all its seeds, or of its only adapter.
      gain: in nats of calibrated log-likelihood.
    """

    models: tuple[str, ...]
    gain: Estimate
    tests: tuple[EndpointTest, ...]
