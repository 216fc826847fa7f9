"""The causal test over a dataset: every image under every mixture of the two runs, in both towers and in each alone."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, TextTokens
from clipbias.explain.amounts import reference_adaptation
from clipbias.explain.attention_sections import text_parts, vision_parts, vision_totals
from clipbias.explain.factorial import (
    CONSTANTS,
    Mixed,
    corners,
    effects_in_play,
    mix_images,
    mix_texts,
    slot_means,
)
from clipbias.explain.model import Model
from clipbias.explain.outcomes import outcomes
from clipbias.explain.results import RANDOM
from clipbias.explain.scope import why_no_causal_test
from clipbias.explain.statistics import Moments, Totals
from clipbias.explain.stream import Batch, Reading, Rows
from clipbias.explain.study import Section, Study, spread
from clipbias.explain.targets import by_pass, of_texts

OUTCOMES = ("correct", "log_likelihood", "margin")


def compute_factorial(study: Study) -> Reading[Section]:
    """Correctness, log-likelihood and margin of every image under every mixture, for every model that changes a tower.

    A model with prompts has a control besides: prompts drawn at random, with the trained ones' norms. Features of every
    mixture go through the model's own head, so the reference of a method with one is the frozen towers under that head.
    """
    reasons = {model.key: why_no_causal_test(model.task) for model in study.tuned}
    scalars: dict[str, Any] = {key: {"missing": reason} for key, reason in reasons.items() if reason}
    tested = [model for model in study.tuned if not reasons[model.key]]
    # What slots add to texts that depend on the image has no mean that is known before the images are seen.
    constant = [model for model in tested if any(model.prompts) and not model.task.method.conditional]
    totals = yield from vision_totals(study, [model for model in constant if model.prompts[0]])
    tests: dict[str, tuple[Rows, dict[str, Any]]] = {}
    for model in tested:
        means = _means(study, model, totals.get(model.key)) if model in constant else None
        title = f"{model.label}: causal test"
        tests[model.key] = _test(study, model, model.key, title, study.images, means=means)
        if any(model.prompts) and study.options.control_images:
            few = study.images[spread(len(study.images), study.options.control_images)]
            key, title = f"{model.key}{RANDOM}", f"{model.label}: causal test of random prompts"
            tests[key] = _test(study, model, key, title, few, turn=lambda x: random_prompts(x, study.options.seed))
    found = yield [request for request, _ in tests.values()]
    arrays: dict[str, np.ndarray] = {}
    for key, (request, facts) in tests.items():
        rows = found[request.name]
        arrays |= {f"factorial/{key}/{name}": value for name, value in rows.items()}
        arrays[f"factorial/{key}/correct"] = arrays[f"factorial/{key}/correct"].astype(np.uint8)
        scalars[key] = facts | {"images": len(rows["images"])}
    return arrays, scalars


def random_prompts(tuned: Adaptation, seed: int) -> Adaptation:
    """The same adaptation with every prompt and context turned to a random direction, its norm kept."""
    changes = {}
    for number, name in enumerate(("text_context", "text_prompts", "vision_prompts")):
        prompts = getattr(tuned, name)
        if prompts is not None:
            drawn = jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), prompts.shape)
            norms = [jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (prompts, drawn)]
            changes[name] = drawn * norms[0] / norms[1]
    return dataclasses.replace(tuned, **changes)


def _test(
    study: Study,
    model: Model,
    key: str,
    title: str,
    indices: np.ndarray,
    *,
    turn: Callable[[Adaptation], Adaptation] = lambda adaptation: adaptation,
    means: dict[str, Any] | None = None,
) -> tuple[Rows, dict[str, Any]]:
    """Asks for every image under every mixture; and which mixtures and towers these are.

    A class' texts and an image's passes, where there are several, are runs by themselves: the head sees the features of
    all of them under one mixture. Where texts depend on the image, so do both the tuned run and its mixtures.
    """
    task, config, dtype = model.task, study.clip.config, model.task.classifier.dtype
    learnables = study.learnables[model.key]
    reference, tuned = reference_adaptation(task, task.init(model.seed)), turn(task.method.adapt(learnables))
    changed = {"vision": tuned.changes_vision, "text": tuned.changes_text}
    effects = effects_in_play(any(model.prompts))
    inner = 2 ** len(effects) - 2
    streams = (*corners(effects), *(CONSTANTS if means else ()))
    # The first and the last corner are the runs themselves.
    asked = streams[1 : 1 + inner] + streams[2 + inner :]
    towers = ("both", "vision", "text") if all(changed.values()) else ("both",)
    means = means or {"vision": [None] * model.passes, "text": [None] * model.texts}

    def every(mixed: Mixed) -> jax.Array:
        parts = (mixed.reference[None], mixed.streams[:inner], mixed.tuned[None], mixed.streams[inner:])
        return jnp.concatenate(parts)

    def of_images(params: Any, tuned: Adaptation, means: Any, images: jax.Array) -> jax.Array:
        """`[K, B, d]`, or `[K, B, m, d]` of several passes."""
        runs = zip(by_pass(tuned), means, strict=True)
        found = [
            every(mix_images(params, config, images, own, Adaptation(), asked, mean, dtype=dtype)) for own, mean in runs
        ]
        return found[0] if len(found) == 1 else jnp.stack(found, axis=2)

    @jax.jit
    def of_texts_of_one(
        params: Any, runs: tuple[Adaptation, Adaptation], means: Any, tokens: TextTokens, rows: jax.Array
    ) -> jax.Array:
        own, plain = (of_texts(adaptation, rows, len(task.texts)) for adaptation in runs)
        return every(mix_texts(params, config, tokens, own, plain, asked, means, dtype=dtype))

    def of_all_texts(params: Any, runs: tuple[Adaptation, Adaptation], means: Any) -> jax.Array:
        """`[K, S · C, d]`, one of the `S` texts of every class after another."""
        found = []
        for rows, mean in zip(np.split(np.arange(len(task.texts)), model.texts), means, strict=True):
            tokens = jax.tree.map(lambda x, rows=rows: jnp.asarray(x)[rows], task.tokens)
            found.append(of_texts_of_one(params, runs, mean, tokens, rows))
        return jnp.concatenate(found, axis=1)

    everywhere, nowhere = np.arange(len(streams)), np.zeros(len(streams), int)
    of_tower = {"both": (everywhere, everywhere), "vision": (everywhere, nowhere), "text": (nowhere, everywhere)}

    def classify(params: Any, learnables: Any, features: jax.Array, texts: jax.Array, mask: Any) -> jax.Array:
        """`[towers, K, B, C]`."""
        found = []
        for tower in towers:
            # A tower that nothing changes has the reference's features alone.
            image, text = (
                x[np.minimum(index, len(x) - 1)] for x, index in zip((features, texts), of_tower[tower], strict=True)
            )
            found.append(jax.vmap(lambda f, g: task.classifier.head(params, learnables, f, g, mask))(image, text))
        return jnp.stack(found)

    @jax.jit
    def step(params: Any, learnables: Any, runs: Any, means: Any, texts: Any, batch: Batch) -> dict[str, jax.Array]:
        views, mask = study.normalize(batch["images"]), batch["mask"]
        images = views[:, 0] if model.crops else views
        if changed["vision"]:
            features = of_images(params, runs[0], means["vision"], images)
        else:
            features = task.classifier.encode_images(params, Adaptation(), images)[None]
        if task.method.conditional:

            def of_image(one: tuple[jax.Array, jax.Array]) -> jax.Array:
                own = turn(task.classifier.adaptation_for(params, learnables, one[1], task.text))
                texts = of_all_texts(params, (own, runs[1]), means["text"])
                return classify(params, learnables, one[0][:, None], texts, None)[:, :, 0]

            seen = task.classifier.encode_images(params, task.method.adapt(learnables), views)
            logits = jnp.moveaxis(jax.lax.map(of_image, (jnp.moveaxis(features, 1, 0), seen)), 0, 2)
        else:
            logits = classify(params, learnables, features, texts, mask)
        found = [outcomes(of_tower, batch["labels"]) for of_tower in logits]
        return {name: jnp.moveaxis(jnp.stack([one[name] for one in found]), 2, 0) for name in OUTCOMES}

    runs, means = study.replicate(((tuned, reference), means))
    texts: jax.Array | None = None
    if not changed["text"]:
        texts = task.text_features(study.params, learnables)[None]
    elif not task.method.conditional:
        texts = of_all_texts(study.params, runs, means["text"])

    def rows(batch: Batch) -> dict[str, jax.Array]:
        return step(study.params, learnables, runs, means, texts, batch)

    facts = {"effects": effects, "towers": towers, "streams": streams}
    return Rows(f"factorial-{key.replace(':', '-')}", title, indices, rows, crops=model.crops), facts


def _means(study: Study, model: Model, totals: Totals | None) -> dict[str, list[dict[str, np.ndarray]]]:
    """By tower and run, the constants that may stand for what its slots add; zeros where a tower has none.

    `totals` are those of the vision tower, where it has slots.
    """
    found = {}
    for tower, slots in zip(("vision", "text"), model.prompts, strict=True):
        geometry = getattr(study.clip.config, tower)
        if slots:
            parts = vision_parts(model, totals or {}) if tower == "vision" else text_parts(study, model)
            count = 1 + geometry.patches if tower == "vision" else None
            found[tower] = [
                slot_means(Moments(part.count[:, :count], part.mean[:, :count], part.squares[:, :count]))
                for part in (totals["part"] for totals in parts)
            ]
        else:
            nothing = np.zeros((geometry.layers, 1, geometry.width), np.float32)
            runs = model.passes if tower == "vision" else model.texts
            found[tower] = [{"token": nothing, "vector": nothing}] * runs
    return found
