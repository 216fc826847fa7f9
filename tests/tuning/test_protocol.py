"""What the hooks of a method can express beside what the built-in methods use them for."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipbias
from clipbias.clip import Adaptation, Clip, encode_image
from clipbias.clip.layers import layer_norm
from clipbias.clip.tower import layer
from clipbias.clip.vision import embed_image
from clipbias.data import Split
from clipbias.errors import ClipbiasError
from clipbias.export.program import export_program, program_weights
from clipbias.training import mesh as meshes
from clipbias.training.evaluate import evaluate
from clipbias.tuning import Features, Method, PromptText, Task, unit_length
from clipbias.tuning.method import Learnables
from tests.data.pictures import encoded

NAMES = ("cat", "a dog", "two birds")


@dataclasses.dataclass(frozen=True)
class PromptSets(Method):
    """Several learned contexts, each with every class name, whose logits are averaged."""

    sets: int = 2

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        context = 0.1 * jax.random.normal(rng, (self.sets, 4, clip.config.text.width))
        return {"text_context": context, "constants": {"classes": jnp.zeros((len(class_names), 1))}}

    def adapt(self, learnables: Learnables) -> Adaptation:
        classes = learnables["constants"]["classes"].shape[0]
        return Adaptation(text_context=jnp.repeat(learnables["text_context"], classes, axis=0))

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText(("X X X X {}.",) * self.sets, context_tokens=4)

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        image, text = unit_length(features.image), unit_length(features.text)
        return features.scale * jnp.einsum("bd,scd->bc", image, text) / self.sets


def test_several_prompt_sets_are_texts_of_their_own(clip: Clip) -> None:
    task = Task(clip, PromptSets(), NAMES)
    learnables = task.init(seed=1)
    size = clip.config.vision.image_size
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size, 3)), jnp.float32)
    logits = jax.jit(task.logits)(clip.params, learnables, images)
    gradient = jax.jit(jax.grad(task.loss, argnums=1))(clip.params, learnables, images, jnp.array([0, 2]))
    # One set after another, by a method that has a single context.
    alone = Task(clip, "coop", NAMES, tokens=4, words="")

    @jax.jit
    def one_set(context: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A set's logits, and what a slope of the loss in these is in its context."""
        found, pull = jax.vjp(lambda one: alone.logits(clip.params, {"text_context": one}, images), context)
        return found, pull(slope)[0]

    contexts = learnables["text_context"]
    expected = np.mean([one_set(context, jnp.zeros_like(logits))[0] for context in contexts], axis=0)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    slope = (jax.nn.softmax(expected) - jax.nn.one_hot(np.array([0, 2]), 3)) / 2  # of cross-entropy, in the mean
    slopes = np.stack([one_set(context, slope / 2)[1] for context in contexts])
    np.testing.assert_allclose(gradient["text_context"], slopes, atol=5e-5 * np.abs(slopes).max())


@dataclasses.dataclass(frozen=True)
class ImageContext(Method):
    """A context that each image shifts, as CoCoOp's does."""

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        context, shift = jax.random.split(rng)
        width = clip.config.text.width
        return {
            "text_context": 0.1 * jax.random.normal(context, (4, width)),
            "text_shift": 0.1 * jax.random.normal(shift, (clip.config.projection_width, width)),
        }

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation(text_context=learnables["text_context"])

    def adapt_to(self, learnables: Learnables, image: jax.Array) -> Adaptation:
        return Adaptation(text_context=learnables["text_context"] + unit_length(image) @ learnables["text_shift"])

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText(("X X X X {}.",), context_tokens=4)


