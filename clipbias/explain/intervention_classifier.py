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

from clipbias.clip import Adaptation, TextTokens
from clipbias.clip.params import Params
from clipbias.constants import ZERO_SHOT
from clipbias.explain.effects import KEPT, LOST, REFERENCE
from clipbias.explain.equivalent_bias import EquivalentBias
from clipbias.explain.intervention import Intervention, image_features_with, text_features_with, text_rows
from clipbias.explain.ladder import text_intervention, vision_intervention
from clipbias.explain.rungs import CONSTANTS
from clipbias.explain.scope import why_no_causal_test
from clipbias.explain.targets import by_pass, of_texts
from clipbias.tuning import Classifier, Learnables, Task, make_method
from clipbias.tuning.descriptions import without_missing


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
        biases: Mapping[str, tuple[Mapping[str, EquivalentBias], str]],
        replicate: Callable[[Any], Any] = lambda tree: jax.tree.map(jnp.asarray, tree),
    ) -> None:
        """Computes every form's texts.

        Args:
          task: of the tuned method.
          params: the frozen weights.
          learnables: as tuned.
          reference: what the frozen model is given.
          biases: by name: what is added, by tower, and as which rung of the ladder: the method's own, controls, those
            of another seed or dataset. All have the same towers, and all have products or none has.
          replicate: puts arrays on the devices.
        """
        self._task, self._params, self._learnables = task, params, learnables
        self._plain = dataclasses.replace(task.classifier, method=make_method(ZERO_SHOT))
        own_head = task.method.overrides("logits") and not why_no_causal_test(task)
        self._frozen = task.classifier if own_head else self._plain
        self._reference, self._tuned = replicate((reference, task.method.adapt(learnables)))
        names = tuple(biases)
        lost = () if task.method.conditional else tuple(name for name in names if biases[name][1] in CONSTANTS)
        forms = [(KEPT, name) for name in names] + [(LOST, name) for name in lost]
        self.forms = (REFERENCE, *(f"{kind}:{name}" for kind, name in forms), *([ZERO_SHOT] if own_head else []))
        towers = set.union(*(set(own) for own, _ in biases.values()))
        self._vision: list[Intervention | None] = [None, None]
        if "vision" in towers:
            images = {name: vision_intervention(own["vision"], rung) for name, (own, rung) in biases.items()}
            groups = [[images[name] for name in some] for some in (names, lost)]
            self._vision = [replicate(_stack(group)) if group else None for group in groups]
        start = _text_features(self._plain, params, self._reference, task.text)
        if "text" in towers:
            texts = {
                name: (text_intervention(own["text"], rung), rung == "token") for name, (own, rung) in biases.items()
            }
            kept = self._texts(list(texts.values()), self._reference, 1.0)
            lost_texts = self._texts([texts[name] for name in lost], self._tuned, -1.0)
        else:
            kept = [start] * len(names)
            lost_texts = [task.text_features(params, learnables)] * len(lost) if lost else []
        self._texts_of_forms = [start, *kept], lost_texts

    def _texts(
        self, added: Sequence[tuple[Intervention, bool]], adaptation: Adaptation, sign: float
    ) -> list[jax.Array]:
        """Text features `[S · C, d]` of every form. Those with rows by position run together, and so do all others."""
        found: dict[int, jax.Array] = {}
        for by_position in (False, True):
            places = [i for i, (_, own) in enumerate(added) if own is by_position]
            if places:
                features = self._texts_at_once(_stack([added[i][0] for i in places]), by_position, adaptation, sign)
                found |= dict(zip(places, features, strict=True))
        return [found[i] for i in range(len(added))]

    def _texts_at_once(self, added: Intervention, by_position: bool, adaptation: Adaptation, sign: float) -> jax.Array:
        """`[F, S · C, d]`, computed for as many texts at a time as there are classes."""
        task = self._task
        slots = sign < 0 and (adaptation.text_context is not None or adaptation.text_prompts is not None)
        rows = text_rows(task.tokens, by_position=by_position, slots=slots)
        count, classes, parts = len(task.tokens.ids), len(task.class_names), []
        for start in range(0, count, classes):
            at = np.arange(start, min(start + classes, count))
            tokens: TextTokens = jax.tree.map(lambda x, at=at: np.asarray(x)[at], task.tokens)
            given = (tokens, adaptation, added, rows[at], self._reference, at)
            parts.append(_some_texts(task.classifier, count, sign, self._params, *given))
        found = jnp.concatenate(parts, axis=1)
        counts = task.classifier.counts
        return found if counts is None else jax.vmap(lambda x: without_missing(x, counts))(found)

    def __call__(self, images: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Logits `[F, B, C]` of normalised images `[B, R, R, 3]`, or of views where the method learns of crops."""
        classifiers, weights = (self._plain, self._frozen, self._task.classifier), (self._params, self._learnables)
        return _logits(*classifiers, *weights, self._tuned, self._vision, self._texts_of_forms, images, mask)


def _stack(added: Sequence[Intervention]) -> Intervention:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *added)


@jax.jit(static_argnums=0)
def _text_features(classifier: Classifier, params: Params, adaptation: Adaptation, text: Any) -> jax.Array:
    return classifier.encode_text(params, adaptation, text)


@jax.jit(static_argnums=(0, 1, 2))
def _some_texts(
    classifier: Classifier,
    count: int,
    sign: float,
    params: Params,
    tokens: TextTokens,
    adaptation: Adaptation,
    added: Intervention,
    rows: jax.Array,
    reference: Adaptation,
    at: jax.Array,
) -> jax.Array:
    own, plain = (of_texts(one, at, count) for one in (adaptation, reference))
    given = (params, classifier.config, tokens, own, added, rows, plain)
    return text_features_with(*given, sign=sign, dtype=classifier.dtype)


@jax.jit(static_argnums=(0, 1, 2))
def _logits(
    plain: Classifier,
    frozen: Classifier,
    classifier: Classifier,
    params: Params,
    learnables: Learnables,
    tuned: Adaptation,
    vision: Sequence[Intervention | None],
    texts: tuple[Sequence[jax.Array], Sequence[jax.Array]],
    images: jax.Array,
    mask: jax.Array | None,
) -> jax.Array:
    whole = images[:, 0] if images.ndim == 5 else images
    kept = frozen.encode_images(params, Adaptation(), whole)[None]
    if vision[0] is not None:
        changed = image_features_with(params, plain.config, whole, Adaptation(), vision[0], dtype=plain.dtype)
        kept = jnp.concatenate([kept, changed])
    several, own_head = len(by_pass(tuned)), frozen != plain
    if own_head and several > 1:  # a head that reads several passes reads the frozen model's as often
        kept = jnp.stack([kept] * several, axis=2)
    logits = [frozen.head(params, learnables, _pick(kept, i), text) for i, text in enumerate(texts[0])]
    if texts[1]:
        logits += _lost_logits(plain, classifier, params, learnables, tuned, vision[1], texts[1], images, mask)
    if own_head:
        logits.append(plain.head(params, {}, plain.encode_images(params, Adaptation(), whole), texts[0][0]))
    return jnp.stack(logits)


def _lost_logits(
    plain: Classifier,
    classifier: Classifier,
    params: Params,
    learnables: Learnables,
    tuned: Adaptation,
    vision: Intervention | None,
    texts: Sequence[jax.Array],
    images: jax.Array,
    mask: jax.Array | None,
) -> list[jax.Array]:
    whole = images[:, 0] if images.ndim == 5 else images
    if vision is None:
        lost = classifier.encode_images(params, tuned, images)[None]
    else:
        options: dict[str, Any] = dict(sign=-1.0, patches=classifier.method.patches, dtype=classifier.dtype)
        passes = [image_features_with(params, plain.config, whole, one, vision, **options) for one in by_pass(tuned)]
        lost = passes[0] if len(passes) == 1 else jnp.stack(passes, axis=2)
    return [classifier.head(params, learnables, _pick(lost, i), text, mask) for i, text in enumerate(texts)]


def _pick(features: jax.Array, place: int) -> jax.Array:
    """A form's features, or those of all where nothing changes the tower."""
    return features[min(place, len(features) - 1)]
