"""What the hooks of a method can express beside what the built-in methods use them for."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, Clip
from clipbias.tuning import Features, Method, PromptText, Task, unit_length
from clipbias.tuning.method import Learnables

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
    parts = [
        jax.jit(alone.logits)(clip.params, {"text_context": context}, images) for context in learnables["text_context"]
    ]
    np.testing.assert_allclose(logits, np.mean(parts, axis=0), rtol=1e-5, atol=1e-5)

    def loss(contexts: jax.Array) -> jax.Array:
        each = [alone.logits(clip.params, {"text_context": context}, images) for context in contexts]
        return -jax.nn.log_softmax(jnp.stack(each).mean(0))[jnp.arange(2), jnp.array([0, 2])].mean()

    expected = jax.jit(jax.grad(loss))(learnables["text_context"])
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(gradient["text_context"], expected, atol=5e-5 * scale)
