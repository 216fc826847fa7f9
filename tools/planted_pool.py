"""Logits of planted CLIPs under every mixture of frozen and tuned, and under levels of what is added."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, TextTokens
from clipbias.explain.added import Added, added_to_images
from clipbias.explain.block_changes import reference_adaptation
from clipbias.explain.factorial import corners, effects_in_play, mix_images, mix_texts
from clipbias.explain.levels import MEAN
from clipbias.tuning import Classifier, Learnables, Task
from tools.planted import METHOD, NAMES, pictures, planted, prompts_of

EFFECTS = effects_in_play(True)
CORNERS = corners(EFFECTS)
# Levels of values at the tuned run's attention and scale, as the endpoint calls them, and the streams that they are.
LEVELS = {"nothing": "PPR", "mean": f"PP{MEAN}"}
# All ways to classify, in the order of the logits: the first is the reference, the eighth the tuned model.
FORMS = (*CORNERS, *LEVELS)
TRAINING = 512  # images that the mean is of
_BATCH = 500

Pool = tuple[np.ndarray, np.ndarray]


def make_pool(mechanism: str, strength: float, *, trainings: int, images: int, seed: int) -> Pool:
    """Logits `[S, n, K, C]` of all forms under the prompts of `S` trainings, and the labels `[n]`."""
    task = Task(planted(mechanism, strength, seed=seed), METHOD, NAMES)
    pixels, labels = pictures(mechanism, images, seed=seed)
    logits = []
    for training in range(trainings):
        own = np.random.SeedSequence([seed, training]).generate_state(1)[0]
        few_shot = jnp.asarray(pictures(mechanism, TRAINING, seed=own)[0])
        logits.append(classify(task, prompts_of(own), few_shot, pixels))
    return np.stack(logits), labels


def classify(task: Task, learnables: Learnables, few_shot: jax.Array, pixels: np.ndarray) -> np.ndarray:
    """Logits `[n, K, C]` of all forms of one training, of whose images the mean is."""
    params = task.clip.device_params
    reference = reference_adaptation(task, task.init())
    every = jnp.ones(len(few_shot), bool)
    tuned = task.method.adapt(learnables)
    mean = Added.mean(jax.device_get(added_to_images(task.clip.config, params, few_shot, every, tuned)))
    parts = []
    for start in range(0, len(pixels), _BATCH):
        images = jnp.asarray(pixels[start : start + _BATCH])
        parts.append(_mixed_logits(task.classifier, params, learnables, reference, task.tokens, mean, images))
    return np.moveaxis(np.concatenate(parts, axis=1), 0, 1)


@jax.jit(static_argnums=0)
def _mixed_logits(
    classifier: Classifier,
    params: Any,
    learnables: Learnables,
    reference: Adaptation,
    tokens: TextTokens,
    mean: Added,
    images: jax.Array,
) -> jax.Array:
    """`[K, B, C]`: of corners in both towers at once, and of levels of images while texts are as tuned."""
    tuned = classifier.method.adapt(learnables)
    streams = (*CORNERS, *LEVELS.values())
    seen = mix_images(params, classifier.config, images, tuned, Adaptation(), streams, {MEAN: mean}).streams
    texts = mix_texts(params, classifier.config, tokens, tuned, reference, CORNERS).streams
    texts = jnp.concatenate([texts, *(texts[-1:] for _ in LEVELS)])
    return jax.vmap(lambda image, text: classifier.head(params, learnables, image, text))(seen, texts)
