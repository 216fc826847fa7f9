"""What a study finds: `analysis` computes these records, `results_file` keeps them, `report` reads them.

Layers are counted from 0. A section that was not requested is `None`; a model that a section leaves out has `Missing`
in its place. Letters of shapes: `n` images of the split, `K` pictures or mixtures, `L` layers, `H` heads, `M` patches,
`V` vision prompts, `N` tokens, `C` classes, `D` width, `R` pixels along a side.
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from clipbias.analysis.uncertainty import Estimate
from clipbias.data.confusion import binomial_error

FORMAT = 13  # of stored results, and of what is kept of an unfinished study
CHANGES = ("wrong → right", "right → wrong", "both right", "both wrong")
TEXT_TYPES = ("sos", "prompt", "words", "category", "dot", "eos")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Missing:
    """Why a section has no result for a model, in one sentence."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Average:
    """A mean over samples and its standard error, arrays of one shape."""

    mean: np.ndarray
    standard_error: np.ndarray


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """The images that were explained."""

    name: str
    split: str
    images: int  # how many could be read
    class_names: tuple[str, ...]
    template: str  # zero-shot's text


@dataclasses.dataclass(frozen=True)
class ClipFacts:
    """The frozen model and its geometry."""

    name: str
    identity: str
    image_size: int
    grid: int  # patches along one side
    patches: int
    tokens: int  # of an image without prompts: the patches, and `[cls]` where there is one
    vision_layers: int


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Numbers of learned parameters; `shared` belong to no single tower."""

    total: int
    vision: int
    text: int
    shared: int


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """A model of the study."""

    key: str  # unique in the study; "zero_shot" for the first
    label: str  # in figures
    name: str  # of all its seeds together
    method: str
    options: dict[str, object]
    training: str  # what all its seeds have in common: images, shots, recipe
    parameters: ParameterCount
    # vision_prompts, text_prompts: learned tokens, `V` and `T`.
    vision_prompts: int
    text_prompts: int
    vision_depth: int  # layers of the vision tower with learned tokens of their own
    changes_vision: bool  # whether its vision tower is another than CLIP's
    # accuracy, images: in percent, of the images that could be read.
    accuracy: float
    images: int
    source: str  # where its adapter lies

    @property
    def has_prompts(self) -> bool:
        return bool(self.vision_prompts or self.text_prompts)

    @property
    def standard_error(self) -> float:
        """Of the accuracy, binomial, in points."""
        return binomial_error(self.accuracy, self.images)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The class that every model gives each image, int32 `[n]`; -1 for an image that not all models saw."""

    labels: np.ndarray
    models: dict[str, np.ndarray]  # by key

    @property
    def zero_shot(self) -> np.ndarray:
        return next(iter(self.models.values()))

    def right(self, key: str) -> np.ndarray:
        """Which images a model gets right."""
        return self.models[key] == self.labels

    def changes(self, key: str) -> np.ndarray:
        """What a tuned model changes of every image, numbers of `CHANGES`; -1 for an image that was not read."""
        was_right = self.zero_shot == self.labels
        is_right = self.right(key)
        change = np.select([~was_right & is_right, was_right & ~is_right, was_right & is_right], [0, 1, 2], 3)
        return np.where((self.zero_shot < 0) | (self.models[key] < 0), -1, change)


@dataclasses.dataclass(frozen=True)
class ByMetric(Generic[T]):
    """The same in both outcomes: accuracy in points, log-likelihood in nats, by which labels are decided."""

    accuracy: T
    log_likelihood: T

    def __getitem__(self, outcome: str) -> T:
        return {"accuracy": self.accuracy, "log_likelihood": self.log_likelihood}[outcome]

    def items(self) -> tuple[tuple[str, T], ...]:
        return (("accuracy", self.accuracy), ("log_likelihood", self.log_likelihood))


