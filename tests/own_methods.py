"""Small methods that use what the built-in ones of the paper do not: heads, constants, features, changes of weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, Clip
from clipbias.errors import ClipbiasError
from clipbias.tuning import (
    CONSTANTS,
    FeatureMethod,
    Features,
    Learnables,
    Method,
    Recipe,
    Samples,
    Sampling,
    average_texts,
    cross_entropy,
    unit_length,
)


@dataclasses.dataclass(frozen=True)
class Cache(FeatureMethod):
    """A closed form: cosines, and the votes of training images near the image. Its strength is found on validation."""

    trains = False

    sharpness: float = 5.0
    passes: int = 2
    validation: bool = True

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        keys = jnp.zeros((0, clip.config.projection_width))
        return {CONSTANTS: {"keys": keys, "labels": jnp.zeros(0, jnp.int32), "strength": jnp.zeros(())}}

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation()

    def sampling(self) -> Sampling:
        return Sampling(passes=self.passes, validation=self.validation)

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        keys = samples.features.mean(0)
        keys = (keys / np.linalg.norm(keys, axis=-1, keepdims=True)).astype(np.float32)
        held = {"keys": keys, "labels": samples.labels.astype(np.int32), "strength": np.float32(1)}
        if samples.validation is not None:
            best = 0
            logits = jax.jit(self.logits)
            for strength in (0.5, 1.0, 3.0):
                weighted = {CONSTANTS: {**held, "strength": np.float32(strength)}}
                features = Features(jnp.asarray(samples.validation), jnp.asarray(samples.text), samples.scale)
                right = int((logits(weighted, features).argmax(-1) == samples.validation_labels).sum())
                if right > best:
                    best = right
                    held["strength"] = np.float32(strength)
        return {CONSTANTS: held}

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        cosines = self.cosine_logits(learnables, features)
        held = learnables[CONSTANTS]
        near = jnp.exp(-self.sharpness * (1 - unit_length(features.image) @ held["keys"].T))
        return cosines + held["strength"] * (near @ jax.nn.one_hot(held["labels"], cosines.shape[-1]))

    def transfer(
        self, learnables: Learnables, labels: np.ndarray, source: np.ndarray, target: np.ndarray
    ) -> Learnables:
        if (labels < 0).any():
            raise ClipbiasError("the cache holds images of the classes of training; tune it on these classes.")
        held = learnables[CONSTANTS]
        place = {label: new for new, label in enumerate(labels)}
        is_kept = np.isin(held["labels"], list(place))
        renamed = np.array([place[int(label)] for label in held["labels"][is_kept]], np.int32)
        return {CONSTANTS: {**held, "keys": held["keys"][is_kept], "labels": renamed}}


@dataclasses.dataclass(frozen=True)
class Probe(FeatureMethod):
    """A linear head that is trained on features, started from the class features and drawn back to them."""

    training: str = "fresh"
    steps: int | None = None
    keep_last: bool = False

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        shape = len(class_names), clip.config.projection_width
        return {"weight": jnp.zeros(shape), CONSTANTS: {"anchor": jnp.zeros(shape)}}

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation()

    def sampling(self) -> Sampling:
        return Sampling(passes=2 if self.training == "pooled" else 1, training=self.training)

    def recipe_for(self, common: Recipe, shots: int | None) -> Recipe:
        return dataclasses.replace(common, steps=self.steps, keep_last=self.keep_last)

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        text = samples.text[0]
        start = (text / np.linalg.norm(text, axis=-1, keepdims=True)).astype(np.float32)
        return {"weight": start, CONSTANTS: {"anchor": start}}

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        return features.scale * unit_length(features.image) @ learnables["weight"].T

    def losses(self, learnables: Learnables, features: Features, logits: jax.Array, labels: jax.Array) -> Any:
        away = jnp.square(learnables["weight"] - learnables[CONSTANTS]["anchor"]).sum()
        return {"cross_entropy": cross_entropy(logits, labels), "away": away}

    def transfer(
        self, learnables: Learnables, labels: np.ndarray, source: np.ndarray, target: np.ndarray
    ) -> Learnables:
        """Other classes get their own class features."""
        start = target[0] / np.linalg.norm(target[0], axis=-1, keepdims=True)
        weight = np.where(labels[:, None] < 0, start, np.asarray(learnables["weight"])[labels])
        return {"weight": weight, CONSTANTS: {"anchor": start}}


@dataclasses.dataclass(frozen=True)
class Projection(FeatureMethod):
    """A change of the vision tower's projection, trained on the rows before it."""

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        return {"vision_projection": jnp.zeros((clip.config.vision.width, clip.config.projection_width))}

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation(vision_weights={"projection": learnables["vision_projection"]})

    def sampling(self) -> Sampling:
        return Sampling(projected=False, training="again")


@dataclasses.dataclass(frozen=True)
class Head(Method):
    """A head of its own after both towers were changed: class-sized, with constants, and several texts per class."""

    texts: int = 1

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        width = clip.config.projection_width
        vision = clip.config.vision
        text = clip.config.text
        return {
            "vision_prompts": jnp.zeros((1, 2, vision.width)),
            "text_weights": {"layers": {"norm2": {"bias": jnp.zeros((text.layers, text.width))}}},
            "text_residual": jnp.zeros((len(class_names), width)),
            "shared": jnp.zeros((width, width)),
            CONSTANTS: {"shift": jnp.zeros((len(class_names), width)), "order": jnp.zeros(2, jnp.int32)},
        }

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation(
            vision_prompts=learnables["vision_prompts"],
            text_weights=learnables["text_weights"],
            text_residual=learnables["text_residual"],
        )

    def text(self, template: str, clip: Clip) -> Any:
        text = super().text(template, clip)
        more = ("a painting of a {}.",) if self.texts > 1 else ()
        return dataclasses.replace(text, templates=text.templates + more)

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        classes = average_texts(features.text) + learnables["text_residual"] + learnables[CONSTANTS]["shift"]
        mixed = jnp.tanh(unit_length(features.image) @ learnables["shared"]) + features.image
        scores = features.scale * unit_length(mixed) @ unit_length(classes).T
        # Each class is held against the others, whose texts its logit depends on.
        return scores - 0.3 * jax.nn.logsumexp(scores, axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Everything(Method):
    """All that a program of a default head has to carry: pixels, biases, prompts and changes of weights."""

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        vision = clip.config.vision
        low_rank = {"down": (vision.layers, 3, vision.width, 2), "up": (vision.layers, 3, 2, vision.width)}
        return {
            "pixels": jnp.zeros((vision.image_size, vision.image_size, 3)),
            "vision_bias": jnp.zeros((vision.layers, vision.width)),
            "vision_prompts": jnp.zeros((1, 2, vision.width)),
            "vision_weights": {
                "layers": {"qkv": {name: jnp.zeros(shape) for name, shape in low_rank.items()}},
                "projection": jnp.zeros((vision.width, clip.config.projection_width)),
            },
        }

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation(**learnables)
