"""The causal test over a dataset: every image under every mixture of the two runs, in both towers and in each alone."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, TextTokens
from clipbias.explain.conclusions import FEWEST_IMAGES
from clipbias.explain.dataset_sections import compute_predictions
from clipbias.explain.effects import Measured, measure, over_seeds, summarize_effects, temperature_alone
from clipbias.explain.equivalent_bias import reference_adaptation
from clipbias.explain.factorial import Mixed, corners, effects_in_play, mix_images, mix_texts
from clipbias.explain.model import Model
from clipbias.explain.results import RANDOM, same_but_for_seed
from clipbias.explain.scope import why_no_causal_test
from clipbias.explain.stream import Batch, Reading, Rows
from clipbias.explain.study import Section, Study, spread
from clipbias.explain.targets import by_pass, of_texts


def compute_factorial(study: Study) -> Reading[Section]:
    """Every image under every mixture, for every model that changes a tower; outcomes, effects and interactions.

    A model with prompts has a control besides: prompts drawn at random, with the trained ones' norms. Features of every
    mixture go through the model's own head, so the reference of a method with one is the frozen towers under that head.
    Models that differ in their seed alone have a summary together, over seeds and images crossed.
    """
    reasons = {model.key: why_no_causal_test(model.task) for model in study.tuned}
    scalars: dict[str, Any] = {key: {"missing": reason} for key, reason in reasons.items() if reason}
    tests: dict[str, tuple[Rows, dict[str, Any]]] = {}
    for model in study.tuned:
        if reasons[model.key]:
            continue
        title = f"{model.label}: causal test"
        tests[model.key] = _test(study, model, model.key, title, study.images)
        if any(model.prompts) and study.options.control_images:
            few = study.images[spread(len(study.images), study.options.control_images)]
            key, title = f"{model.key}{RANDOM}", f"{model.label}: causal test of random prompts"
            tests[key] = _test(study, model, key, title, few, turn=lambda x: random_prompts(x, study.options.seed))
    predicted = yield from compute_predictions(study)
    found = yield [request for request, _ in tests.values()]
    arrays: dict[str, np.ndarray] = {}
    measured: dict[str, dict[str, Measured]] = {}
    for key, (request, facts) in tests.items():
        rows = found[request.name]
        images, labels = rows["images"], study.split.labels[rows["images"]]
        measured[key] = {t: measure(rows["logits"][:, i], labels) for i, t in enumerate(facts["towers"])}
        arrays[f"factorial/{key}/images"] = images
        arrays |= {f"factorial/{key}/{name}": values for name, values in by_image(measured[key].values()).items()}
        scalars[key] = facts | {"images": len(images)} | _numbers(measured[key], facts)
        if not key.endswith(RANDOM):
            right = _both_right(predicted, key)[images]
            scalars[key]["both_right"] = None
            if right.sum() >= FEWEST_IMAGES:
                own = {"both": measure(rows["logits"][right, 0], labels[right])}
                scalars[key]["both_right"] = {"images": int(right.sum())} | _numbers(own, facts)
    scalars["seeds"] = [
        {"models": keys} | _numbers(_over_seeds([measured[key] for key in keys]), tests[keys[0]][1])
        for keys in seeds_of([model for model in study.tuned if model.key in tests])
    ]
    return arrays, scalars


def _both_right(predicted: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    """Which of the split's images both models get right: no flipped decision selected them."""
    labels = predicted["predictions/labels"]
    return (predicted["predictions/zero_shot"] == labels) & (predicted[f"predictions/{key}"] == labels)


def by_image(measured: Iterable[Measured]) -> dict[str, np.ndarray]:
    """ "correct" uint8, "calibrated" and "log_likelihood" float32 of every image, `[n, towers, K]`."""
    each = [one.values for one in measured]
    return {
        "correct": np.stack([own["accuracy"] > 0 for own in each], axis=1).astype(np.uint8),
        "calibrated": np.stack([own["calibrated"] for own in each], axis=1).astype(np.float32),
        "log_likelihood": np.stack([own["raw"] for own in each], axis=1).astype(np.float32),
    }


