"""Both directions of the test of a constant: put in the method's place, and taken from the method.

The frozen model with it added after every block says whether it is enough ("kept:NAME"); the tuned model with it
subtracted at input tokens says whether it is needed ("lost:NAME").

A method with a head of its own keeps it wherever the frozen towers have what it reads, so that what is kept and lost is
of the gain inside the blocks; what the head gives by itself is apart ("zero_shot", the frozen model with CLIP's head).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.clip import Adaptation, TextTokens
from clipbias.clip.params import Params
from clipbias.constants import ZERO_SHOT
from clipbias.explain.effects import KEPT, LOST, REFERENCE
from clipbias.explain.intervention import image_features_with, text_features_with, text_rows
from clipbias.explain.scope import why_no_causal_test
from clipbias.explain.targets import by_pass, of_texts
from clipbias.tuning import Classifier, Learnables, Task, make_method
from clipbias.tuning.prompts import without_missing
from clipbias.tuning.task import Text

# By name and tower: what each kind of token gets after each block, `[L, K, D]`.
Constants = Mapping[str, Mapping[str, np.ndarray]]


@struct.dataclass
class _Forms:
    """What differs between the ways to classify; a tree of arrays.

    Attributes:
      tuned: the tuned method's adaptation.
      vision: constants of the vision tower, `[F, L, K, D]`; `None` where the method does not change it.
      texts_kept: text features of the frozen model, then with what is added to it.
      texts_lost: of the tuned model with what is subtracted.
    """

    tuned: Adaptation
    vision: jax.Array | None
    texts_kept: list[jax.Array]
    texts_lost: list[jax.Array]


@dataclasses.dataclass(frozen=True)
class _Heads:
    """Static: the classifiers of a test.

    Attributes:
      tuned: of the tuned method.
      plain: the frozen model with CLIP's head.
      frozen: the frozen model with the method's own head where it has one, else `plain`.
    """

    tuned: Classifier
    plain: Classifier
    frozen: Classifier


class InterventionClassifier:
    """How images are classified with something in a method's place, and with it taken from the method.

    Attributes:
      forms: "reference" (the frozen model), "kept:NAME" of every constant, then "lost:NAME": the order of the logits. A
        method whose texts depend on the image has nothing lost. Last "zero_shot", where the frozen model has the
        method's own head.
    """

    def __init__(
        self,
        task: Task,
        params: Params,
        learnables: Learnables,
        reference: Adaptation,
        constants: Constants,
        replicate: Callable[[Any], Any] = lambda tree: jax.tree.map(jnp.asarray, tree),
    ) -> None:
        """Computes every form's texts.

        Args:
          task: of the tuned method.
          params: the frozen weights.
          learnables: as tuned.
          reference: what the frozen model is given.
          constants: the method's own and controls, all of the same towers.
          replicate: puts arrays on the devices.
        """
        self._task = task
        self._params = params
        self._learnables = learnables
        plain = dataclasses.replace(task.classifier, method=make_method(ZERO_SHOT))
        has_own_head = task.method.overrides("logits") and not why_no_causal_test(task)
        self._heads = _Heads(task.classifier, plain, task.classifier if has_own_head else plain)
        self._reference, tuned = replicate((reference, task.method.adapt(learnables)))
        is_subtracted = not task.method.conditional
        forms = [REFERENCE, *(f"{KEPT}:{name}" for name in constants)]
        if is_subtracted:
            forms += [f"{LOST}:{name}" for name in constants]
        if has_own_head:
            forms.append(ZERO_SHOT)
        self.forms = tuple(forms)
        towers = {tower for by_tower in constants.values() for tower in by_tower}
        stacked = {tower: np.stack([by_tower[tower] for by_tower in constants.values()]) for tower in towers}
        texts_kept = [_text_features(plain, params, self._reference, task.text)]
        texts_lost: list[jax.Array] = []
        if "text" in towers:
            texts_kept += list(self._texts(stacked["text"], self._reference, 1.0))
            if is_subtracted:
                texts_lost += list(self._texts(stacked["text"], tuned, -1.0))
        else:
            texts_kept += [texts_kept[0] for _ in constants]
            if is_subtracted:
                tuned_texts = task.text_features(params, learnables)
                texts_lost += [tuned_texts for _ in constants]
        vision = replicate(stacked["vision"]) if "vision" in towers else None
        self._arrays = _Forms(tuned, vision, texts_kept, texts_lost)

    def _texts(self, constants: np.ndarray, adaptation: Adaptation, sign: float) -> jax.Array:
        """`[F, S · C, d]`, computed for as many texts at a time as there are classes."""
        task = self._task
        slots = sign < 0 and (adaptation.text_context is not None or adaptation.text_prompts is not None)
        rows = text_rows(task.tokens, slots=slots)
        count = len(task.tokens.ids)
        classes = len(task.class_names)
        parts = []
        for start in range(0, count, classes):
            texts = np.arange(start, min(start + classes, count))
            tokens: TextTokens = jax.tree.map(lambda x, texts=texts: np.asarray(x)[texts], task.tokens)
            inputs = _Texts(
                tokens=tokens,
                rows=rows[texts],
                adaptation=of_texts(adaptation, texts, count),
            )
            parts.append(_some_texts(task.classifier, sign, self._params, inputs, constants))
        features = jnp.concatenate(parts, axis=1)
        counts = task.classifier.counts
        return features if counts is None else jax.vmap(lambda x: without_missing(x, counts))(features)

    def __call__(self, images: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Logits `[F, B, C]` of normalised images `[B, R, R, 3]`, or of views where the method learns of crops."""
        return _logits(self._heads, self._params, self._learnables, self._arrays, images, mask)


