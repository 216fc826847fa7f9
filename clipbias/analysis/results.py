"""Results of a study: `analysis` computes these records, `results_file` stores them, `report` reads them.

Layers are counted from 0. A model that a section leaves out has `Missing` in its place. Letters of shapes: `n` images
of the split, `K` pictures or ways to classify, `L` layers, `H` heads, `M` patches, `V` vision prompts, `N` tokens, `C`
classes, `D` width, `R` pixels along a side.
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from clipbias.intervals import Estimate, binomial_error, excludes

FORMAT = 15  # of stored results and of the parts of an unfinished study
CHANGES = ("wrong → right", "right → wrong", "both right", "both wrong")
TEXT_TYPES = ("sos", "prompt", "words", "category", "dot", "eos")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Missing:
    """Reason why a section has no result for a model, in one sentence."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Average:
    """Mean over samples and its standard error, arrays of one shape."""

    mean: np.ndarray
    standard_error: np.ndarray


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    name: str
    split: str
    images: int  # that could be read
    class_names: tuple[str, ...]
    template: str  # zero-shot's text


@dataclasses.dataclass(frozen=True)
class ClipFacts:
    name: str
    identity: str
    image_size: int
    grid: int  # patches along one side
    patches: int
    tokens: int  # of an image without prompts: patches, and `[cls]` where there is one
    vision_layers: int


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Numbers of learned parameters; `shared` are those of no single tower."""

    total: int
    vision: int
    text: int
    shared: int


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    key: str  # unique in the study; "zero_shot" for the first
    label: str  # in figures
    name: str  # of all its seeds together
    method: str
    options: dict[str, object]
    training: str  # what all its seeds share: images, shots, recipe
    parameters: ParameterCount
    vision_prompts: int  # learned tokens, `V`
    text_prompts: int  # learned tokens, `T`
    vision_depth: int  # layers of the vision tower with learned tokens of their own
    changes_vision: bool  # whether it changes the vision tower
    reference: str  # text of the first class that the frozen model of its causal test reads
    accuracy: float  # in percent, over images that could be read
    images: int  # that could be read
    source: str  # path of its adapter

    @property
    def has_prompts(self) -> bool:
        return bool(self.vision_prompts or self.text_prompts)

    @property
    def standard_error(self) -> float:
        """Binomial standard error of the accuracy, in points."""
        return binomial_error(self.accuracy, self.images)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predicted classes of every model, int32 `[n]`; -1 for an image that not all models saw."""

    labels: np.ndarray
    models: dict[str, np.ndarray]  # by key

    @property
    def zero_shot(self) -> np.ndarray:
        return next(iter(self.models.values()))

    def right(self, key: str) -> np.ndarray:
        """Returns which images a model gets right, bool `[n]`."""
        return self.models[key] == self.labels

    def changes(self, key: str) -> np.ndarray:
        """Returns each image's change by a tuned model, an index into `CHANGES`; -1 for an image that was not read."""
        was_right = self.zero_shot == self.labels
        is_right = self.right(key)
        # In the order of `CHANGES`; what is left is wrong under both.
        change = np.select([~was_right & is_right, was_right & ~is_right, was_right & is_right], [0, 1, 2], 3)
        return np.where((self.zero_shot < 0) | (self.models[key] < 0), -1, change)


@dataclasses.dataclass(frozen=True)
class ByMetric(Generic[T]):
    """Values for both metrics: accuracy in points, and log-likelihood in nats, which decides labels."""

    accuracy: T
    log_likelihood: T

    def __getitem__(self, outcome: str) -> T:
        return getattr(self, outcome)

    def items(self) -> tuple[tuple[str, T], ...]:
        return (("accuracy", self.accuracy), ("log_likelihood", self.log_likelihood))


@dataclasses.dataclass(frozen=True)
class ImageAblations:
    """Effects of what a tuned run adds to image tokens, at its own attention, in one metric (`causal_section`).

    Effects are over attention alone, which adds nothing.
    """

    all: Estimate  # of everything added, with its share of the gain
    # With their shares of `all`:
    other: Estimate  # resample ablation
    exchange: Estimate  # loss under resample ablation: the image's own less another image's
    means: dict[str, Estimate]  # mean ablation over groups of images, by the group, from large to small
    # With its share of `exchange`:
    explained: dict[str, Estimate]  # the mean of a group less another image's


@dataclasses.dataclass(frozen=True)
class TextAblations:
    """Effects of what a tuned run adds to text tokens, with the frozen model's images, over attention alone."""

    all: Estimate  # of everything added, with its share of the gain
    mean: Estimate  # mean ablation by layer and kind over all classes, with its share of `all`


