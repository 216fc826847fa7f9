"""ProGrad (Zhu et al. 2023, arXiv 2205.14865, Prompt-aligned Gradient for Prompt Tuning)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated

import jax
import jax.numpy as jnp

from clipbias.checks import Range
from clipbias.clip import Clip
from clipbias.constants import WORDS
from clipbias.errors import ClipbiasError
from clipbias.tuning.features import Features, average_texts, cross_entropy, unit_length
from clipbias.tuning.method import Kind, Learnables, Method, Options, Preset, PromptText, Terms, Tokens
from clipbias.tuning.prompts import word_ids
from clipbias.tuning.recipe import COMMON, Recipe, RecipeName

_END = " {}."


@dataclasses.dataclass(frozen=True)
class ProGrad(Method):
    """CoOp without steps that oppose the predictions of plain CLIP.

    For each learnable array, `a` is the gradient of the cross-entropy and `b̂` the direction of the gradient of

        L_kl = -τ² mean_b Σ_c softmax(z/τ) log softmax(logits/τ)

    with `z` the logits of plain CLIP on the same images. The step uses

        a - λ (a · b̂) b̂ where a · b̂ < 0, else a

    The gradient of `L_kl` itself is never added. The context starts at zeros; its last rows are the first tokens of the
    template's words, one row per word.

    Attributes:
      tokens, temperature: the context's length `T`, and `τ`.
      template: initial words and teacher's text; it ends with the class name and a full stop. By default the authors'
        for a dataset; else the words are "a photo of a", and the teacher has the dataset's own template.
      strength: `λ`; `None` for the authors': 0.8 for Flowers102, DTD and EuroSAT with 8 or 16 images per class, else 1.
      recipe: "common", or "authors" for 50 epochs with 1 image per class, 100 with up to 4 and 200 with more, at 0.002
        with 32 images a step.
    """

    presets = {"prograd": Preset("ProGrad", order=130)}
    kind = Kind.PROMPTS
    datasets = {
        "oxford_pets": {"template": "a type of pet, a photo of a {}."},
        "oxford_flowers": {"template": "a type of flower, a photo of a {}."},
        "fgvc_aircraft": {"template": "a type of aircraft, a photo of a {}."},
        "dtd": {"template": "a texture of {}."},
        "eurosat": {"template": "a centered satellite photo of {}."},
        "food101": {"template": "a type of food, a photo of {}."},
        "ucf101": {"template": "a photo of a person doing {}."},
    }

    tokens: Tokens = 16
    template: str | None = None
    strength: Annotated[float, Range(0, 1)] | None = None
    temperature: Annotated[float, Range(1e-3, 1e3)] = 1.0
    recipe: RecipeName = COMMON

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template is not None and (not self.template.endswith(_END) or self.template.count("{}") != 1):
            raise ClipbiasError(
                f"the template {self.template!r} does not end with the class name; ProGrad learns the words before it: "
                "write one as in 'a photo of a {}.'."
            )

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        # Words fill the last rows, next to the class name; the rows before them are zeros, as in the authors' code.
        count = self._count(clip)
        context = jnp.zeros((self.tokens, clip.config.text.width))
        if count:
            table = jnp.asarray(clip.params["text"]["token_embedding"])
            context = context.at[-count:].set(table[jnp.asarray(word_ids(self._words, clip)[:count])])
        return {"text_context": context}

    def text(self, template: str, clip: Clip) -> PromptText:
        placeholders = "X " * (self.tokens - self._count(clip))
        return PromptText((placeholders + self._words + _END,), context_tokens=self.tokens)

    def teacher_text(self, template: str, clip: Clip) -> PromptText:
        return PromptText((template if self.template is None else self.template,))

    def losses(self, learnables: Learnables, features: Features, logits: jax.Array, labels: jax.Array) -> Terms:
        assert features.teacher is not None
        teacher = features.teacher
        temperature = self.temperature
        zero_shot = teacher.scale * (unit_length(teacher.image) @ unit_length(average_texts(teacher.text)).T)
        # The cross-entropy with softened targets, without the targets' entropy: that has no gradient.
        products = jax.nn.softmax(zero_shot / temperature) * jax.nn.log_softmax(logits / temperature)
        return {"cross_entropy": cross_entropy(logits, labels), "kl": -(temperature**2) * products.sum(-1)}

    def combine(self, gradients: Mapping[str, Learnables]) -> Learnables:
        strength = 1.0 if self.strength is None else self.strength

        def project(gradient: jax.Array, teacher: jax.Array) -> jax.Array:
            # The direction is divided by its largest number first: squares of small numbers would be 0 in float32.
            largest = jnp.abs(teacher).max()
            direction = teacher / jnp.where(largest > 0, largest, 1)
            squares = jnp.square(direction).sum()
            # `min(a · b̂, 0)`: 0 leaves the gradient as it is, and no branch splits the runs of a `vmap`. A zero
            # direction does so too, where the authors' code would compute NaN.
            opposed = jnp.minimum((gradient * direction).sum(), 0) / jnp.where(squares > 0, squares, 1)
            return gradient - strength * opposed * direction

        return jax.tree.map(project, gradients["cross_entropy"], gradients["kl"])

    @classmethod
    def options_for(cls, dataset: str, shots: int | None) -> Options:
        options = dict(super().options_for(dataset, shots))
        if dataset in ("oxford_flowers", "dtd", "eurosat") and shots in (8, 16):
            options["strength"] = 0.8
        return options

    def authors_recipe(self, common: Recipe, shots: int | None) -> Recipe:
        epochs = 200 if shots is None else {1: 50, 2: 100, 3: 100, 4: 100}.get(shots, 200)
        return Recipe(learning_rate=0.002, epochs=epochs, batch_size=32)

    @property
    def _words(self) -> str:
        return WORDS if self.template is None else self.template.removesuffix(_END)

    def _count(self, clip: Clip) -> int:
        # A comma is a token but no word: of "a type of pet, a photo of a" eight tokens are learned, as in the authors'
        # code, and the last "a" stays fixed before the class name.
        return min(len(self._words.split()), len(word_ids(self._words, clip)), self.tokens)
