"""What an adaptation method is: `init`, `adapt`, the text it wants, and hooks for those that need more.

A method needs `init` and `adapt`. Every other hook has a default that costs nothing: what is not overridden is not in
the compiled programs.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clipbias.checks import Range, check_fields
from clipbias.clip import Adaptation, Clip
from clipbias.clip.params import Params
from clipbias.constants import WORDS
from clipbias.tuning.features import Features, class_vectors, unit_length
from clipbias.tuning.preset import DatasetOptions, Kind, Options, Preset
from clipbias.tuning.prompt_text import PromptText
from clipbias.tuning.recipe import Recipe

# A dictionary of arrays. What lies under `CONSTANTS` belongs to a run and its adapter like the rest, but no step
# changes it: a cache, a closed form, the classes' weights in a loss.
Learnables = Mapping[str, Any]
CONSTANTS = "constants"

# Prompt tokens per layer, and layers, that no method needs: more would only fill the memory.
MOST_TOKENS, MOST_LAYERS = 1000, 1000
Tokens = Annotated[int, Range(1, MOST_TOKENS)]
TokensOrNone = Annotated[int, Range(0, MOST_TOKENS)]
Depth = Annotated[int, Range(0, MOST_LAYERS)]


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """Base of all methods: a frozen dataclass whose fields are the method's options.

    A method holds no arrays. `init` makes its learnables, a dictionary of arrays; `adapt` turns them into the
    `Adaptation` that the frozen model accepts. Keys that start with `text` or `vision` count as that tower's
    parameters. A file of this package whose class has `presets` is all that it takes to add a method.

    Attributes:
      presets: the names of a built-in method; of a method of one's own, the first says how it is shown.
      kind: "training-free" where a method is made at once of nothing or of images' features, without a learned number;
        "head", "prompts" (of words, tokens or pixels) or "weights" (biases, kernels, networks beside them) by what is
        learned; "test-time" where that is learned anew for each test image. `None` where the author does not say.
      trains: whether steps of an optimiser change the learnables; `False` for a classifier that is ready once it is
        made, from nothing (zero-shot) or by `support`.
      patches: whether the head and the loss see features of patches, too; the last block then runs at all tokens.
      reads_templates: whether the loss sees features of the templates without a class name, too, `Features.templates`.
      first_view: whether the first of several features of an image (`Features.views`) is its own; else their mean is.
      unlabelled: whether training images are those that plain CLIP is most certain of, with its labels
        (`data.few_shot.most_confident`), in place of a draw of labelled ones.
      datasets: options of the authors' for a dataset (`options_for`).
      scale: the number that the authors multiply cosines by; `None` for CLIP's own `exp(logit_scale)`.
      batchwise: whether the logits or the loss of an image depend on the other images of its batch, which then is not
        taken in parts (`training.accumulation`).
    """

    presets: ClassVar[Mapping[str, Preset]] = {}
    kind: ClassVar[Kind | None] = None
    trains: ClassVar[bool] = True
    patches: ClassVar[bool] = False
    reads_templates: ClassVar[bool] = False
    first_view: ClassVar[bool] = False
    unlabelled: ClassVar[bool] = False
    datasets: ClassVar[DatasetOptions] = {}
    scale: ClassVar[float | None] = None
    batchwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Holds the options against their annotations. Raises `ClipbiasError` for one that does not fit."""
        check_fields(self)

    # What the method learns, and how it acts on the model.

    @abc.abstractmethod
    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        """Initial learnables. An axis of length 0 stands for one that has as many entries as there are images.

        Args:
          rng: a `jax.random.key`.
          clip: the frozen model: geometry, token embeddings, tokenizer.
          class_names: the `C` classes as given, before `_` becomes a space.
        """

    @abc.abstractmethod
    def adapt(self, learnables: Learnables) -> Adaptation:
        """Learnables to additions. Pure: it is traced, differentiated and vectorised."""

    def adapt_to(self, learnables: Learnables, image: jax.Array) -> Adaptation:
        """Additions for one image, whose feature `[d]` is as the vision tower makes it, not of unit length.

        Only the text tower takes them: it runs once for each image, and the loss and the head see texts `[B, S, C, d]`.
        By default what `adapt` gives, once for all images.
        """
        return self.adapt(learnables)

    def adapt_in_training(self, learnables: Learnables, rng: jax.Array) -> Adaptation:
        """`adapt` of a training step, for what is random there (dropout). By default the same."""
        return self.adapt(learnables)

    def templates_in_training(self, rng: jax.Array, step: jax.Array) -> jax.Array:
        """Which of the templates of `text` a training step takes, int32 `[Q]`, `Q` the same in all steps.

        The text tower runs for their texts alone, with their contexts of `text_context [S, T, Dt]`. By default all.

        Args:
          rng: the run's key, the same in all steps.
          step: the step's number, from 0.
        """
        raise NotImplementedError

    def text(self, template: str, clip: Clip) -> PromptText:
        """The prompt text, given the dataset's own `template`. By default "a photo of a {}." whatever the dataset."""
        return PromptText((f"{WORDS} {{}}.",))

    # Heads and losses.

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        """Logits `[B, C]`. By default `exp(logit_scale) · cos(f, g)`; texts of a class are averaged as unit vectors.

        A residual is added to the class features before they are normalised.
        """
        if features.text.ndim == 4:  # texts of each image

            def one(image: jax.Array, text: jax.Array) -> jax.Array:
                return self.logits(learnables, Features(image[None], text, features.scale))[0]

            return jax.vmap(one)(features.image, features.text)
        classes = class_vectors(features.text, self.adapt(learnables).text_residual)
        return features.scale * (unit_length(features.image) @ classes.T)

    def logit_scale(self, params: Params) -> jax.Array:
        """The logarithm of what cosines are multiplied by, float32: CLIP's own, or of the method's `scale`."""
        return params["logit_scale"].astype(jnp.float32) if self.scale is None else jnp.log(jnp.float32(self.scale))

    def losses(
        self, learnables: Learnables, features: Features, logits: jax.Array, labels: jax.Array
    ) -> Mapping[str, jax.Array]:
        """Terms of the loss by name, `[B]` each (the mean over images counts) or a number. By default cross-entropy.

        Args:
          learnables: of one run.
          features: of the batch, see `Features`.
          logits: `[B, C]`, from `logits`.
          labels: `[B]`.
        """
        return {"cross_entropy": optax.softmax_cross_entropy_with_integer_labels(logits, labels)}

    def teacher_text(self, template: str, clip: Clip) -> PromptText | None:
        """The text of a frozen teacher, whose features are `Features.teacher` in `losses`. By default there is none."""
        return None

    def read_classes(self, learnables: Learnables, text: jax.Array) -> Learnables:
        """The learnables with what is made of the teacher's features `[S', C, d]` of the classes at hand.

        It follows `init`, and is called again for other classes. By default there is nothing.
        """
        return learnables

    # Training.

    @classmethod
    def options_for(cls, dataset: str, shots: int) -> Options:
        """The authors' options for a dataset of the catalogue and so many images per class, 0 for all that there are.

        They hold unless the user gives the option (`registry.resolve_method`). By default those of `datasets`.
        """
        return cls.datasets.get(dataset, {})

    def recipe_for(self, common: Recipe, shots: int) -> Recipe:
        """How it is trained with so many images per class, 0 for all that there are. By default as the others are."""
        return common

    def stages(self, recipe: Recipe) -> Sequence[tuple["Method", Recipe]]:
        """Trainings that follow one another, each by an optimiser of its own: what is trained in it, and how.

        By default one, of the method itself. The others are methods as well, bound to the same classes.

        Args:
          recipe: of all stages together, from `recipe_for`.
        """
        return ((self, recipe),)

    def next_stage(self, stage: int, learnables: Learnables, text: np.ndarray | None) -> Learnables:
        """The learnables that a stage starts from, given those that the one before it ended with. On the host.

        Args:
          stage: from 0, whose start is made of the method's own; behind the last, the method's own are asked for.
          learnables: of one run.
          text: `[S, C, d]`, what the text tower makes of the texts under `learnables`; between two stages only.
        """
        return learnables

    def optimizer(self, recipe: Recipe) -> optax.GradientTransformation:
        """The optimiser without the learning rate, by default the recipe's. It acts on each number by itself."""
        return recipe.transformation()

    def decayed_weights(self, learnables: Learnables, params: Params) -> Learnables:
        """What weight decay draws towards zero, of several runs side by side. By default the learnables."""
        return learnables

    def combine(self, gradients: Mapping[str, Learnables]) -> Learnables:
        """One gradient from those of the loss's terms. By default their sum, from a single backward pass."""
        raise NotImplementedError

    def average(self, epochs: int) -> np.ndarray | None:
        """The weight of each epoch's learnables in their sum, which is what is evaluated: `[epochs]`, sum 1.

        By default `None`: the last epoch's.
        """
        return None

    # Use.

    def transfer(
        self, learnables: Learnables, labels: Sequence[int] | None, source: np.ndarray, target: np.ndarray
    ) -> Learnables:
        """The learnables for other classes. By default what is class-sized is taken row by row, or refused.

        Args:
          learnables: of one run.
          labels: for each class its label in training; `None` where training did not see these classes.
          source, target: plain CLIP's text features `[S, C, d]` of the classes of training and of the others.

        Raises:
          ClipbiasError: it cannot be used for them.
        """
        raise NotImplementedError

    def overrides(self, hook: str) -> bool:
        """Whether the method has a hook of its own, or one that this class lacks."""
        return getattr(type(self), hook, None) is not getattr(Method, hook, None)

    @property
    def conditional(self) -> bool:
        """Whether the texts that an image is classified by depend on it."""
        return self.overrides("adapt_to")

    @property
    def uses_images(self) -> bool:
        """Whether it uses training images at all."""
        return self.trains