def test_texts_that_depend_on_the_image(clip: Clip) -> None:
    task, alone = Task(clip, ImageContext(), NAMES), Task(clip, "coop", NAMES, tokens=4, words="")
    learnables, size = task.init(seed=1), clip.config.vision.image_size
    raw = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    images, labels = clip.preprocessing.normalize(jnp.asarray(raw)), jnp.array([0, 2, 1])
    image_features = jax.jit(lambda x: encode_image(clip.params, clip.config, x)[0])(images)

    @jax.jit
    def plainly(learnables: Learnables, image: jax.Array, feature: jax.Array, label: jax.Array) -> tuple:
        """Logits, and the gradient of the loss, of an image by itself, by a method that has one context."""

        def loss(learnables: Learnables) -> tuple[jax.Array, jax.Array]:
            shifted = learnables["text_context"] + unit_length(feature) @ learnables["text_shift"]
            logits = alone.logits(clip.params, {"text_context": shifted}, image[None])[0]
            return -jax.nn.log_softmax(logits)[label], logits

        return jax.grad(loss, has_aux=True)(learnables)

    gradients, rows = zip(*map(plainly, [learnables] * 3, images, image_features, labels), strict=True)
    expected = np.stack(rows)
    logits = jax.jit(task.logits)(clip.params, learnables, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    fixed = {**learnables, "text_shift": jnp.zeros_like(learnables["text_shift"])}
    assert np.abs(plainly(fixed, images[0], image_features[0], labels[0])[1] - expected[0]).max() > 0.1
    found = jax.jit(jax.grad(task.loss, argnums=1))(clip.params, learnables, images, labels)
    for name in learnables:
        gradient = np.mean([one[name] for one in gradients], axis=0)
        np.testing.assert_allclose(found[name], gradient, atol=5e-5 * np.abs(gradient).max())

    mesh = meshes.single_device()
    best = np.asarray(expected).argmax(-1)
    split = Split(("a", "b", "c"), best, lambda index: encoded(raw[index]))
    score = evaluate(task, learnables, split, mesh=mesh, eval_batch_size=2, on_image_error="raise")
    assert score["accuracy"] == 100.0
    with pytest.raises(ClipbiasError, match="the texts of ImageContext depend on the image"):
        task.class_features(clip.params, learnables)


@dataclasses.dataclass(frozen=True)
class BestPatch(Method):
    """The image's own logits and those of the patch that is most like the class, half and half."""

    patches: ClassVar[bool] = True

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        tower = clip.config.vision
        return {"vision_prompts": 0.5 * jax.random.normal(rng, (2, 3, tower.width))}

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation(vision_prompts=learnables["vision_prompts"])

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        assert features.patches is not None
        text = unit_length(features.text[0])
        best = (unit_length(features.patches) @ text.T).max(1)
        return features.scale * (unit_length(features.image) @ text.T + best) / 2


def test_a_head_reads_features_of_patches(clip: Clip) -> None:
    task = Task(clip, BestPatch(), NAMES)
    learnables, tower = task.init(seed=1), clip.config.vision
    raw = np.random.default_rng(0).integers(0, 256, (3, tower.image_size, tower.image_size, 3), np.uint8)
    images = clip.preprocessing.normalize(jnp.asarray(raw))

    @jax.jit
    def plainly(learnables: Learnables) -> jax.Array:
        """The explicit path shows the last block's input, from which its output is computed by hand."""
        inputs = embed_image(clip.params, clip.config, images, task.method.adapt(learnables))
        tokens = inputs.tokens
        for index in range(tower.layers):
            one = jax.tree.map(lambda leaf, index=index: leaf[index], inputs.layers)
            tokens, _ = layer(tokens, one, inputs, tower)
        normed = layer_norm(tokens, clip.params["vision"]["post_norm"], tower.layer_norm_epsilon)
        return unit_length(normed[:, : 1 + tower.patches] @ clip.params["vision"]["projection"])

    rows = plainly(learnables)
    text = np.asarray(jax.jit(task.class_features)(clip.params, learnables))
    cosines = np.asarray(rows) @ text.T
    scale = np.exp(clip.params["logit_scale"])
    expected = scale * (cosines[:, 0] + cosines[:, 1:].max(1)) / 2
    logits = jax.jit(task.logits)(clip.params, learnables, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(scale * cosines[:, 0] - expected).max() > 0.1
    split = Split(("a", "b", "c"), expected.argmax(-1), lambda index: encoded(raw[index]))
    score = evaluate(task, learnables, split, mesh=meshes.single_device(), eval_batch_size=2, on_image_error="raise")
    assert score["accuracy"] == 100.0
    weights = program_weights(task, learnables)
    np.testing.assert_allclose(export_program(task, weights).call(weights, raw), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ClipbiasError, match=r"BestPatch has no maps\. The head reads features of patches"):
        clipbias.relevancy(task, clip.params, learnables, images, jnp.array([0, 1, 2]))
