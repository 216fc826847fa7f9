"""The rank curve: how large a linear map of its tokens stands for what a method adds to image tokens.

Students add two vectors to the tokens of each vision block, one to `[cls]` and one to patches, and a linear map of rank
`r` of the block's input:

    x ← block_l(x) + b_l + LN1(x) D_l U_l,    D_l [D, r], U_l [r, D], U_l = 0 at the start.

Another student has two vectors for each of zero-shot CLIP's classes, weighted by its softmax over the image: its map
reads the class that CLIP sees, and nothing else. All have the teacher's class features, as has the ceiling, the
method's own image tower. Fits and comparisons are those of `replacement`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.analysis.model import Model, passes
from clipbias.analysis.replacement import (
    MARGIN,
    Candidate,
    Comparison,
    Fits,
    ModelReplacements,
    Origin,
    ReplacementResults,
    Student,
    compare_students,
    no_ceiling,
    uncertain_share,
    why_not_fitted,
)
from clipbias.analysis.results import Missing
from clipbias.analysis.sections import Section
from clipbias.analysis.study import Computation, Study
from clipbias.checks import Range
from clipbias.clip import Adaptation, Clip, ClipConfig, encode_image
from clipbias.clip.adaptation import NOTHING
from clipbias.clip.params import Params
from clipbias.intervals import excludes
from clipbias.training.students import STUDENT_FORMS
from clipbias.tuning import CONSTANTS, Classifier, Learnables, Method, Task
from clipbias.tuning.features import Features, unit_length
from clipbias.tuning.method import without_constants
from clipbias.tuning.task import cosine_logits

RANKS = (0, 1, 2, 4, 8, 16)
BY_CLASS = "class"  # form of the student with vectors for each class
# Constants of students: unit-length class features of the teacher, and of zero-shot CLIP, `[C, d]`.
TEXTS = "texts"
SEEN = "zero_shot"


@dataclasses.dataclass(frozen=True)
class FixedTexts(Method):
    """A method's image tower with constant class features."""

    method: Method  # adapts the image tower; its changes of texts have no effect

    def bind(self, config: ClipConfig) -> "FixedTexts":
        bound = super().bind(config)
        object.__setattr__(bound, "method", self.method.bind(config))
        return bound

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        learnables = self.method.init(rng, clip, class_names)
        texts = jnp.zeros((len(class_names), clip.config.projection_width))
        return {**learnables, CONSTANTS: {**learnables.get(CONSTANTS, {}), TEXTS: texts}}

    def adapt(self, learnables: Learnables) -> Adaptation:
        constants = {name: leaf for name, leaf in learnables[CONSTANTS].items() if name != TEXTS}
        # Methods without constants take their learnables as keywords, so an empty dictionary would be one too many.
        of_method = {**without_constants(learnables), **({CONSTANTS: constants} if constants else {})}
        texts = [field.name for field in dataclasses.fields(Adaptation) if field.name.startswith("text_")]
        return dataclasses.replace(self.method.adapt(of_method), **{name: getattr(NOTHING, name) for name in texts})

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        return features.scale * (unit_length(features.image) @ learnables[CONSTANTS][TEXTS].T)


@dataclasses.dataclass(frozen=True)
class LinearMap(Method):
    """Two vectors per vision layer by token type, and a linear map beside each block that both towers have."""

    rank: Annotated[int, Range(0, 1000)] = 0

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        vision = clip.config.vision
        vectors = {"vision_bias": jnp.zeros((vision.layers, vision.token_types, vision.width))}
        if not self.rank:
            return vectors
        blocks = clip.config.common_blocks
        down = jax.random.normal(rng, (blocks, vision.width, self.rank)) / vision.width**0.5
        return {**vectors, "vision_down": down, "vision_up": jnp.zeros((blocks, self.rank, vision.width))}

    def adapt(self, learnables: Learnables) -> Adaptation:
        if not self.rank:
            return Adaptation(**learnables)
        down, up = learnables["vision_down"], learnables["vision_up"]
        return Adaptation(vision_bias=learnables["vision_bias"], vision_adapters=linear_network(down, up))


def linear_network(down: jax.Array, up: jax.Array) -> Params:
    """Returns the network beside blocks that makes the map `x D U`, for `down [n, D, r]` and `up [n, r, D]`."""
    # The network has a ReLU, and `z = relu(z) − relu(−z)`.
    halves = {"down": jnp.concatenate([down, -down], axis=-1), "up": jnp.concatenate([up, -up], axis=1)}
    return {
        name: {"kernel": kernel, "bias": jnp.zeros((len(kernel), kernel.shape[-1]))} for name, kernel in halves.items()
    }


@struct.dataclass
class ClassAdaptation(Adaptation):
    """An adaptation whose `vision_bias [C, L, 2, D]` has vectors for each class."""

    seen: jax.Array | None = None  # unit-length class features, by which the frozen model weighs them, `[C, d]`


@dataclasses.dataclass(frozen=True)
class ClassVectors(Method):
    """Two vectors per vision layer for each class, weighted by the frozen model's softmax over the image."""

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        vision, classes = clip.config.vision, len(class_names)
        vectors = jnp.zeros((classes, vision.layers, vision.token_types, vision.width))
        return {"vision_bias": vectors, CONSTANTS: {SEEN: jnp.zeros((classes, clip.config.projection_width))}}

    def adapt(self, learnables: Learnables) -> Adaptation:
        return ClassAdaptation(vision_bias=learnables["vision_bias"], seen=learnables[CONSTANTS][SEEN])


