"""What the tests of heads on frozen features share: features of runs, and steps of its training."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.training.step import StepInputs, StepScalars, StepStatic, init_state, train_step
from clipbias.tuning import CONSTANTS, Classifier, Features, Learnables, Method, Samples
from clipbias.tuning.task import TrainingTexts
from tests.reference.heads import arrays
from tests.tuning.weights_common import LOGITS, SGD, Training

LABELS = np.array([0, 1, 2, 2, 1, 0, 1, 2, 2], np.int32)  # not every class as often
VALIDATION = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [11, 9, 13])).astype(np.int32)
SHOTS = 4
COMMON = dataclasses.replace(SGD, epochs=3, warmup_epochs=1, warmup_learning_rate=1e-3, batch_size=8)


def make_samples(clip: Clip) -> Samples:
    """Texts that differ little, as CLIP's do, images that overlap, and more validation images of a class than shots."""
    width = clip.config.projection_width
    drawn, held = (arrays(seed=seed, labels=labels, width=width) for seed, labels in ((0, LABELS), (5, VALIDATION)))
    mean = drawn["text_features"].mean(0)
    text = 3.0 + 0.3 * drawn["text_features"]
    return Samples(
        features=(drawn["features"] + 1.0).astype(np.float32),
        labels=LABELS,
        text=text.astype(np.float32),
        scale=float(np.exp(np.float32(clip.params["logit_scale"]))),
        validation=(held["features"][0] + 1.0 + 0.5 * mean[VALIDATION]).astype(np.float32),
        validation_labels=VALIDATION,
        seed=3,
    )


def scored(method: Method, learnables: Learnables, samples: Samples, images: np.ndarray) -> jax.Array:
    features = Features(*(np.asarray(x, np.float32) for x in (images, samples.text, samples.scale)))
    return jax.jit(method.logits or method.cosine_logits)(learnables, features)


def check_steps(
    clip: Clip,
    method: Method,
    learnables: Learnables,
    samples: Samples,
    batches: list[tuple[np.ndarray, np.ndarray]],
    rates: np.ndarray,
    terms: Callable[..., Mapping[str, float]],
    training: Training,
) -> Learnables:
    """Holds a `train_step` on each batch of features, of one run, to NumPy's; returns the learnables after them.

    Args:
      terms: of the loss, in float64, of values by name and a batch's features and labels.
    """
    classifier = Classifier(clip.config, method, templates=len(samples.text))
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], learnables)
    text = jnp.asarray(samples.text.reshape(-1, samples.text.shape[-1]))
    static = StepStatic(classifier, clip.preprocessing, training.recipe)
    inputs = StepInputs(clip.params, TrainingTexts(text), start.get(CONSTANTS, {}), jnp.zeros(1, jnp.int32))
    state = init_state(method, training.recipe, start)
    for number, ((images, labels), rate) in enumerate(zip(batches, rates, strict=True)):
        batch = {"images": images[None], "labels": labels[None], "mask": np.ones((1, len(labels)), bool)}
        batch = {name: jnp.asarray(value) for name, value in batch.items()}
        before = jax.tree.map(np.asarray, state)
        state, metrics = train_step(static, inputs, state, batch, StepScalars(jnp.float32([rate])))
        of_batch = functools.partial(terms, features=images, labels=labels)
        loss = sum(of_batch(training.values(before)).values())
        assert float(metrics["loss"][0]) == pytest.approx(loss, rel=LOGITS, abs=LOGITS)
        training.check(of_batch, rate, before, state, number)
    learned = jax.tree.map(lambda leaf: np.asarray(leaf[0]), {**state.learnables})
    moved = {name: np.abs(value - learnables[name]).max() for name, value in learned.items()}
    assert min(moved.values()) > 1e-3, moved
    return learned