def _numbers(measured: Mapping[str, Measured], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Summaries by tower, and what a temperature alone gives."""
    corner, both = 2 ** len(facts["effects"]) - 1, measured["both"]
    by_tower = {tower: summarize_effects(own, facts["streams"], facts["effects"]) for tower, own in measured.items()}
    return {
        "numbers": by_tower,
        "temperature_alone": temperature_alone(both, 0, corner),
        "temperatures": dict(zip(facts["streams"], both.temperatures.tolist(), strict=True)),
        "refitted": both.refitted,
    }


def _over_seeds(several: Sequence[Mapping[str, Measured]]) -> dict[str, Measured]:
    return {tower: over_seeds([measured[tower] for measured in several]) for tower in several[0]}


def seeds_of(models: Sequence[Model]) -> list[list[str]]:
    """Keys of models that differ in their seed alone, where there are several."""
    groups = same_but_for_seed([model.facts() for model in models])
    return [[model["key"] for model in group] for group in groups if len(group) > 1]


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
    streams = corners(effects)
    # The first and the last corner are the runs themselves.
    asked = streams[1:-1]
    towers = ("both", "vision", "text") if all(changed.values()) else ("both",)

    def every(mixed: Mixed) -> jax.Array:
        return jnp.concatenate([mixed.reference[None], mixed.streams, mixed.tuned[None]])

    def of_images(params: Any, tuned: Adaptation, images: jax.Array) -> jax.Array:
        """`[K, B, d]`, or `[K, B, m, d]` of several passes."""
        found = [
            every(mix_images(params, config, images, own, Adaptation(), asked, dtype=dtype)) for own in by_pass(tuned)
        ]
        return found[0] if len(found) == 1 else jnp.stack(found, axis=2)

    @jax.jit
    def of_texts_of_one(
        params: Any, runs: tuple[Adaptation, Adaptation], tokens: TextTokens, rows: jax.Array
    ) -> jax.Array:
        own, plain = (of_texts(adaptation, rows, len(task.texts)) for adaptation in runs)
        return every(mix_texts(params, config, tokens, own, plain, asked, dtype=dtype))

    def of_all_texts(params: Any, runs: tuple[Adaptation, Adaptation]) -> jax.Array:
        """`[K, S · C, d]`, one of the `S` texts of every class after another."""
        found = []
        for rows in np.split(np.arange(len(task.texts)), model.texts):
            tokens = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], task.tokens)
            found.append(of_texts_of_one(params, runs, tokens, rows))
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
    def step(params: Any, learnables: Any, runs: Any, texts: Any, batch: Batch) -> dict[str, jax.Array]:
        views, mask = study.normalize(batch["images"]), batch["mask"]
        images = views[:, 0] if model.crops else views
        if changed["vision"]:
            features = of_images(params, runs[0], images)
        else:
            features = task.classifier.encode_images(params, Adaptation(), images)[None]
        if task.method.conditional:

            def of_image(one: tuple[jax.Array, jax.Array]) -> jax.Array:
                own = turn(task.classifier.adaptation_for(params, learnables, one[1], task.text))
                texts = of_all_texts(params, (own, runs[1]))
                return classify(params, learnables, one[0][:, None], texts, None)[:, :, 0]

            seen = task.classifier.encode_images(params, task.method.adapt(learnables), views)
            logits = jnp.moveaxis(jax.lax.map(of_image, (jnp.moveaxis(features, 1, 0), seen)), 0, 2)
        else:
            logits = classify(params, learnables, features, texts, mask)
        return {"logits": jnp.moveaxis(logits, 2, 0)}  # [B, towers, K, C]

    runs = study.replicate((tuned, reference))
    texts: jax.Array | None = None
    if not changed["text"]:
        texts = task.text_features(study.params, learnables)[None]
    elif not task.method.conditional:
        texts = of_all_texts(study.params, runs)

    def rows(batch: Batch) -> dict[str, jax.Array]:
        return step(study.params, learnables, runs, texts, batch)

    facts = {"effects": effects, "towers": towers, "streams": streams}
    return Rows(f"factorial-{key.replace(':', '-')}", title, indices, rows, crops=model.crops), facts
