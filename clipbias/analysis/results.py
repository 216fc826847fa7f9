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

SECTIONS = (
    *("predictions", "relevancy", "text_attention", "vision_attention", "similarity", "decomposition", "causal"),
    *("faithfulness", "examples", "explore", "words", "replacement", "observations"),
)
CHANGES = ("wrong → right", "right → wrong", "both right", "both wrong")
TEXT_KINDS = ("sos", "prompt", "words", "category", "dot", "eos")
VISION_KINDS = ("patches", "prompts")
GROUPS = ("corrected", "both_right", "all")
MAPS = ("relevancy", "attention", "rollout", "legrad", "grad_eclip", "random")
# The form of replacements that sentences are about: two vectors per layer.
PLAIN = "kind"
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
class BothModels:
    """Zero-shot's row and the tuned model's over the same samples."""

    zero_shot: Average
    tuned: Average


@dataclasses.dataclass(frozen=True)
class RelevancyGroup:
    """Relevancy for the true class over one group of images."""

    count: int
    vision: BothModels  # `[M + V]`: patches row by row, then prompts (zero-shot: `V = 0`)
    # `[N]` by token index, 0 after the text's end; several texts of a class are added up by token index.
    text: BothModels
    # vision_kinds, text_kinds: sums by `VISION_KINDS` `[2]`, by `TEXT_KINDS[:5]` `[5]`.
    vision_kinds: BothModels
    text_kinds: BothModels
    # order, variation: `[1]`, rank correlation and total variation between the two models' rows over the patches.
    order: Average
    variation: Average


@dataclasses.dataclass(frozen=True)
class RelevancyText:
    """The text that a model's relevancy was computed with."""

    text: str
    texts: int  # of each class
    index_kinds: tuple[str, ...]  # the kind of the token at each index, "" where it differs by class


@dataclasses.dataclass(frozen=True)
class Relevancy:
    """Relevancy over the groups of `GROUPS`; a group without images is `None`."""

    zero_shot: RelevancyText
    tuned: RelevancyText
    corrected: RelevancyGroup | None  # images that zero-shot gets wrong and the tuned model right
    both_right: RelevancyGroup | None  # the control
    all: RelevancyGroup | None

    @property
    def groups(self) -> dict[str, RelevancyGroup]:
        """Those with images, by name."""
        return {name: group for name in GROUPS if (group := getattr(self, name)) is not None}

    @property
    def corrected_count(self) -> int:
        return 0 if self.corrected is None else self.corrected.count


@dataclasses.dataclass(frozen=True)
class SimilarityMaps:
    """Maps `[K, S, R, R]` in 0 … 1 of one tuned model."""

    zero_shot_cls: np.ndarray
    cls: np.ndarray
    prompts: np.ndarray  # 1 minus the min-max of the mean distance to the prompts
    rank_correlation: Average  # `[L]` between the last two, over the dataset
    count: int


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Fig. 6; `K` pictures are every example in every rotation. Pictures are `None` where no model has prompts."""

    images: np.ndarray | None  # uint8 `[K, R, R, 3]`
    rotations: np.ndarray | None  # `[K]`, degrees
    layers: np.ndarray | None  # `[S]`
    models: dict[str, SimilarityMaps | Missing]


@dataclasses.dataclass(frozen=True)
class PerturbationCurve:
    """Accuracy while patches are removed, `[S]`, and the area under it."""

    accuracy: np.ndarray
    area: float


@dataclasses.dataclass(frozen=True)
class ModelFaithfulness:
    """The perturbation test of one model, by map of `MAPS`, direction and target.

    `positive`: the most relevant patches go first; `negative`: the least relevant. Maps are of the `predicted` and of
    the `true` class.
    """

    count: int
    maps: dict[str, dict[str, dict[str, PerturbationCurve]]]


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """The perturbation test (Chefer et al. 2021); `fractions [S]` are shares of the patches removed."""

    fractions: np.ndarray
    models: dict[str, ModelFaithfulness | Missing]


@dataclasses.dataclass(frozen=True)
class ExampleMaps:
    """A model's maps of the examples, for the true class: `vision [K, M + V]`, `text [K, N]`, `logits [K, C]`."""

    vision: np.ndarray
    text: np.ndarray
    logits: np.ndarray
    # Of each picture's text, up to but without EOS; of several texts of a class the first is shown.
    tokens: tuple[tuple[str, ...], ...]
    texts: int  # of each class


