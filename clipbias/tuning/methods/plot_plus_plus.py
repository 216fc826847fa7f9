"""PLOT++ (Chen et al. 2023, arXiv 2210.01253): several contexts and several passes over an image, joined by transport.

It is what PLOT's authors run on vision transformers. It is trained by the project's recipe, or with `recipe="authors"`
by its authors'.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.checks import Choices
from clipbias.clip import Adaptation, Clip
from clipbias.errors import ClipbiasError
from clipbias.tuning.context import random_prompts, word_ids
from clipbias.tuning.features import Features, unit_length
from clipbias.tuning.method import CONSTANTS, Learnables, Method, Tokens
from clipbias.tuning.methods.coop import coop_recipe
from clipbias.tuning.preset import Kind, Preset
from clipbias.tuning.prompt_text import PromptText
from clipbias.tuning.recipe import AUTHORS, COMMON, Recipe, RecipeName
from clipbias.tuning.transport import transport_logits

VISION, JOINT = "vision", "joint"


def _thing(name: str) -> Mapping[str, Any]:
    start = f"a photo of a {name}", f"one picture of a {name}", f"this is {name} picture of"
    return {"phrases": (*start, start[1])}


@dataclasses.dataclass(frozen=True)
class PLOTPlusPlus(Method):
    """Learns `P` contexts `[P, n, Dt]`, which start as phrases, and as many sets of vision prompts `[P, 1, V, Dv]`.

    The vision tower runs once for each set, at whose input they are. The logits are those of optimal transport
    (`tuning.transport`) between an image's `P` features and a class's `P` texts.

    There are two trainings, each by the whole recipe. In the first the contexts stay, and the cosine of the mean of the
    raw image features and the mean of the raw text features is added to the logits; the second learns all.

    Attributes:
      phrases: what stands before the class names, one for each context. `n` is the number of the first one's words: of
        a phrase with more tokens the rest stays, one with fewer goes on with "X". By default the authors' for a dataset
        of the catalogue, and those of Caltech101 for others.
      vision_tokens: `V`.
      stage: "vision" is the first training's method, "joint" the second's, which is evaluated.
      recipe: "common", or "authors" for twice 50 epochs at 0.002 with 32 images a step.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"plot_plus_plus": Preset("PLOT++", order=330)}
    kind: ClassVar[Kind | None] = Kind.PROMPTS
    batchwise: ClassVar[bool] = True  # the rounds of transport
    datasets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "imagenet": {"phrases": ("a photo of a", "this is a photo", "this is a", "one picture of a")},
        "dtd": {
            "phrases": (
                "a photo of a texture",
                "this is a photo texture",
                "this is a picture texture",
                "one picture of a texture",
            )
        },
        "eurosat": {
            "phrases": (
                "a centered satellite photo of",
                "a centered satellite picture of",
                "this is centered satellite photo of",
                "one centered satellite photo of a",
            )
        },
        "fgvc_aircraft": {
            "phrases": (
                "a photo of an aircraft",
                "a picture of an aircraft",
                "this is aircraft picture of",
                "one picture of an aircraft",
            )
        },
        "food101": {
            "phrases": (
                "a photo of a food",
                "this is a food photo",
                "this is food picture of",
                "one picture of a food",
            )
        },
        "oxford_flowers": _thing("flower"),
        "oxford_pets": _thing("pet"),
        "ucf101": {
            "phrases": (
                "a photo of a person doing",
                "this is a photo people doing",
                "this is picture of people doing",
                "one picture of a person doing",
            )
        },
    }

    phrases: tuple[str, ...] = ("a photo of a", "this is a photo", "this is picture of", "one picture of a")
    vision_tokens: Tokens = 2
    stage: Annotated[str, Choices((VISION, JOINT))] = JOINT
    recipe: RecipeName = COMMON

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(phrase.strip() for phrase in self.phrases or ("",)):
            raise ClipbiasError("PLOT++ needs at least one phrase, and none may be empty; give some as phrases.")

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        table = jnp.asarray(clip.params["text"]["token_embedding"])
        ids = [word_ids(text, clip)[: self._count] for text in self._texts(clip)]
        context = {"text_context": table[jnp.asarray(ids)].astype(jnp.float32)}
        prompts = random_prompts(rng, len(self.phrases), 1, self.vision_tokens, clip.config.vision.width)
        return {"vision_prompts": prompts, **(context if self.stage == JOINT else {CONSTANTS: context})}

    @property
    def _count(self) -> int:
        return len(self.phrases[0].split())

    def _texts(self, clip: Clip) -> list[str]:
        short = [max(0, self._count - len(word_ids(phrase, clip))) for phrase in self.phrases]
        return [" ".join([phrase, *["X"] * count]) for phrase, count in zip(self.phrases, short, strict=True)]

    def adapt(self, learnables: Learnables) -> Adaptation:
        # In the first training contexts are the words of the texts, whose features are then computed once.
        return Adaptation(
            text_context=learnables["text_context"] if self.stage == JOINT else None,
            vision_prompts=learnables["vision_prompts"],
        )

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText(tuple(f"{text} {{}}." for text in self._texts(clip)), context_tokens=self._count)

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        assert features.views is not None
        image, text = unit_length(features.views), unit_length(features.text)
        logits = transport_logits(image, text, features.scale, features.mask)
        if self.stage == VISION:
            logits += features.scale * unit_length(features.image) @ unit_length(features.text.mean(0)).T
        return logits

    def recipe_for(self, common: Recipe, shots: int) -> Recipe:
        return coop_recipe(learning_rate=0.002, epochs=50, batch_size=32) if self.recipe == AUTHORS else common

    def stages(self, recipe: Recipe) -> Sequence[tuple[Method, Recipe]]:
        return ((dataclasses.replace(self, stage=VISION), recipe), (self, recipe))

    def next_stage(self, stage: int, learnables: Learnables, text: np.ndarray | None) -> Learnables:
        context = {**learnables, **learnables.get(CONSTANTS, {})}["text_context"]
        own = {"vision_prompts": learnables["vision_prompts"]}
        return own | ({CONSTANTS: {"text_context": context}} if stage == 0 else {"text_context": context})
