"""PLOT++ (Chen et al. 2023, arXiv 2210.01253): several contexts and several vision prompts, matched by transport.

PLOT's authors use it on vision transformers. It is trained by the project's recipe, or with `recipe="authors"`
by its authors'.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.checks import Choices
from clipbias.clip import Adaptation, Clip
from clipbias.errors import ClipbiasError
from clipbias.tuning.features import Features, transport_logits, unit_length
from clipbias.tuning.method import (
    CONSTANTS,
    DatasetOptions,
    Kind,
    Learnables,
    Method,
    Options,
    Preset,
    PromptText,
    Tokens,
)
from clipbias.tuning.methods.coop import coop_recipe
from clipbias.tuning.prompts import random_prompts, word_ids
from clipbias.tuning.recipe import AUTHORS, COMMON, Recipe, RecipeName

VISION = "vision"
JOINT = "joint"


def _object_phrases(name: str) -> Options:
    picture = f"one picture of a {name}"
    return {"phrases": (f"a photo of a {name}", picture, f"this is {name} picture of", picture)}


@dataclasses.dataclass(frozen=True)
class PLOTPlusPlus(Method):
    """Learns `P` contexts `[P, n, Dt]`, which start as phrases, and `P` sets of vision prompts `[P, 1, V, Dv]`.

    The vision tower runs once for each set of prompts, at its input. The logits come from optimal transport
    (`tuning.features`) between an image's `P` features and a class's `P` texts.

    Training has two stages, each with the whole recipe. The first keeps the contexts fixed, and adds the cosine of the
    mean raw image feature and the mean raw text feature to the logits. The second learns everything.

    Attributes:
      phrases: the words before the class names, one phrase per context. `n` is the number of words of the first phrase.
        In a phrase with more tokens the other tokens stay fixed; "X" fills up a phrase with fewer. By default the
        authors' phrases for a dataset of the catalogue, and those of Caltech101 for others.
      vision_tokens: `V`.
      stage: "vision" is the method of the first stage, "joint" that of the second, which is evaluated.
      recipe: "common", or "authors" for 50 epochs per stage at 0.002 with 32 images a step.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"plot_plus_plus": Preset("PLOT++", order=330)}
    kind: ClassVar[Kind | None] = Kind.PROMPTS
    datasets: ClassVar[DatasetOptions] = {
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
        "oxford_flowers": _object_phrases("flower"),
        "oxford_pets": _object_phrases("pet"),
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
        if self.stage == JOINT:
            return {"vision_prompts": prompts, **context}
        return {"vision_prompts": prompts, CONSTANTS: context}

    @property
    def _count(self) -> int:
        return len(self.phrases[0].split())

    def _texts(self, clip: Clip) -> list[str]:
        """The phrases, filled up with "X" to as many tokens as the context has."""
        missing = [max(0, self._count - len(word_ids(phrase, clip))) for phrase in self.phrases]
        return [phrase + " X" * count for phrase, count in zip(self.phrases, missing, strict=True)]

    def adapt(self, learnables: Learnables) -> Adaptation:
        # In the first stage contexts are the words of the texts, so that their features are computed once.
        return Adaptation(
            text_context=learnables["text_context"] if self.stage == JOINT else None,
            vision_prompts=learnables["vision_prompts"],
        )

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText(tuple(f"{text} {{}}." for text in self._texts(clip)), context_tokens=self._count)

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        assert features.views is not None
        image = unit_length(features.views)
        text = unit_length(features.text)
        logits = transport_logits(image, text, features.scale, features.mask)
        if self.stage == VISION:
            logits += features.scale * unit_length(features.image) @ unit_length(features.text.mean(0)).T
        return logits

    def recipe_for(self, common: Recipe, shots: int | None) -> Recipe:
        return coop_recipe(learning_rate=0.002, epochs=50, batch_size=32) if self.recipe == AUTHORS else common

    def stages(self, recipe: Recipe) -> Sequence[tuple[Method, Recipe]]:
        return ((dataclasses.replace(self, stage=VISION), recipe), (self, recipe))

    def next_stage(self, stage: int, learnables: Learnables, text: np.ndarray | None) -> Learnables:
        context = {**learnables, **learnables.get(CONSTANTS, {})}["text_context"]
        prompts = learnables["vision_prompts"]
        if stage == 0:
            return {"vision_prompts": prompts, CONSTANTS: {"text_context": context}}
        return {"vision_prompts": prompts, "text_context": context}