@dataclasses.dataclass(frozen=True)
class Ablations:
    """What a tuned run adds to a tower's tokens, against nothing, at its own attention, in one outcome (`causal`)."""

    # All of it, with its share of the gain; of texts, whose images are the frozen model's, of the text's gain.
    all: Estimate
    kind: Estimate  # the mean by layer and kind of token over training images, or over classes; with its share of all
    position: Estimate | None  # the mean by layer and position, likewise; `None` of texts
    other: Estimate | None  # what it adds for another image, likewise
    # An image's own less another image's: what exchanging it between images costs; with its share of all.
    exchange: Estimate | None


@dataclasses.dataclass(frozen=True)
class CausalNumbers:
    """What a gain is made of in one outcome; all but the first two with their shares of the gain."""

    reference: Estimate  # the outcome of the frozen model
    gain: Estimate  # of the tuned model over it
    attention: Estimate | None  # the corner PR, attention alone; `None` where the two runs are not mixed, as for heads
    tokens: Estimate | None  # the corner RP, what is added to tokens, attention frozen
    towers: dict[str, Estimate]  # by name, what each tower gains alone, where a method changes both
    # image, text: what is added to image and to text tokens, where that was measured.
    image: Ablations | None
    text: Ablations | None


class Where(enum.Enum):
    """Where a method acts, of the share of the gain that attention alone has."""

    ATTENTION = "attention"
    NOT_ATTENTION = "not attention"
    OUTSIDE = "outside"
    UNDECIDED = "undecided"
    NO_GAIN = "no gain"


class What(enum.Enum):
    """What a method adds to image tokens, of what exchanging it between images costs."""

    NOTHING = "nothing"
    SAME = "the same for every image"
    DEPENDS = "depends on the image"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class VerdictLabels:
    """The verdict on a method; `what` is `None` where there is no gain."""

    where: Where
    what: What | None


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """One method: its only adapter, or all its seeds together, over seeds and images crossed."""

    label: str  # its name, with the number of seeds where there are several
    name: str  # the same without that number
    method: str  # as the registry names it
    models: tuple[str, ...]  # keys of its adapters
    accuracy: float  # in percent, a mean over seeds
    images: int  # how many were tested
    numbers: ByMetric[CausalNumbers] | None  # of the causal test; `None` where it was not run
    labels: VerdictLabels | None  # `None` where it was not run, or on too few images
    sentence: str  # the verdict in words


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """All that a study found: facts, the results of its sections, and the verdict on each method."""

    dataset: DatasetFacts
    clip: ClipFacts
    models: tuple[ModelFacts, ...]
    sections: dict[str, Any]  # the result of each section by its name (`sections`), predictions among them
    config: dict[str, object]
    seconds: float
    methods: tuple[MethodResult, ...] = ()

    @property
    def zero_shot(self) -> ModelFacts:
        return self.models[0]

    @property
    def tuned(self) -> tuple[ModelFacts, ...]:
        return self.models[1:]

    @property
    def predictions(self) -> Predictions:
        return self.sections["predictions"]

    def why_missing(self, section: str) -> dict[str, str]:
        """By model the reason why a section leaves it out."""
        result = self.sections[section]
        models = result if isinstance(result, dict) else getattr(result, "models", {})
        return {key: model.reason for key, model in models.items() if isinstance(model, Missing)}

    @property
    def sentence(self) -> str:
        """The verdicts in words, a sentence for each method."""
        return " ".join(method.sentence for method in self.methods)


def present(results: Mapping[str, T | Missing] | None) -> dict[str, T]:
    """Of a section's results by model those that there are."""
    return {key: result for key, result in (results or {}).items() if not isinstance(result, Missing)}


def same_but_for_seed(models: Sequence[T]) -> list[list[T]]:
    """Models by method and training, in the order in which they come."""
    groups: dict[tuple[str, str], list[T]] = {}
    for model in models:
        facts: Any = model  # of a study (`Model`), or of its results (`ModelFacts`)
        groups.setdefault((facts.method, facts.training), []).append(model)
    return list(groups.values())