@dataclasses.dataclass(frozen=True)
class ClassClassifier(Classifier):
    """The computations of a task with `ClassVectors`: a bias for each image."""

    def encode_images(self, params: Params, adaptation: Adaptation, images: jax.Array) -> jax.Array:
        assert isinstance(adaptation, ClassAdaptation), "the method makes it"
        assert adaptation.vision_bias is not None and adaptation.seen is not None
        frozen = unit_length(super().encode_images(params, NOTHING, images))
        weights = jax.nn.softmax(cosine_logits(params, frozen, adaptation.seen))
        biases = jnp.einsum("BC,CLTD->BLTD", weights, adaptation.vision_bias)

        def of_image(image: jax.Array, bias: jax.Array) -> jax.Array:
            added = Adaptation(vision_bias=bias)
            feature, _ = encode_image(params, self.config, image[None], added, dtype=self.dtype, remat=self.remat)
            return feature[0]

        # An adaptation is that of a whole batch: each image is a batch of its own, in one program for all.
        return jax.vmap(of_image)(images, biases)


def bound(task: Task) -> Task:
    """Gives a task of `ClassVectors` its computations; returns the task."""
    fields = dataclasses.fields(Classifier)
    task.classifier = ClassClassifier(**{field.name: getattr(task.classifier, field.name) for field in fields})
    return task


def why_no_curve(study: Study, model: Model) -> str:
    """Returns why no maps are fitted to a model, in a sentence, or ""."""
    if not study.options.rank_curve:
        return "No map is fitted: --config.rank_curve is False."
    method = model.task.method
    if reason := why_not_fitted(study, model) or no_ceiling(model):
        return reason
    if not model.task.classifier.changes_vision(model.task.shapes):
        return "No image token is changed."
    if method.conditional or method.patches or method.read_classes or method.logits or method.scale is not None:
        return "Its classifier has more than a feature for each class, which a map of image tokens cannot have."
    return "It makes several passes over an image, and maps belong to a single one." if passes(model.task) > 1 else ""


def compute_rank(study: Study) -> Computation[ReplacementResults]:
    """Fits maps of each rank, vectors for each class, and the ceiling to every tuned model, and compares them."""
    reasons = {model.key: why_no_curve(study, model) for model in study.tuned}
    missing: dict[str, ModelReplacements | Missing] = {key: Missing(why) for key, why in reasons.items() if why}
    teachers = [model for model in study.tuned if not reasons[model.key]]
    if not teachers:
        return ReplacementResults(missing, ())
    fits = Fits(study, len(teachers) * (len(RANKS) + 2))
    beside = {model.key: fit_maps(fits, model) for model in teachers}
    fits.progress.close()
    return (yield from compare_students(study, fits, beside, missing, write=sentence, name="rank"))


def fit_maps(fits: Fits, model: Model) -> list[Candidate]:
    """Fits the ceiling, vectors for each class, and maps of each rank to a model."""
    study, params = fits.study, model.task.clip.params
    texts = {TEXTS: np.asarray(model.task.class_features(params, model.learnables))}
    seen = {SEEN: np.asarray(study.zero_shot.task.class_features(params, {}))}
    rate = STUDENT_FORMS["kind"].learning_rate

    def task_of(method: Method, form: str) -> Task:
        dtype = study.zero_shot.task.classifier.dtype
        return Task(study.clip, FixedTexts(method), model.task.classes, method_name=form, dtype=dtype)

    forms = [("two vectors per layer for each class", bound(task_of(ClassVectors(), BY_CLASS)), texts | seen)]
    for rank in RANKS:
        task = task_of(LinearMap(rank), f"rank{rank}")
        forms.append((f"two vectors and a map of rank {rank} per layer", task, texts))
    candidates = [fits.ceiling(model, task_of(model.task.method, model.method), texts)]
    for words, task, constants in forms:
        fit = fits.fit(model, task, rate=rate, constants=constants)
        candidates.append((Student.of(fit, Origin.FITTED, task.method_name, words), fit.student))
    return candidates


def rank_of(row: Comparison) -> int | None:
    """Returns the rank of a student's map; `None` for other students."""
    rank = row.student.form.removeprefix("rank")
    return int(rank) if row.student.kind is Origin.FITTED and rank.isdecimal() else None


def sentence(name: str, rows: Sequence[Comparison], no_ceiling: str = "") -> str:
    """Writes the smallest rank that surely makes at most five points fewer changed predictions than the ceiling."""
    ranks = {rank: row for row in rows if (rank := rank_of(row)) is not None}
    if all(row.less_ceiling is None for row in ranks.values()):
        changed = next((row for row in ranks.values() if row.moved), None)
        return no_ceiling or (uncertain_share(changed) if changed else f"{name} changed no prediction.")
    enough = [rank for rank, row in ranks.items() if excludes(row.less_ceiling, -MARGIN) > 0]
    within = f"within {100 * MARGIN:.0f} of 100 changed predictions of {name} fitted in the same way"
    if not enough:
        return f"No map up to rank {max(ranks)} surely comes {within}."
    if not min(enough):
        return f"Two vectors per layer, without a map, come {within}."
    return f"The smallest map that surely comes {within} has rank {min(enough)}."


RANK = Section(name="rank", title="How much of the image is read", result=ReplacementResults, compute=compute_rank)
