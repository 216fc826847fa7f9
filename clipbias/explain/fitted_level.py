"""The constant that changes a tuned model's predictions least in the place of what it adds to image tokens.

Of all constants by layer and kind of token, at the tuned run's attention and scale: optimal ablation (Li and Janson
2024, arXiv 2409.09951). It starts at the mean. No label is used.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clipbias import hosts
from clipbias.clip import Adaptation
from clipbias.clip.params import Params
from clipbias.explain.added import Added
from clipbias.explain.factorial import corners, effects_in_play, mix_images
from clipbias.explain.model import Model
from clipbias.explain.study import Study
from clipbias.explain.targets import by_pass
from clipbias.training.step import divergence
from clipbias.tuning import Learnables

FITTED = "F"
# Of Adam along a cosine, and images a step; from a pilot on the embedded model.
RATE = 0.08
BATCH_SIZE = 16


def fitted_stream(effects: Sequence[str]) -> str:
    """The name of the mixture with a fitted constant, at the tuned run's attention and scale."""
    return corners(effects[:-1])[-1] + FITTED


def fit_constants(study: Study, model: Model, mean: Sequence[Added], pixels: jax.Array) -> tuple[Added, ...]:
    """The fitted constant of each pass over an image, on the host.

    Args:
      study: its options say how many steps.
      model: the tuned one.
      mean: where to start, for each pass. What is 0 everywhere, since the method adds nothing there, stays 0.
      pixels: uint8 `[P, R, R, 3]`, training images.
    """
    steps = study.options.level_steps
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    start: Any = tuple(mean)
    free = jax.tree.map(lambda leaf: float(np.any(leaf)), start)
    texts = model.task.text_features(study.params, study.learnables[model.key])
    divergence_of = functools.partial(constant_divergence, study, model)

    @jax.jit
    def update(
        state: Any, params: Params, learnables: Learnables, texts: jax.Array, pixels: jax.Array, rows: jax.Array
    ) -> Any:
        constants, moments = state
        gradient = jax.grad(divergence_of)(constants, params, learnables, texts, pixels[rows])
        gradient = jax.tree.map(jnp.multiply, gradient, free)
        change, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(constants, change), moments

    state = study.replicate((start, optimizer.init(start)))
    draw = np.random.default_rng(study.options.seed)
    for _ in range(steps):
        hosts.check()
        rows = draw.choice(len(pixels), min(BATCH_SIZE, len(pixels)), replace=False)
        state = update(state, study.params, study.learnables[model.key], texts, pixels, rows)
    return jax.device_get(state[0])


def constant_divergence(
    study: Study,
    model: Model,
    constants: Sequence[Added],
    params: Params,
    learnables: Learnables,
    texts: jax.Array,
    pixels: jax.Array,
) -> jax.Array:
    """The mean over images of `KL(tuned ‖ with the constants in place of what is added to image tokens)`, in nats."""
    classifier = model.task.classifier
    images = study.normalize(pixels)
    stream = fitted_stream(effects_in_play(any(model.prompts)))
    features = []
    for adaptation, constant in zip(by_pass(model.task.method.adapt(learnables)), constants, strict=True):
        mixed = mix_images(
            params,
            study.clip.config,
            images,
            adaptation,
            Adaptation(),
            (stream,),
            {FITTED: constant},
            dtype=classifier.dtype,
        )
        features.append(jnp.stack([mixed.tuned, mixed.streams[0]]))
    both = features[0] if len(features) == 1 else jnp.stack(features, axis=2)
    tuned, fitted = (classifier.head(params, learnables, each, texts, None) for each in both)
    return divergence(jax.lax.stop_gradient(tuned), fitted).mean()