@dataclasses.dataclass(frozen=True)
class CausalNumbers:
    """Parts of a gain in one metric; all but the first two with their shares of the gain."""

    reference: Estimate  # the frozen model's score
    gain: Estimate  # of the tuned model over it
    attention: Estimate | None  # PR, attention alone; `None` without path patching, as for heads
    tokens: Estimate | None  # RP, tokens alone
    towers: dict[str, Estimate]  # gain of each tower alone, by name, where a method changes both
    image: ImageAblations | None  # where measured
    text: TextAblations | None  # where measured
    # Image ablations over the images that zero-shot CLIP gets "right" and "wrong", where they are enough:
    apart: dict[str, ImageAblations] = dataclasses.field(default_factory=dict)


class Where(enum.Enum):
    """First label: whether a method acts through attention, by the share of the gain of attention alone."""

    ATTENTION = "attention"
    NOT_ATTENTION = "not attention"
    OUTSIDE = "outside"
    UNDECIDED = "undecided"
    NO_GAIN = "no gain"


class What(enum.Enum):
    """Second label: the kind of addition to image tokens, by the effect of resample ablation."""

    NOTHING = "nothing"
    SAME = "the same for every image"
    DEPENDS = "depends on the image"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class VerdictLabels:
    """Verdict on a method; `what` is `None` without a gain."""

    where: Where
    what: What | None


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """Result of one method: of its only adapter, or of all its seeds, with seeds and images crossed."""

    label: str  # name, with the number of seeds where there are several
    name: str
    method: str  # name in the registry
    models: tuple[str, ...]  # keys of its adapters
    accuracy: float  # in percent, a mean over seeds
    images: int  # tested
    numbers: ByMetric[CausalNumbers] | None  # `None` without the causal test
    labels: VerdictLabels | None  # `None` without the causal test, or with too few images
    sentence: str  # verdict in words

    @property
    def is_better(self) -> bool:
        """Whether the gain in accuracy, which users want, is sure; labels explain the gain in log-likelihood."""
        return self.numbers is not None and self.labels is not None and excludes(self.numbers.accuracy.gain) > 0


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """Results of a study: facts, results of its sections, and the verdict on each method."""

    dataset: DatasetFacts
    clip: ClipFacts
    models: tuple[ModelFacts, ...]
    sections: dict[str, Any]  # results by the section's name, predictions among them
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
    def labels(self) -> dict[str, str]:
        """Labels of all models by key, zero-shot first."""
        return {model.key: model.label for model in self.models}

    @property
    def predictions(self) -> Predictions:
        return self.sections["predictions"]

    def by_model(self, section: str) -> dict[str, Any]:
        """Returns a section's results by model key, `Missing` among them; empty where it was not requested."""
        # Sections with facts of their own beside their models keep these in a field.
        result = self.sections.get(section, {})
        return result if isinstance(result, dict) else getattr(result, "models", {})

    def why_missing(self, section: str) -> dict[str, str]:
        """Returns the reasons why a section leaves out models, by model key."""
        return {key: model.reason for key, model in self.by_model(section).items() if isinstance(model, Missing)}

    @property
    def sentence(self) -> str:
        """Verdicts in words, a sentence for each method."""
        return " ".join([*(method.sentence for method in self.methods), *self.other_references])

    @property
    def other_references(self) -> list[str]:
        """Sentences about gains that are not over zero-shot CLIP: those of methods that start from other words."""
        texts = {model.key: model.reference for model in self.models}
        zero_shot = texts[self.zero_shot.key]
        methods: dict[str, list[str]] = {}
        for method in self.methods:
            text = texts[method.models[0]]
            if method.numbers is not None and text != zero_shot:
                start = f"“{text}” ({method.numbers.accuracy.reference.value:.1f} % of {method.images:,} images)"
                methods.setdefault(start, []).append(method.name)
        return [
            f"Gains of {', '.join(names)} are over frozen CLIP with the words that training starts from, such as "
            f"{start}; zero-shot CLIP reads “{zero_shot}”."
            for start, names in methods.items()
        ]


def present(results: Mapping[str, T | Missing]) -> dict[str, T]:
    """Returns a section's results without `Missing`, by model key."""
    return {key: result for key, result in results.items() if not isinstance(result, Missing)}


def same_but_for_seed(models: Sequence[T]) -> list[list[T]]:
    """Groups models by method and training, in order of appearance."""
    groups: dict[tuple[str, str], list[T]] = {}
    for model in models:
        # `training` leaves the seed out, so models with equal training are seeds of one method.
        facts: Any = model  # of a study (`Model`), or of its results (`ModelFacts`)
        groups.setdefault((facts.method, facts.training), []).append(model)
    return list(groups.values())
