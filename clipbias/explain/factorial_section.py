"""The causal test over a dataset: every image under every mixture of the two runs, in both towers and in each alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation
from clipbias.explain.amounts import reference_adaptation
from clipbias.explain.dataset_sections import text_parts, vision_totals
from clipbias.explain.factorial import (
    CONSTANTS,
    Mixed,
    corners,
    effects_in_play,
    mix_images,
    mix_texts,
    slot_means,
)
from clipbias.explain.outcomes import outcomes
from clipbias.explain.results import RANDOM
from clipbias.explain.statistics import Moments
from clipbias.explain.study import Batch, Model, Section, Study, spread

OUTCOMES = ("correct", "log_likelihood", "margin")


def why_not(model: Model) -> str:
    """One sentence why a model has no second run to compare with, or nothing."""
    if model.task.method.conditional:
        return f"The texts of {model.label} depend on the image, so no single run of the text tower stands for it."
    adaptation = jax.eval_shape(model.task.method.adapt, model.learnables)
    if not adaptation.changes_text and not adaptation.changes_vision:
        return f"{model.label} changes no token and no weight of the towers, so attention and values are CLIP's own."
    return ""


def compute_factorial(study: Study) -> Section:
    """Correctness, log-likelihood and margin of every image under every mixture, for every model that changes a tower.

    A model with prompts has a control besides: prompts drawn at random, with the trained ones' norms. Features of every
    mixture go through the model's own head, so the reference of a method with one is the frozen towers under that head.
    """
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, Any] = {}
    indices = study.spread(study.options.images)
    for model in study.tuned:
        reason = why_not(model)
        if reason:
            scalars[model.key] = {"missing": reason}
            continue
        tuned = model.task.method.adapt(study.learnables[model.key])
        own, facts = _test(study, model, model.key, f"{model.label}: causal test", tuned, indices, constants=True)
        arrays |= own
        scalars[model.key] = facts
        if any(model.prompts) and study.options.control_images:
            few = indices[spread(len(indices), study.options.control_images)]
            key, title = f"{model.key}{RANDOM}", f"{model.label}: causal test of random prompts"
            own, facts = _test(study, model, key, title, random_prompts(tuned, study.options.seed), few)
            arrays |= own
            scalars[key] = facts
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
    tuned: Adaptation,
    indices: np.ndarray,
    *,
    constants: bool = False,
) -> Section:
    task, config, dtype = model.task, study.clip.config, jnp.dtype(model.task.classifier.dtype)
    changed = {"vision": tuned.changes_vision, "text": tuned.changes_text}
    effects = effects_in_play(any(model.prompts))
    streams = (*corners(effects), *(CONSTANTS if constants and any(model.prompts) else ()))
    towers = ("both", "vision", "text") if all(changed.values()) else ("both",)
    means = _means(study, model) if len(streams) > 2 ** len(effects) else {}
    reference, learnables = reference_adaptation(task, task.init(model.seed)), study.learnables[model.key]
    # The first and the last corner are the runs themselves.
    asked = streams[1 : 2 ** len(effects) - 1] + streams[2 ** len(effects) :]

    def every(mixed: Mixed) -> jax.Array:
        inner = 2 ** len(effects) - 2
        parts = (mixed.reference[None], mixed.streams[:inner], mixed.tuned[None], mixed.streams[inner:])
        return jnp.concatenate(parts)

    @jax.jit
    def of_texts(params: Any, tuned: Adaptation, reference: Adaptation, means: Any) -> jax.Array:
        tokens = jax.tree.map(jnp.asarray, task.tokens)
        if not changed["text"]:
            return mix_texts(params, config, tokens, tuned, reference, (), dtype=dtype).reference[None]
        return every(mix_texts(params, config, tokens, tuned, reference, asked, means, dtype=dtype))

    @jax.jit
    def step(
        params: Any, learnables: Any, tuned: Adaptation, means: Any, texts: jax.Array, batch: Batch
    ) -> dict[str, jax.Array]:
        images, labels = study.normalize(batch["images"]), batch["labels"]
        if changed["vision"]:
            features = every(mix_images(params, config, images, tuned, Adaptation(), asked, means, dtype=dtype))
        else:
            features = task.classifier.encode_images(params, Adaptation(), images)[None]
        everywhere, reference = np.arange(len(streams)), np.zeros(len(streams), int)
        of_tower = {
            "both": (everywhere, everywhere),
            "vision": (everywhere, reference),
            "text": (reference, everywhere),
        }
        found = []
        for tower in towers:
            # A tower that nothing changes has the reference's features alone.
            image, text = (
                x[np.minimum(index, len(x) - 1)] for x, index in zip((features, texts), of_tower[tower], strict=True)
            )
            logits = jax.vmap(lambda f, g: task.classifier.head(params, learnables, f, g))(image, text)
            found.append(outcomes(logits, labels))
        return {name: jnp.moveaxis(jnp.stack([one[name] for one in found]), 2, 0) for name in OUTCOMES}

    adaptations = study.devices.replicate((tuned, reference))
    by_tower = {tower: study.devices.replicate(means.get(tower)) for tower in ("vision", "text")}
    texts = of_texts(study.params, *adaptations, by_tower["text"])
    rows = study.collect(
        f"factorial-{key.replace(':', '-')}",
        title,
        indices,
        lambda batch: step(study.params, learnables, adaptations[0], by_tower["vision"], texts, batch),
    )
    arrays = {f"factorial/{key}/{name}": value for name, value in rows.items()}
    arrays[f"factorial/{key}/correct"] = arrays[f"factorial/{key}/correct"].astype(np.uint8)
    facts = {"effects": effects, "towers": towers, "streams": streams, "images": len(rows["images"])}
    return arrays, facts


def _means(study: Study, model: Model) -> dict[str, dict[str, np.ndarray]]:
    """By tower, the constants that may stand for what its slots add; zeros where a tower has none."""
    found = {}
    for tower, slots in zip(("vision", "text"), model.prompts, strict=True):
        geometry = getattr(study.clip.config, tower)
        if slots:
            part = (vision_totals(study, model) if tower == "vision" else text_parts(study, model))["part"]
            count = 1 + geometry.patches if tower == "vision" else None
            found[tower] = slot_means(Moments(part.count[:, :count], part.mean[:, :count], part.squares[:, :count]))
        else:
            nothing = np.zeros((geometry.layers, 1, geometry.width), np.float32)
            found[tower] = {"token": nothing, "vector": nothing}
    return found
