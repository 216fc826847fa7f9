"""What is explained: one or several classes per image, their texts and their logits."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, TextTokens
from clipbias.clip.config import TextConfig, TowerConfig
from clipbias.clip.params import Params
from clipbias.errors import ClipbiasError
from clipbias.tuning import Classifier, Learnables, Task
from clipbias.tuning.features import unit_length


def check_targets(task: Task, images: jax.Array, targets: jax.Array | Sequence[int]) -> jax.Array:
    """Targets as an int array `[B]` or `[B, K]`; what can be checked without their values is."""
    targets = jnp.asarray(targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ClipbiasError(f"targets are {targets.dtype}; give class numbers (0 … {len(task.class_names) - 1}).")
    if targets.ndim not in (1, 2) or targets.shape[0] != images.shape[0] or targets.size == 0:
        raise ClipbiasError(
            f"targets have shape {targets.shape} for {images.shape[0]} images; expected [B], or [B, K] for K classes "
            "per image."
        )
    if not isinstance(targets, jax.core.Tracer) and targets.is_fully_addressable:
        low = np.asarray(targets).min()
        high = np.asarray(targets).max()
        if low < 0 or high >= len(task.class_names):
            raise ClipbiasError(
                f"targets go from {low} to {high}; the task has classes 0 … {len(task.class_names) - 1}."
            )
    return targets


def first_layer(start_layer: int, config: TowerConfig) -> int:
    """`start_layer` counted from 0; negative ones count from the last layer."""
    if not -config.layers <= start_layer < config.layers:
        tower_name = "text" if isinstance(config, TextConfig) else "vision"
        raise ClipbiasError(
            f"start_layer {start_layer} is outside the {tower_name} tower's {config.layers} layers; choose 0 for all "
            "layers or -1 for the last one."
        )
    return start_layer % config.layers


def by_pass(adaptation: Adaptation) -> list[Adaptation]:
    """An adaptation for each pass over an image: one, or as many as there are sets of vision prompts."""
    prompts = adaptation.vision_prompts
    if prompts is None or prompts.ndim == 3:
        return [adaptation]
    return [dataclasses.replace(adaptation, vision_prompts=prompts_of_pass) for prompts_of_pass in prompts]


def of_texts(adaptation: Adaptation, texts: jax.Array | np.ndarray, count: int) -> Adaptation:
    """The same for some of `count` texts, where they have contexts of their own, or share one with the next texts."""
    context = adaptation.text_context
    class_prompts = adaptation.text_class_prompts
    if context is not None and context.ndim == 3:
        contexts = jnp.asarray(context)[texts // (count // context.shape[0])]
        adaptation = dataclasses.replace(adaptation, text_context=contexts)
    if class_prompts is not None:
        adaptation = dataclasses.replace(adaptation, text_class_prompts=jnp.asarray(class_prompts)[texts])
    return adaptation


def target_text(tokens: TextTokens, targets: jax.Array, templates: int) -> TextTokens:
    """The texts of classes `targets [P]`, all templates of a class together: `[P · n, N]`."""
    classes = tokens.ids.shape[0] // templates
    rows = (targets[:, None] + classes * jnp.arange(templates)).reshape(-1)
    texts: TextTokens = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], tokens)
    return texts


def target_adaptation(classifier: Classifier, learnables: Learnables, targets: jax.Array) -> Adaptation:
    """The `Adaptation` for the classes `targets [P]` alone: class-specific contexts and residuals are picked."""
    adaptation = classifier.method.adapt(learnables)
    context = adaptation.text_context
    residual = adaptation.text_residual
    if context is not None and context.ndim == 3:
        context = jnp.asarray(context)
        if context.shape[0] == classifier.templates:  # of templates, in the order of `target_text`
            contexts = jnp.tile(context, (targets.shape[0], 1, 1))
        else:
            by_class = context.reshape(classifier.templates, -1, *context.shape[1:])[:, targets]
            contexts = by_class.swapaxes(0, 1).reshape(-1, *context.shape[1:])
        adaptation = dataclasses.replace(adaptation, text_context=contexts)
    if adaptation.text_class_prompts is not None:
        class_prompts = jnp.asarray(adaptation.text_class_prompts)[targets]
        adaptation = dataclasses.replace(adaptation, text_class_prompts=class_prompts)
    if residual is not None:
        adaptation = dataclasses.replace(adaptation, text_residual=jnp.asarray(residual)[targets])
    return adaptation


def image_contexts(classifier: Classifier, learnables: Learnables, images: jax.Array, targets: int) -> jax.Array:
    """The contexts that images of features `[B, d]` give the texts of so many `targets` each: `[B · K · n, T, Dt]`.

    They are in the order of `target_text`. Whoever differentiates the texts by them holds the images fixed.
    """
    contexts = jax.vmap(lambda image: classifier.method.adapt_to(learnables, image).text_context)(images)
    assert contexts is not None
    if contexts.ndim == 3:
        contexts = jnp.repeat(contexts[:, None], classifier.templates, axis=1)
    return jnp.repeat(contexts, targets, axis=0).reshape(-1, *contexts.shape[-2:])


def own_pair_logits(
    classifier: Classifier,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    texts: jax.Array,
    class_features: jax.Array,
    targets: jax.Array,
) -> jax.Array:
    """The logits of a method with a head of its own for every pair of an image and a target: `[B, K]`.

    The target's texts stand among those of all classes, which are held fixed together with the learnables.

    Args:
      classifier: of the task.
      params: the frozen weights.
      learnables: whole, whatever the targets.
      images: image features `[B, d]`.
      texts: text features of the pairs `[B · K · n, d]`.
      class_features: text features of all classes `[n · C, d]`.
      targets: `[B, K]`.
    """
    fixed = classifier.split_by_template(class_features)

    def logit(image: jax.Array, texts: jax.Array, target: jax.Array) -> jax.Array:
        all_texts = fixed.at[:, target].set(texts).reshape(-1, texts.shape[-1])
        return classifier.head(params, learnables, image[None], all_texts)[0, target]

    over_targets = jax.vmap(logit, (None, 0, 0))
    return jax.vmap(over_targets)(images, texts.reshape(*targets.shape, classifier.templates, -1), targets)


def pair_logits(
    scale: jax.Array, images: jax.Array, texts: jax.Array, residual: jax.Array | None, templates: int
) -> jax.Array:
    """`y = s · cos(f, g)` of every pair: `[B, K]`.

    Args:
      scale: `s`, `exp(logit_scale)` or the method's own.
      images: image features `[B, d]`.
      texts: text features of the pairs `[B · K · n, d]`.
      residual: `[B · K, d]`, or `None`.
      templates: `n`.
    """
    if templates > 1:
        texts = unit_length(texts).reshape(-1, templates, texts.shape[-1]).mean(1)
    texts = unit_length(texts if residual is None else texts + residual)
    texts = texts.reshape(images.shape[0], -1, texts.shape[-1])
    pairs = jnp.einsum("Bd,BKd->BK", unit_length(images), texts, precision="highest")
    return scale * pairs