@dataclasses.dataclass(frozen=True)
class Examples:
    """Pictures with their relevancy: uint8 `images [K, R, R, 3]`, `labels [K]`."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    models: dict[str, ExampleMaps | Missing]


@dataclasses.dataclass(frozen=True)
class ExploredModel:
    """A model's maps to explore. A map is uint8 with a scale: value = q · scale / 255 (+ lowest)."""

    relevancy: np.ndarray  # `[P, M]`, over patches, of each pair of an image and a class; its scale `[P]`
    relevancy_scale: np.ndarray
    relevancy_sum: np.ndarray  # `[P]`, of the row with its prompts
    slot_relevancy: np.ndarray  # `[P, V]`
    text: np.ndarray  # `[P, N]`, over the text's tokens
    attention: np.ndarray  # `[K, L, M]`, of `[cls]`, mean over heads; its scale `[K, L]`
    attention_scale: np.ndarray
    slot_attention: np.ndarray  # `[K, L, V]`
    # margin, log_likelihood: `[K]`, as in the causal test.
    margin: np.ndarray
    log_likelihood: np.ndarray
    distance: np.ndarray | None  # `[K, L, V, M]`, from every prompt to the patches; scale and lowest `[K, L, V]`
    distance_scale: np.ndarray | None
    distance_lowest: np.ndarray | None
    texts: int  # of each class
    # tokens, kinds: by class, of the text up to but without EOS.
    tokens: dict[int, tuple[str, ...]]
    kinds: dict[int, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Exploration:
    """Images that a reader of the report chooses among."""

    images: np.ndarray  # `[K]`, numbers of the examples in the split
    pictures: np.ndarray  # uint8 `[K, S, S, 3]`, at most 224 pixels wide
    # `[P, 2]`: row of the image, 0 … K − 1, and class; its true one first, then those that models give it.
    pairs: np.ndarray
    names: tuple[str, ...]
    models: dict[str, ExploredModel | Missing]


@dataclasses.dataclass(frozen=True)
class TextAttention:
    """Fig. 4: the EOS row's attention by kind of token, averaged over classes."""

    shares: Average  # `[L, H, 6]`, kinds in the order of `TEXT_KINDS`
    count: int  # of texts
    texts: int  # of each class
    text: str  # with {} for the class name


@dataclasses.dataclass(frozen=True)
class AttentionVariant:
    """Attention distance in pixels, and entropies in nats, `[L, H]`.

    A tower without `[cls]` has no entropy of its query.
    """

    distance: Average
    entropy: Average
    cls_entropy: Average | None


@dataclasses.dataclass(frozen=True)
class VisionAttention:
    """Fig. 5: `clip` of a model without vision prompts, else `without_prompt` and `with_prompt`."""

    count: int
    clip: AttentionVariant | None
    without_prompt: AttentionVariant | None
    with_prompt: AttentionVariant | None
    no_cls_entropy: str | None  # why there is no entropy of the `[cls]` query

    @property
    def variants(self) -> dict[str, dict[str, Average]]:
        """The quantities of each variant that there is, by name."""
        there = {name: vars(each) for name, each in vars(self).items() if isinstance(each, AttentionVariant)}
        return {variant: {name: x for name, x in each.items() if x is not None} for variant, each in there.items()}


@dataclasses.dataclass(frozen=True)
class TowerDecomposition:
    """Eq. 12 in one tower; samples are images, or classes for text."""

    count: int
    depth: int  # layers with prompts of their own
    prompt_mass: Average  # `[L, H]`, attention on prompts, mean over input queries
    # `[L, H]`, the same as `prompt_mass` for the query that is pooled; `None` under a pooling head.
    pooled_mass: Average | None
    norm_share: Average  # `[L]`, the norm of the prompt part over the sum of both norms
    # `[L]`, the share of the prompt part's mean square that its average over samples explains, token by token,
    # corrected for chance: it may fall below 0.
    constancy: np.ndarray
    bias_likeness: np.ndarray  # `[L]`, the share that one vector for all tokens explains
    bias_cosine: dict[str, np.ndarray]  # `[L]` by bias model: between that vector and the learned bias


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """Eq. 12 and Fig. 1, of the towers in which a model has prompts, by name."""

    towers: dict[str, TowerDecomposition]


@dataclasses.dataclass(frozen=True)
class PromptWords:
    """The vocabulary's tokens nearest to a learned text prompt, nearest first."""

    prompt: int
    class_name: str | None  # of a context of one class
    words: tuple[str, ...]  # readable tokens
    distances: tuple[float, ...]  # Euclidean
    mean_distance: float  # to the whole vocabulary


@dataclasses.dataclass(frozen=True)
class ModelWords:
    """The words of a model's prompts."""

    prompts: tuple[PromptWords, ...]


@dataclasses.dataclass(frozen=True)
class ByOutcome(Generic[T]):
    """The same in both outcomes: accuracy in points, log-likelihood in nats, by which labels are decided."""

    accuracy: T
    log_likelihood: T

    def __getitem__(self, outcome: str) -> T:
        return {"accuracy": self.accuracy, "log_likelihood": self.log_likelihood}[outcome]

    def items(self) -> tuple[tuple[str, T], ...]:
        return (("accuracy", self.accuracy), ("log_likelihood", self.log_likelihood))


@dataclasses.dataclass(frozen=True)
class ImageOutcomes:
    """What became of each of `n` images in `K` ways to classify, `[n, K]`."""

    images: np.ndarray  # numbers of the examples in the split, `[n]`
    correct: np.ndarray  # uint8
    # Log-likelihood of the true class in nats, each way's logits divided by a temperature of its own that was fitted on
    # other images.
    log_likelihood: np.ndarray


@dataclasses.dataclass(frozen=True)
class Levels:
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
    image: Levels | None
    text: Levels | None


@dataclasses.dataclass(frozen=True)
class CausalTest:
    """The causal test of one model."""

    # Names of the `K` ways to classify, members of `causal_section.Way`; three for three other images.
    ways: tuple[str, ...]
    outcomes: ImageOutcomes  # of each image
    why: str  # why the two runs are not mixed, or ""
    why_no_levels: dict[str, str]  # by tower, why what is added there was not measured


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
class Labels:
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
    numbers: ByOutcome[CausalNumbers] | None  # of the causal test; `None` where it was not run
    labels: Labels | None  # `None` where it was not run, or on too few images
    sentence: str  # the verdict in words


@dataclasses.dataclass(frozen=True)
class CausalTests:
    """The causal test of every model by key, and its numbers by the keys of a method's models, joined by a space."""

    models: dict[str, CausalTest]
    numbers: dict[str, ByOutcome[CausalNumbers]]

    def of(self, keys: tuple[str, ...]) -> ByOutcome[CausalNumbers] | None:
        """The numbers of one model, or of all seeds of a method."""
        return self.numbers.get(" ".join(keys))


@dataclasses.dataclass(frozen=True)
class EquivalentBias:
    """The mean of what a method's blocks add in one tower, in its two forms, float32.

    Attributes:
      vector: `[L, D]`, over all input tokens.
      kind: `[L, 2, D]`: of the pooled token (`[cls]`, EOS), then of all other input tokens. `[L, 1, D]` where a pooling
        head reads all tokens.
    """

    vector: np.ndarray
    kind: np.ndarray


class Kind(enum.StrEnum):
    """What stands in a teacher's place."""

    FITTED = "fitted"  # a form that learned the teacher's outputs
    CEILING = "ceiling"  # the teacher's own method that did, from another start
    MEAN = "mean"  # the mean of what the teacher's blocks add; nothing was fitted
    LABELS = "on labels"  # the form's method, trained on labels
    RETRAINED = "retrained"  # the teacher's method, trained again on the same labelled images


class Word(enum.StrEnum):
    """What is concluded of a form that was fitted to a teacher (`explain.replacement.conclude`)."""

    REPLACES = "replaces"
    GAIN = "has the gain of"
    MOST = "has most of the gain of"
    NOT_MATCHED = "not matched with so many images and steps"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class Student:
    """What stands in a teacher's place."""

    kind: Kind  # how it came to be
    form: str  # the form's name, or the method's
    words: str  # what it is
    numbers: int  # how many it stores
    # fitted_divergence, held_back_divergence: mean KL from the teacher in nats on the images that it was fitted on
    # (high: the form or the steps do not suffice) and on held-back ones (high beside a low first: the images do not);
    # `None` where nothing was fitted.
    fitted_divergence: float | None = None
    held_back_divergence: float | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A student beside its teacher, on images that it was not fitted on. Intervals are over these images, and seeds.

    R is the frozen model, P the teacher, F the student.
    """

    student: Student  # what it is
    # models, images, moved_images: how many teachers; images; decisions that tuning moved, `argmax z_R ≠ argmax z_P`, a
    # mean over the teachers.
    models: int
    images: int
    moved_images: int
    divergence: Estimate  # mean KL `softmax z_P ‖ softmax z_F` in nats
    agreement: Estimate  # share of images with the teacher's decision
    # moved, fixed, broken: the same, of images whose decision tuning moved, made right, and made wrong; `None` where
    # there is no such image.
    moved: Estimate | None
    fixed: Estimate | None
    broken: Estimate | None
    # Mean over images of that between `f_F - f_R` and `f_P - f_R`, of unit-length image features. What texts and heads
    # change is not in it. `None` where one of the two moves no image feature.
    cosine: Estimate | None
    accuracy: float | None = None  # of the student
    difference: Estimate | None = None  # from the teacher's, paired; both a share of images, `None` without labels
    # Over the frozen model in points and in nats, with the share of the teacher's gain; `None` without labels.
    gain: ByOutcome[Estimate] | None = None
    less_ceiling: Estimate | None = None  # `moved` less the ceiling's, paired; `None` of what has no ceiling
    word: Word | None = None  # what is concluded; `None` of what was not fitted

    @property
    def margin(self) -> float | None:
        """The smallest loss of accuracy that the interval rules out, a share; `None` without labels."""
        if self.difference is None or self.difference.low is None:
            return None
        return max(0.0, -self.difference.low)

    @property
    def share(self) -> Estimate | None:
        """Of the teacher's gain in log-likelihood; `None` where that is not surely above 0."""
        return None if self.gain is None else self.gain.log_likelihood.share


@dataclasses.dataclass(frozen=True)
class ImageComparisons:
    """A teacher and its students on each of `n` images. Columns `K` are frozen model, teacher, then the students."""

    students: tuple[Student, ...]  # `K - 2` of them
    decisions: np.ndarray  # the class that each gives each image, uint16 `[n, K]`
    divergences: np.ndarray  # KL from the teacher in nats, float32 `[n, K]`
    cosines: np.ndarray  # as of `Comparison`, float32 `[n, K]`; NaN where an image's feature does not move
    correct: np.ndarray | None = None  # uint8 `[n, K]`
    # Log-likelihood of the true class in nats, float32 `[n, K]`. Both are `None` without labels.
    log_likelihood: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class ModelReplacements:
    """What was fitted to one tuned model."""

    steps: int  # of each fit
    # fitted_images, held_back_images: how many, without labels.
    fitted_images: int
    held_back_images: int
    images: np.ndarray  # numbers of the study's images in the split, `[n]`
    by_image: ImageComparisons  # all that follows is from this
    no_ceiling: str  # why the method was not fitted to itself; "" where it was


@dataclasses.dataclass(frozen=True)
class MethodReplacements:
    """What one method can be exchanged for, over all its seeds."""

    name: str  # how the method is called
    models: tuple[str, ...]  # keys of its models
    gain: ByOutcome[Estimate]  # over the frozen model, by outcome
    rows: tuple[Comparison, ...]  # what stands in its place
    sentence: str  # what is concluded of two vectors per layer, or of the first form


class Outcome(enum.Enum):
    """Whether a claim holds: by the whole interval (`explain.observations`)."""

    HOLDS = "holds"
    DOES_NOT = "does not"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class Observation:
    """A claim of the paper about one method, over all its seeds."""

    source: str  # where it stands in the paper, such as "Fig. 2"
    claim: str  # in one line
    method: str  # its label; "Zero-shot" where the claim is about the frozen model
    statistic: str  # what the number is, in words
    unit: str  # "points", "%", or "" of a correlation
    number: Estimate | None  # with its interval; `None` where nothing was measured
    samples: int  # images or classes that it is a mean over; of several seeds the fewest
    outcome: Outcome  # by the rule


@dataclasses.dataclass(frozen=True)
class ObservedModel:
    """What observations are made of: float32, a row for each of `n` images or `C` classes; NaN where none was read."""

    # `[n, 2, 5]`, zero-shot's and the model's shares of the text's relevancy by `TEXT_KINDS[:5]`.
    text_relevancy: np.ndarray | None = None
    patch_variation: np.ndarray | None = None  # `[n]`, total variation between both models' relevancy of patches
    # `[C, 6]`, by `TEXT_KINDS`, a mean over layers, heads and the texts of a class.
    eos_attention: np.ndarray | None = None
    # distance, entropy: `[n, L]`, among input tokens, renormalised there, a mean over heads.
    distance: np.ndarray | None = None
    entropy: np.ndarray | None = None
    # `[n]`, rank correlation between attention of `[cls]` and nearness to prompts, a mean over layers.
    nearness: np.ndarray | None = None
    # `[n]`, total variation between both models' attention of `[cls]` to patches, a mean over layers.
    cls_variation: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Observations:
    """By model what was measured, and a row for each claim and method."""

    models: dict[str, ObservedModel]
    rows: tuple[Observation, ...]


@dataclasses.dataclass(frozen=True)
class ReplacementResults:
    """All replacements of a study: by model, and by method over its seeds."""

    models: dict[str, ModelReplacements | Missing]
    methods: tuple[MethodReplacements, ...]


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """All that a study found: facts, then the sections of `SECTIONS`, then what follows from them."""

    dataset: DatasetFacts
    clip: ClipFacts
    models: tuple[ModelFacts, ...]
    sections: tuple[str, ...]
    config: dict[str, object]
    seconds: float
    predictions: Predictions
    relevancy: dict[str, Relevancy | Missing] | None = None
    text_attention: dict[str, TextAttention | Missing] | None = None
    vision_attention: dict[str, VisionAttention | Missing] | None = None
    similarity: Similarity | None = None
    decomposition: dict[str, Decomposition | Missing] | None = None
    causal: CausalTests | None = None
    faithfulness: Faithfulness | None = None
    examples: Examples | None = None
    explore: Exploration | None = None
    words: dict[str, ModelWords | Missing] | None = None
    replacement: ReplacementResults | None = None
    observations: Observations | None = None
    methods: tuple[MethodResult, ...] = ()

    @property
    def zero_shot(self) -> ModelFacts:
        return self.models[0]

    @property
    def tuned(self) -> tuple[ModelFacts, ...]:
        return self.models[1:]

    def why_missing(self, section: str) -> dict[str, str]:
        """By model the reason why a section leaves it out."""
        result = getattr(self, section)
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
