"""Relevancy by the letter of its equations, in JAX: what `clipbias.relevancy` computes in one backward scan."""

from typing import Any

import jax
import jax.numpy as jnp

from clipbias.analysis.relevancy import Relevancy, pair_logits, target_adaptation, target_text
from clipbias.clip import encode_image, encode_text


def plain_relevancy(task, params, learnables, images, targets):
    """The maps of `clipbias.relevancy` by the letter of Eq. 13 to 16: whole matrices.

    Zeros are added to all attention at once and differentiated by. Takes targets `[B]`. Several times slower and
    larger, and short enough to be checked by eye.
    """
    classifier = task.classifier
    config = task.clip.config
    adaptation = target_adaptation(classifier, learnables, targets)
    text = target_text(task.tokens, targets, classifier.templates)

    def taps(geometry, batch, length):
        return jnp.zeros((geometry.layers, batch, geometry.heads, length, length))

    prompts = 0 if adaptation.vision_prompts is None else adaptation.vision_prompts.shape[1]
    vision_taps = taps(config.vision, images.shape[0], 1 + config.vision.patches + prompts)
    text_taps = taps(config.text, *text.ids.shape)

    def score(vision_taps, text_taps):
        dtype = classifier.dtype
        observe = lambda view: view.probabilities  # noqa: E731
        options: dict[str, Any] = dict(observe=observe, dtype=dtype)
        f, vision = encode_image(params, config, images, adaptation, taps=vision_taps, **options)
        g, words = encode_text(params, config, text, adaptation, taps=text_taps, **options)
        if task.method.logits is not None:
            y = own_logits(task, params, learnables, f, g, targets)
        else:
            scale = jnp.exp(task.method.logit_scale(params))
            y = pair_logits(scale, f, g, adaptation.text_residual, classifier.templates)[:, 0]
        return y.sum(), (y, vision, words)

    (vision_gradient, text_gradient), (y, vision, words) = jax.grad(score, (0, 1), has_aux=True)(vision_taps, text_taps)

    def matrix(attention, gradient):
        mean = jax.nn.relu(attention * gradient).mean(2)
        r = jnp.broadcast_to(jnp.eye(mean.shape[-1]), mean.shape[1:])
        for l in range(mean.shape[0]):
            r = r + jnp.matmul(mean[l], r, precision="highest")
        return r

    vision_matrix = matrix(vision, vision_gradient)
    text_matrix = matrix(words, text_gradient)
    rows = jnp.take_along_axis(text_matrix, text.eos[:, None, None], axis=1)[:, 0]
    rows = jnp.where(jnp.arange(rows.shape[1]) < text.eos[:, None], rows, 0)
    if classifier.templates > 1:
        rows = rows.reshape(-1, classifier.templates, rows.shape[-1])
    return Relevancy(vision=vision_matrix[:, 0, 1:], text=rows, scores=y)


def own_logits(task, params, learnables, f, g, targets):
    """Logits `[B]` of a head of the method's own: all classes' texts, with the target's rows in place of its own."""
    classifier = task.classifier
    count = len(task.class_names)
    tokens = jax.tree.map(jnp.asarray, task.tokens)
    every, _ = encode_text(params, task.clip.config, tokens, task.method.adapt(learnables))
    logits = []
    for image, target in enumerate(targets):
        texts = every
        for template in range(classifier.templates):
            texts = texts.at[template * count + target].set(g[image * classifier.templates + template])
        logits.append(classifier.head(params, learnables, f[image : image + 1], texts)[0, target])
    return jnp.stack(logits)
