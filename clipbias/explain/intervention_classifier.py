"""Both directions of the test of a constant: put in the method's place, and taken from the method.

The frozen model with it added after every block says whether it is enough ("kept:NAME"); the tuned model with it
subtracted at input tokens says whether it is needed ("lost:NAME").

A method with a head of its own keeps it wherever the frozen towers have what it reads, so that what is kept and lost is
of the gain inside the blocks; what the head gives by itself is apart ("zero_shot", the frozen model with CLIP's head).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.clip import Adaptation, TextTokens
from clipbias.clip.params import Params
from clipbias.constants import ZERO_SHOT
from clipbias.explain.effects import KEPT, LOST, REFERENCE
from clipbias.explain.equivalent_bias import EquivalentBias
from clipbias.explain.intervention import Intervention, image_features_with, text_features_with, text_rows
from clipbias.explain.replacement_forms import text_intervention, vision_intervention
from clipbias.explain.replacement_names import CONSTANTS
from clipbias.explain.scope import why_no_causal_test
from clipbias.explain.targets import by_pass, of_texts
from clipbias.tuning import Classifier, Learnables, Task, make_method
from clipbias.tuning.classifier import Text
from clipbias.tuning.descriptions import without_missing

Forms = Mapping[str, tuple[Mapping[str, EquivalentBias], str]]


@struct.dataclass
class _Forms:
    """What differs between the ways to classify; a tree of arrays.

    Attributes:
      tuned: the tuned method's adaptation.
      vision_kept: added to the frozen vision tower, stacked; `None` where the method does not change it.
      vision_lost: subtracted from the tuned one, likewise.
      texts_kept: text features of the frozen model, then with what is added to it.
      texts_lost: of the tuned model with what is subtracted.
    """

    tuned: Adaptation
    vision_kept: Intervention | None
    vision_lost: Intervention | None
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
      forms: "reference" (the frozen model), "kept:NAME" of every name, then "lost:NAME" of every constant: the order of
        the logits. Maps are not subtracted, and a method whose texts depend on the image has nothing lost. Last
        "zero_shot", where the frozen model has the method's own head.
    """

    def __init__(
        self,
        task: Task,
        params: Params,
        learnables: Learnables,
        reference: Adaptation,
        biases: Forms,
        replicate: Callable[[Any], Any] = lambda tree: jax.tree.map(jnp.asarray, tree),
    ) -> None:
        """Computes every form's texts.

        Args:
          task: of the tuned method.
          params: the frozen weights.
          learnables: as tuned.
          reference: what the frozen model is given.
          biases: by name: what is added, by tower, and in which form: the method's own, controls, those
            of another seed or dataset. All have the same towers, and all have products or none has.
          replicate: puts arrays on the devices.
        """
        self._task = task
        self._params = params
        self._learnables = learnables
        plain = dataclasses.replace(task.classifier, method=make_method(ZERO_SHOT))
        has_own_head = task.method.overrides("logits") and not why_no_causal_test(task)
        self._heads = _Heads(task.classifier, plain, task.classifier if has_own_head else plain)
        self._reference, tuned = replicate((reference, task.method.adapt(learnables)))
        lost = [name for name, (_, form) in biases.items() if form in CONSTANTS and not task.method.conditional]
        forms = [REFERENCE, *(f"{KEPT}:{name}" for name in biases), *(f"{LOST}:{name}" for name in lost)]
        if has_own_head:
            forms.append(ZERO_SHOT)
        self.forms = tuple(forms)
        towers = {tower for by_tower, _ in biases.values() for tower in by_tower}
        vision_kept = vision_lost = None
        if "vision" in towers:
            images = {name: vision_intervention(bias["vision"], form) for name, (bias, form) in biases.items()}
            vision_kept = replicate(_stack(list(images.values())))
            vision_lost = replicate(_stack([images[name] for name in lost])) if lost else None
        texts_kept = [_text_features(plain, params, self._reference, task.text)]
        texts_lost: list[jax.Array] = []
        if "text" in towers:
            texts_kept += self._texts(biases, self._reference, 1.0)
            texts_lost += self._texts({name: biases[name] for name in lost}, tuned, -1.0)
        else:
            texts_kept += [texts_kept[0] for _ in biases]
            if lost:
                tuned_texts = task.text_features(params, learnables)
                texts_lost += [tuned_texts for _ in lost]
        self._arrays = _Forms(tuned, vision_kept, vision_lost, texts_kept, texts_lost)

    def _texts(self, biases: Forms, adaptation: Adaptation, sign: float) -> list[jax.Array]:
        """Text features `[S · C, d]` of every form. Those with rows by position run together, and so do all others."""
        features: dict[str, jax.Array] = {}
        for by_position in (False, True):
            forms = {
                name: text_intervention(bias["text"], form)
                for name, (bias, form) in biases.items()
                if (form == "token") is by_position
            }
            if forms:
                stacked = _stack(list(forms.values()))
                together = self._texts_at_once(stacked, by_position, adaptation, sign)
                features |= dict(zip(forms, together, strict=True))
        return [features[name] for name in biases]

    def _texts_at_once(
        self, interventions: Intervention, by_position: bool, adaptation: Adaptation, sign: float
    ) -> jax.Array:
        """`[F, S · C, d]`, computed for as many texts at a time as there are classes."""
        task = self._task
        slots = sign < 0 and (adaptation.text_context is not None or adaptation.text_prompts is not None)
        rows = text_rows(task.tokens, by_position=by_position, slots=slots)
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
                reference=of_texts(self._reference, texts, count),
            )
            parts.append(_some_texts(task.classifier, sign, self._params, inputs, interventions))
        features = jnp.concatenate(parts, axis=1)
        counts = task.classifier.counts
        return features if counts is None else jax.vmap(lambda x: without_missing(x, counts))(features)

    def __call__(self, images: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Logits `[F, B, C]` of normalised images `[B, R, R, 3]`, or of views where the method learns of crops."""
        return _logits(self._heads, self._params, self._learnables, self._arrays, images, mask)


def _stack(interventions: Sequence[Intervention]) -> Intervention:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *interventions)


@jax.jit(static_argnums=0)
def _text_features(classifier: Classifier, params: Params, adaptation: Adaptation, text: Text) -> jax.Array:
    return classifier.encode_text(params, adaptation, text)


@struct.dataclass
class _Texts:
    """Some texts, the rows of tables that their tokens get, and their parts of two adaptations."""

    tokens: TextTokens
    rows: np.ndarray
    adaptation: Adaptation
    reference: Adaptation


@jax.jit(static_argnums=(0, 1))
def _some_texts(
    classifier: Classifier, sign: float, params: Params, texts: _Texts, interventions: Intervention
) -> jax.Array:
    return text_features_with(
        params,
        classifier.config,
        texts.tokens,
        texts.adaptation,
        interventions,
        texts.rows,
        texts.reference,
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
    if forms.vision_kept is not None:
        changed = image_features_with(params, plain.config, whole, Adaptation(), forms.vision_kept, dtype=plain.dtype)
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
    if forms.vision_lost is None:
        return classifier.encode_images(params, forms.tuned, images)[None]
    whole = images[:, 0] if images.ndim == 5 else images
    passes = [
        image_features_with(
            params,
            classifier.config,
            whole,
            adaptation,
            forms.vision_lost,
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