@jax.jit(static_argnums=0)
def _text_features(classifier: Classifier, params: Params, adaptation: Adaptation, text: Text) -> jax.Array:
    return classifier.encode_text(params, adaptation, text)


@struct.dataclass
class _Texts:
    """Some texts, which constant each of their tokens gets, and their part of an adaptation."""

    tokens: TextTokens
    rows: jax.Array
    adaptation: Adaptation


@jax.jit(static_argnums=(0, 1))
def _some_texts(classifier: Classifier, sign: float, params: Params, texts: _Texts, constants: np.ndarray) -> jax.Array:
    return text_features_with(
        params,
        classifier.config,
        texts.tokens,
        texts.adaptation,
        jnp.asarray(constants),
        texts.rows,
        sign=sign,
        dtype=classifier.dtype,
    )


@jax.jit(static_argnums=0)
def _logits(
    heads: _Heads,
    params: Params,
    learnables: Learnables,
    forms: _Forms,
    images: jax.Array,
    mask: jax.Array | None,
) -> jax.Array:
    whole = images[:, 0] if images.ndim == 5 else images
    plain = heads.plain
    has_own_head = heads.frozen != plain
    kept_features = heads.frozen.encode_images(params, Adaptation(), whole)[None]
    if forms.vision is not None:
        changed = image_features_with(params, plain.config, whole, Adaptation(), forms.vision, dtype=plain.dtype)
        kept_features = jnp.concatenate([kept_features, changed])
    passes = len(by_pass(forms.tuned))
    if has_own_head and passes > 1:  # a head that reads several passes reads the frozen model's as often
        kept_features = jnp.stack([kept_features for _ in range(passes)], axis=2)
    logits = [
        heads.frozen.head(params, learnables, _pick(kept_features, i), text) for i, text in enumerate(forms.texts_kept)
    ]
    if forms.texts_lost:
        lost_features = _lost_features(heads.tuned, params, forms, images)
        logits += [
            heads.tuned.head(params, learnables, _pick(lost_features, i), text, mask)
            for i, text in enumerate(forms.texts_lost)
        ]
    if has_own_head:
        logits.append(plain.head(params, {}, plain.encode_images(params, Adaptation(), whole), forms.texts_kept[0]))
    return jnp.stack(logits)


def _lost_features(classifier: Classifier, params: Params, forms: _Forms, images: jax.Array) -> jax.Array:
    """Image features of the tuned model with what is subtracted, `[F, B, …]`; one form where nothing is."""
    if forms.vision is None:
        return classifier.encode_images(params, forms.tuned, images)[None]
    whole = images[:, 0] if images.ndim == 5 else images
    passes = [
        image_features_with(
            params,
            classifier.config,
            whole,
            adaptation,
            forms.vision,
            sign=-1.0,
            patches=classifier.method.patches,
            dtype=classifier.dtype,
        )
        for adaptation in by_pass(forms.tuned)
    ]
    return passes[0] if len(passes) == 1 else jnp.stack(passes, axis=2)


def _pick(features: jax.Array, place: int) -> jax.Array:
    """A form's features, or those of all where nothing changes the tower."""
    return features[min(place, len(features) - 1)]
