"""The protocol of adaptation methods: presets, options, hooks, and operations on learnables.

A method needs `init`, and `adapt` unless its learnables are fields of `Adaptation`. Every other hook has a default, or
is optional: `None` where a method lacks it. An unused hook leaves no trace in the compiled programs.
"""

import abc
import copy
import dataclasses
import enum
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from clipbias.checks import Range, check_fields
from clipbias.clip import Clip, ClipConfig
from clipbias.clip.adaptation import Adaptation as Adaptation
from clipbias.clip.layers import check_changes
from clipbias.clip.params import Params
from clipbias.constants import WORDS
from clipbias.errors import ClipbiasError
from clipbias.tuning.features import Features, Samples, Sampling, class_vectors, unit_length
from clipbias.tuning.recipe import AUTHORS, COMMON, Recipe


@dataclasses.dataclass(frozen=True)
class PromptText:
    """A prompt text: one or more templates for class names.

    Attributes:
      templates: each with `{}` for the class name. The unit-length features of several templates are averaged.
      context_tokens: number of context tokens `T` after SOS, which the method may replace.
      position: position of the class name in the context, "end", "middle" or "front"; or one for each template.
      spaces: characters of a class name that become spaces.
    """

    templates: tuple[str, ...]
    context_tokens: int = 0
    position: str | tuple[str, ...] = "end"
    spaces: str = "_"

    def __str__(self) -> str:
        count = len(self.templates)
        return repr(self.templates[0]) + (f", … ({count} templates)" if count > 1 else "")

    @property
    def before(self) -> tuple[int, ...]:
        """Number of context tokens before the class name, for each template."""
        count = self.context_tokens
        positions = (self.position,) * len(self.templates) if isinstance(self.position, str) else self.position
        return tuple({"end": count, "middle": count // 2, "front": 0}[position] for position in positions)


# A method's options by name, as plain values; and those of its authors for each dataset.
Options = Mapping[str, Any]
DatasetOptions = Mapping[str, Options]


@dataclasses.dataclass(frozen=True)
class Preset:
    """A name of a method, with the options that differ from the method's defaults.

    `order` is the position among the rows of a table: methods that change more of both towers come later. `datasets`
    are the authors' options for each dataset under this name. Default: `Method.datasets`.
    """

    label: str
    options: Options = dataclasses.field(default_factory=dict)
    order: int = 1000
    datasets: DatasetOptions | None = None


class Kind(enum.StrEnum):
    """Groups of methods, by the part of CLIP that they change."""

    # No trained parameter.
    TRAINING_FREE = "training-free"
    HEAD = "head"
    # Words, tokens or pixels.
    PROMPTS = "prompts"
    # Biases, kernels, inserted networks.
    WEIGHTS = "weights"
    # Learned on each test image.
    TEST_TIME = "test-time"


# The trainable parameters of a method: a dictionary of arrays. The arrays under `CONSTANTS` are stored with the others,
# but no step changes them: a cache, a closed form, class weights of a loss.
Learnables = Mapping[str, Any]
CONSTANTS = "constants"

# The terms of a loss by name: a number, or `[B]`, which is averaged over images.
Terms = Mapping[str, jax.Array]

# Options of many methods: prompt tokens per layer, and a number of layers (`None`: all). Bounds catch typing errors
# that would only fill the memory.
Tokens = Annotated[int, Range(1, 1000)]
TokensOrNone = Annotated[int, Range(0, 1000)]
Layers = Annotated[int, Range(1, 1000)]
Depth = Layers | None


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """Base of all methods: a frozen dataclass whose fields are the method's options.

    A method holds no arrays. `init` makes its learnables, a dictionary of arrays; `adapt` turns them into the
    `Adaptation` that the frozen model accepts. Keys that start with `text` or `vision` count as parameters of that
    tower. To add a method, add a file to `tuning/methods/` with a class that has `presets`.

    Attributes:
      presets: names of a built-in method. The first preset of a user's own method gives its label.
      kind: the part that the method changes.
      trains: whether steps of an optimiser change the learnables; not for methods that `init` or `support` completes.
      patches: whether the head and the loss use features of patches. The last block then runs at all tokens.
      reads_templates: whether the loss uses features of the templates without class names (`Features.templates`).
      first_view: whether the first of several features of an image (`Features.views`) is the image's feature; else
        their mean is.
      unlabelled: whether the method trains on the images that plain CLIP is surest of, with its labels
        (`data.few_shot.most_confident`), instead of a few-shot split.
      datasets: the authors' options for each dataset (`options_for`).
      authors: the authors' recipe, where it depends on no option (`authors_recipe`).
      scale: the authors' factor of the cosines; `None` for CLIP's own `exp(logit_scale)`.

    Optional hooks, `None` unless a method defines them:
      logits(learnables, features): logits `[B, C]` of a head of the method's own, in place of `cosine_logits`.
      losses(learnables, features, logits, labels): terms of the loss by name: a number, or `[B]`, which is averaged
        over images. Without it the only term is `cross_entropy`.
      combine(gradients): the gradient of a step from those of the loss terms, by name, each with a backward pass of
        its own. Without it one backward pass computes the gradient of their sum.
      adapt_to(learnables, image): the adaptation of the text tower for one image, from its feature `[d]` before
        normalisation. The loss and the head get texts `[B, S, C, d]`.
      templates_in_training(rng, step): indices of the templates of `text` that a training step uses, int32 `[Q]`, with
        the same `Q` in all steps; `text_context` is `[S, T, Dt]`. The key is the run's; steps count from 0.
      read_classes(learnables, text): the learnables with arrays made from the teacher's text features `[S', C, d]`,
        after `init` and again for other classes.
      next_stage(stage, learnables, text): initial learnables of a stage, on the host, from one run's final learnables
        of the previous stage. Stage 0 starts from the method's own learnables; after the last stage this hook returns
        the method's own. Between two stages `text [S, C, d]` are the text features under `learnables`.
      transfer(learnables, labels, source, target): one run's learnables for other classes. `labels [C']` are their
        training labels, -1 for classes that training did not see; `source` and `target` plain CLIP's text features
        `[S, C, d]` of the training classes and of the others. It may raise `ClipbiasError`. Without it rows of known
        classes stay, and new rows are those of `init` (`tuned.transfer`); classes must be the first axis alone.
    """

    presets: ClassVar[Mapping[str, Preset]] = {}
    kind: ClassVar[Kind | None] = None
    trains: ClassVar[bool] = True
    patches: ClassVar[bool] = False
    reads_templates: ClassVar[bool] = False
    first_view: ClassVar[bool] = False
    unlabelled: ClassVar[bool] = False
    datasets: ClassVar[DatasetOptions] = {}
    authors: ClassVar[Recipe | None] = None
    scale: ClassVar[float | None] = None

    logits: ClassVar[Callable[..., jax.Array] | None] = None
    losses: ClassVar[Callable[..., Terms] | None] = None
    combine: ClassVar[Callable[..., Learnables] | None] = None
    adapt_to: ClassVar[Callable[..., Adaptation] | None] = None
    templates_in_training: ClassVar[Callable[..., jax.Array] | None] = None
    read_classes: ClassVar[Callable[..., Learnables] | None] = None
    next_stage: ClassVar[Callable[..., Learnables] | None] = None
    transfer: ClassVar[Callable[..., Learnables] | None] = None

    def __post_init__(self) -> None:
        """Checks the options by their annotations. Raises `ClipbiasError` for a wrong one."""
        check_fields(self)

    def bind(self, config: ClipConfig) -> Self:
        """The same method with `clip_config` set. A `Task` binds its method to its model."""
        bound = copy.copy(self)
        # No field: the geometry is no option, and methods with equal options are equal whatever their model.
        object.__setattr__(bound, "_clip_config", config)
        return bound

    @property
    def clip_config(self) -> ClipConfig:
        """Geometry of the model, for hooks without an argument `clip`. Raises `ClipbiasError` outside a `Task`."""
        config = self.__dict__.get("_clip_config")
        if config is None:
            raise ClipbiasError(f"{type(self).__name__} belongs to no model yet; make a clipbias.Task of it.")
        return config

    # Learnables, and their effect on the model.

    @abc.abstractmethod
    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        """Initial learnables from a `jax.random.key`. An axis of length 0 has as many entries as training images."""

    def adapt(self, learnables: Learnables) -> Adaptation:
        """The adaptation, a pure function, traced and differentiated. Default: learnables by their names in it."""
        if unknown := learnables.keys() - {field.name for field in dataclasses.fields(Adaptation)}:
            raise ClipbiasError(
                f"{type(self).__name__} learns {min(unknown)!r}, which is no part of `Adaptation`; define `adapt`."
            )
        return Adaptation(**learnables)

    def adapt_in_training(self, learnables: Learnables, rng: jax.Array) -> Adaptation:
        """`adapt` in a training step, with randomness such as dropout."""
        return self.adapt(learnables)

    def text(self, template: str, clip: Clip) -> PromptText:
        """The prompt text. By default "a photo of a {}.", whatever the dataset's own `template`."""
        return PromptText((f"{WORDS} {{}}.",))

    # Heads and losses.

    def cosine_logits(self, learnables: Learnables, features: Features) -> jax.Array:
        """`exp(logit_scale) · cos(f, g)`, `[B, C]`: the head of a method without `logits`."""
        if features.text.ndim == 4:
            # Each image has texts of its own (CoCoOp, TPT): the plain case, vectorised over images.
            return jax.vmap(
                lambda image, text: self.cosine_logits(learnables, Features(image[None], text, features.scale))[0]
            )(features.image, features.text)
        # The texts of a class are averaged as unit vectors, a residual is added, and the sum is normalised: TaskRes's
        # order.
        classes = class_vectors(features.text, self.adapt(learnables).text_residual)
        return features.scale * (unit_length(features.image) @ classes.T)

    def logit_scale(self, params: Params) -> jax.Array:
        """The logarithm of the factor of the cosines, float32: CLIP's own, or that of the method's `scale`."""
        # The logarithm, as CLIP stores it: a head takes its exponential wherever it comes from.
        return params["logit_scale"].astype(jnp.float32) if self.scale is None else jnp.log(jnp.float32(self.scale))

    def teacher_text(self, template: str, clip: Clip) -> PromptText | None:
        """The prompt text of a frozen teacher, whose features are `Features.teacher` in `losses`. By default none."""
        return None

    # Training.

    @classmethod
    def options_for(cls, dataset: str, shots: int | None) -> Options:
        """The authors' options for a dataset and `shots` images per class, `None` for all."""
        return cls.datasets.get(dataset, {})

    @property
    def takes_common_recipe(self) -> bool:
        """Whether the option `recipe` replaces the authors' recipe, with their epochs and steps."""
        return getattr(self, "recipe", AUTHORS) == COMMON

    def recipe_for(self, common: Recipe, shots: int | None) -> Recipe:
        """The recipe for `shots` images per class, `None` for all images: `common` if that is the option `recipe`."""
        return common if self.takes_common_recipe else self.authors_recipe(common, shots)

    def authors_recipe(self, common: Recipe, shots: int | None) -> Recipe:
        """The authors' recipe, for a method without an option `recipe` or with "authors"."""
        return common if self.authors is None else self.authors

    def stages(self, recipe: Recipe) -> Sequence[tuple["Method", Recipe]]:
        """The method and the recipe of each stage, from the recipe of all together; each has a new optimiser."""
        return ((self, recipe),)

    def optimizer(self, recipe: Recipe) -> optax.GradientTransformation:
        """The optimiser without the learning rate, which must act elementwise."""
        # Elementwise: a step applies it to the arrays of all runs, stacked, without `vmap`.
        return recipe.transformation()

    def decayed_weights(self, learnables: Learnables, params: Params) -> Learnables:
        """Arrays that weight decay pulls towards zero, of several runs."""
        return learnables

    def average(self, epochs: int) -> np.ndarray | None:
        """Weights `[epochs]`, with sum 1, of the epochs in the evaluated average. Default: the last epoch."""
        return None

    # Use.

    @property
    def conditional(self) -> bool:
        """Whether the text features depend on the image."""
        return self.adapt_to is not None

    @property
    def uses_images(self) -> bool:
        """Whether the method uses training images: to train on, or for features (`FeatureMethod`)."""
        return self.trains


def check_family(method: Method, adaptation: Adaptation, clip: Clip) -> None:
    """Raises `ClipbiasError` if the method needs a part of CLIP that the model's family lacks."""
    # Before anything is traced: inside a tower the missing part would raise an error about shapes.
    name = type(method).__name__
    if method.patches and clip.config.vision.pooling == "attention":
        raise ClipbiasError(
            f"{name} reads features of patches, which a model with a pooling head has not; take another."
        )
    if adaptation.text_tokens is not None and not clip.config.text.causal:
        raise ClipbiasError(
            f"{name} inserts tokens that all texts share, which needs a causal text tower; take another."
        )
    if clip.config.vision.pooling == "attention":
        for tower in ("vision", "text"):
            check_changes(getattr(adaptation, f"{tower}_weights"), clip.params[tower], f"{name}'s {tower}_weights")
        if "projection" in (adaptation.vision_weights or {}):
            raise ClipbiasError(
                f"{name} tunes the projection of `[cls]`, and this model has a pooling head; take another."
            )


@dataclasses.dataclass(frozen=True)
class FeatureMethod(Method):
    """A method that uses features of the training images instead of the images: Tip-Adapter, GDA, a linear probe.

    With `trains = False` the method needs only `support`. Otherwise its training steps use features and run no tower.
    The optional hook `finish(learnables, samples)` gives one run's learnables after training, on the host.
    """

    finish: ClassVar[Callable[..., Learnables] | None] = None

    @abc.abstractmethod
    def sampling(self) -> Sampling:
        """The features of the training images for `support` and training."""

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        """The learnables before training, from those of `init` and the features of `sampling`. On the host."""
        return learnables

    def searched_options(self, learnables: Learnables) -> Mapping[str, float]:
        """The options that a search on validation images selected in a run."""
        # With them, `support` and `finish` repeat the selection without validation images.
        return {}

    @property
    def uses_images(self) -> bool:
        return True


def sampling_of(method: Method) -> Sampling | None:
    """The features that a method uses instead of the training images; `None` if it uses the images."""
    return method.sampling() if isinstance(method, FeatureMethod) else None


@dataclasses.dataclass(frozen=True)
class TestTimeMethod(Method):
    """A method that classifies each test image with its own learnables: TPT."""

    __test__: ClassVar[bool] = False  # pytest would collect a class with this name

    @abc.abstractmethod
    def crops_at_test(self) -> int:
        """Number of random crops per test image for `at_test`, in addition to the image."""

    def augmix_at_test(self) -> bool:
        """Whether AugMix mixes these crops with distortions (`data.transforms`)."""
        return False

    @abc.abstractmethod
    def at_test(self, learnables: Learnables, logits: Callable[[Learnables], jax.Array]) -> Learnables:
        """The learnables for one test image, from those of the run: a traced function, for one image after another.

        `logits` returns the logits `[1 + crops, C]` of the image's views for any learnables; the first view is the
        image. The vision tower has run already, so only learnables of the text tower may change.
        """

    @property
    def conditional(self) -> bool:
        return True


def crops_of(method: Method) -> int:
    """Number of random crops per test image; 0 for methods that do not learn on test images."""
    return method.crops_at_test() if isinstance(method, TestTimeMethod) else 0


def mixes_crops(method: Method) -> bool:
    return isinstance(method, TestTimeMethod) and method.augmix_at_test()


# Separates the names in a path, also in files.
SEPARATOR = "/"

# A leaf, on a device or on the host.
Array = jax.Array | np.ndarray


def without_constants(learnables: Learnables) -> Learnables:
    """The learnables that training steps change."""
    return {name: value for name, value in learnables.items() if name != CONSTANTS}


def with_constants(learnables: Learnables, others: Learnables) -> Learnables:
    return {**learnables, CONSTANTS: others[CONSTANTS]} if CONSTANTS in others else learnables


def select_run(learnables: Learnables, index: int) -> Learnables:
    """The learnables of one run, from a leading axis `R` of runs."""
    return jax.tree.map(lambda leaf: leaf[index], learnables)


def stack_runs(runs: Sequence[Learnables]) -> Learnables:
    """The learnables of several runs on a leading axis `R`, on the host."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *runs)


def flatten(tree: Learnables) -> dict[str, Array]:
    """Leaves of nested dictionaries by path, as in adapter files: `{"a": {"b": x}}` to `{"a/b": x}`."""
    return traverse_util.flatten_dict(dict(tree), sep=SEPARATOR)


def unflatten(tensors: Mapping[str, Array]) -> Params:
    """The inverse of `flatten`. Raises `ValueError` if one array's path lies inside that of another."""
    # A file may hold both "a" and "a/b", and no tree can.
    for name in tensors:
        parents = name.split(SEPARATOR)[:-1]
        if any(parent in tensors for parent in itertools.accumulate(parents, "{}/{}".format)):
            raise ValueError(f"{name!r} lies inside another array")
    return traverse_util.unflatten_dict(dict(tensors), sep=SEPARATOR)


def parameter_count(learnables: Learnables) -> dict[str, int]:
    """Number of learnable parameters: `total`, `vision`, `text`, and `shared` between the towers; no constants."""
    # By the first word of a name: the protocol's only rule for names.
    counts = dict.fromkeys(("vision", "text", "shared"), 0)
    for key, value in without_constants(learnables).items():
        tower = next((name for name in ("vision", "text") if key.startswith(name)), "shared")
        counts[tower] += sum(leaf.size for leaf in jax.tree.leaves(value))
    return {"total": sum(counts.values()), **counts}
