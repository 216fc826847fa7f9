"""The paper's observations: what they are measured on, and what a study says of each."""

import dataclasses
import enum

import numpy as np

from clipbias.explain.uncertainty import Estimate


class Outcome(enum.Enum):
    """Whether a claim holds: by the whole interval (`explain.observations`)."""

    HOLDS = "holds"
    DOES_NOT = "does not"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class Observation:
    """A claim of the paper about one method, over all its seeds.

    Attributes:
      source: where it stands in the paper, such as "Fig. 2".
      claim: in one line.
      method: its label; "Zero-shot" where the claim is about the frozen model.
      statistic: what the number is, in words.
      unit: "points", "%", or "" of a correlation.
      number: with its interval; `None` where nothing was measured.
      samples: images or classes that it is a mean over; of several seeds the fewest.
      outcome: by the rule.
    """

    source: str
    claim: str
    method: str
    statistic: str
    unit: str
    number: Estimate | None
    samples: int
    outcome: Outcome


@dataclasses.dataclass(frozen=True)
class ObservedModel:
    """What observations are made of: float32, a row for each of `n` images or `C` classes; NaN where it was not read.

    Attributes:
      text_relevancy: `[n, 2, 5]`, zero-shot's and the model's shares of the text's relevancy by `TEXT_KINDS[:5]`.
      patch_variation: `[n]`, total variation between both models' relevancy of patches.
      eos_attention: `[C, 6]`, by `TEXT_KINDS`, a mean over layers, heads and the texts of a class.
      distance, entropy: `[n, L]`, among input tokens, renormalised there, a mean over heads.
      nearness: `[n]`, rank correlation between attention of `[cls]` and nearness to prompts, a mean over layers.
      cls_variation: `[n]`, total variation between both models' attention of `[cls]` to patches, a mean over layers.
    """

    text_relevancy: np.ndarray | None = None
    patch_variation: np.ndarray | None = None
    eos_attention: np.ndarray | None = None
    distance: np.ndarray | None = None
    entropy: np.ndarray | None = None
    nearness: np.ndarray | None = None
    cls_variation: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Observations:
    """By model what was measured, and a row for each claim and method."""

    models: dict[str, ObservedModel]
    rows: tuple[Observation, ...]
