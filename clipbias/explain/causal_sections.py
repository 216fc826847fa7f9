"""Sections of a study that change the model or the image and classify again: interventions and faithfulness."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import encode_image, encode_text
from clipbias.explain.dataset_sections import text_parts, vision_totals
from clipbias.explain.decomposition import mean_parts
from clipbias.explain.interventions import intervention, twice
from clipbias.explain.perturbation import DIRECTIONS, FRACTIONS, area_under_curve, black_out, ranks_to_remove
from clipbias.explain.reductions import OF_TARGET, REDUCTIONS
from clipbias.explain.relevancy import explanations
from clipbias.explain.results import INTERVENTIONS, MAPS
from clipbias.explain.statistics import Moments
from clipbias.explain.study import Batch, Model, Section, Study
from clipbias.explain.tokens import text_roles, vision_roles

TARGETS = ("predicted", "true")


def compute_interventions(study: Study) -> Section:
    """Accuracy of every tuned model with prompts under every intervention: both towers at once and each alone."""
    scalars = {}
    for model in study.tuned:
        vision, text = (count > 0 for count in model.prompts)
        if not vision and not text:
            continue
        towers = ("both", "vision", "text") if vision and text else ("both",)
        totals = study.accumulate(
            f"interventions-{model.key}",
            f"{model.label}: interventions",
            study.spread(study.options.images),
            _intervention_step(study, model, towers),
        )
        images = totals["hits"].samples
        correct = np.rint(np.asarray(totals["hits"].mean) * images).astype(int)
        gain, error = 100 * np.asarray(totals["gain"].mean), 100 * totals["gain"].standard_error
        scalars[model.key] = {
            tower: {
                name: {
                    "accuracy": 100 * int(correct[i, j]) / images,
                    "correct": int(correct[i, j]),
                    "images": images,
                    "gain": float(gain[i, j]),
                    "gain_error": float(error[i, j]),
                }
                for j, name in enumerate(INTERVENTIONS)
            }
            for i, tower in enumerate(towers)
        }
        together = totals["interaction"]
        for i, tower in enumerate(towers):
            scalars[model.key][tower]["interaction"] = {
                "gain": 100 * float(together.mean[i]),
                "gain_error": 100 * float(together.standard_error[i]),
            }
    return {}, scalars


def _intervention_step(study: Study, model: Model, towers: tuple[str, ...]) -> Any:
    config, task, (v, t) = study.clip.config, model.task, model.prompts
    dtype, learnables = jnp.dtype(task.classifier.dtype), study.learnables[model.key]
    vision_means = _means(vision_totals(study, model)) if v else {}
    text_means = _means(text_parts(study, model)) if t else {}

    def image_features(params: Any, learnables: Any, means: Any, images: jax.Array) -> jax.Array:
        adaptation = task.method.adapt(learnables)
        if not v:
            return task.classifier.encode_images(params, adaptation, images)[None]
        roles = vision_roles(config.vision, v)
        found = []
        for name in INTERVENTIONS:
            change = intervention(name, roles, means.get(name))
            x = twice(images) if name == "frozen" else images
            features = encode_image(params, config, x, adaptation, intervene=change, dtype=dtype)[0]
            found.append(features[-images.shape[0] :])
        return jnp.stack(found)

    @jax.jit
    def text_features(params: Any, learnables: Any, means: Any) -> jax.Array:
        if not t:
            return task.text_features(params, learnables)[None]
        tokens, roles = jax.tree.map(jnp.asarray, task.tokens), text_roles(task)
        adaptation, found = task.method.adapt(learnables), []
        for name in INTERVENTIONS:
            change = intervention(name, roles, means.get(name))
            own, context = tokens, adaptation.text_context
            if name == "frozen":
                own = jax.tree.map(twice, tokens)
                context = twice(context) if context is not None and context.ndim == 3 else context
            own_adaptation = dataclasses.replace(adaptation, text_context=context)
            features = encode_text(params, config, own, own_adaptation, intervene=change, dtype=dtype)[0]
            found.append(features[-tokens.ids.shape[0] :])
        return jnp.stack(found)

    @jax.jit
    def step(params: Any, learnables: Any, means: Any, classes: jax.Array, batch: Batch) -> dict[str, Moments]:
        features = image_features(params, learnables, means, study.normalize(batch["images"]))
        every = jnp.arange(len(INTERVENTIONS))
        unchanged = jnp.full(len(INTERVENTIONS), INTERVENTIONS.index("full"))
        pairs = {"both": (every, every), "vision": (every, unchanged), "text": (unchanged, every)}
        hits = []
        for tower in towers:
            # A tower without prompts has one variant, which goes with every one of the other.
            f, g = (
                x[jnp.minimum(index, len(x) - 1)] for x, index in zip((features, classes), pairs[tower], strict=True)
            )
            logits = jax.vmap(lambda f, g: task.classifier.head(params, learnables, f, g))(f, g)
            hits.append(logits.argmax(-1) == batch["labels"])
        right = jnp.moveaxis(jnp.stack(hits), 2, 0).astype(jnp.float32)
        # Image by image against "none": both see the same images, and most of the chance in them cancels.
        gain = right - right[..., INTERVENTIONS.index("none"), None]
        full, values, weights = (INTERVENTIONS.index(n) for n in ("full", "values_only", "reweighting_only"))
        together = gain[..., full] - gain[..., values] - gain[..., weights]
        found = {"hits": right, "gain": gain, "interaction": together}
        return {name: Moments.of(value, batch["mask"]) for name, value in found.items()}

    classes = text_features(study.params, learnables, text_means)
    return lambda batch: step(study.params, learnables, vision_means, classes, batch)


def _means(totals: Mapping[str, Moments]) -> dict[str, np.ndarray]:
    """The dataset means of the prompt part by the interventions that use them."""
    return dict(zip(("mean_per_token", "mean"), mean_parts(totals["heads"]), strict=True))


def compute_faithfulness(study: Study) -> Section:
    """Accuracy while patches are removed in the order of each map, for the predicted and the true class."""
    arrays: dict[str, np.ndarray] = {"faithfulness/fractions": np.asarray(FRACTIONS, np.float32)}
    scalars: dict[str, Any] = {}
    indices = study.spread(study.options.faithfulness_images)
    for model in study.models:
        # Sums over other maps, of a study that an earlier version began, cannot be continued.
        name = f"faithfulness-{len(MAPS)}-maps-{model.key}"
        totals = study.accumulate(name, f"{model.label}: faithfulness", indices, _perturbation_step(study, model))
        accuracy = np.asarray(totals["hits"].mean)
        area: dict[str, Any] = {}
        for i, name in enumerate(MAPS):
            for j, direction in enumerate(DIRECTIONS):
                for k, target in enumerate(TARGETS):
                    curve = accuracy[k, i, j]
                    arrays[f"faithfulness/{model.key}/{name}/{direction}/{target}"] = curve.astype(np.float32)
                    found = area.setdefault(name, {}).setdefault(direction, {})
                    found[target] = area_under_curve(FRACTIONS, curve)
        scalars[model.key] = {"count": totals["hits"].samples, "area": area}
    return arrays, scalars


def _perturbation_step(study: Study, model: Model) -> Any:
    config, task = study.clip.config.vision, model.task
    counts = jnp.asarray([round(fraction * config.patches) for fraction in FRACTIONS[1:]])
    # Maps that do not depend on the target are tried once.
    tried = [(name, k) for name in MAPS for k in range(len(TARGETS)) if k == 0 or name in OF_TARGET]
    position = np.asarray([[tried.index((n, k if (n, k) in tried else 0)) for n in MAPS] for k in range(len(TARGETS))])

    @jax.jit
    def step(params: Any, learnables: Any, classes: jax.Array, key: jax.Array, batch: Batch) -> dict[str, Moments]:
        raw, labels = batch["images"], batch["labels"]

        def classify(raw: jax.Array) -> jax.Array:
            return task.logits(params, learnables, study.normalize(raw), classes).argmax(-1)

        def order(image: jax.Array) -> jax.Array:
            # Of each image by itself, whatever the batch it comes in.
            own = jax.random.fold_in(key, image.astype(jnp.uint32).sum())
            return jax.random.uniform(own, maps["relevancy"].shape[1:])

        predicted = classify(raw)
        found = explanations(
            *(task, params, learnables, study.normalize(raw), jnp.stack([predicted, labels], axis=1)),
            start_layer=study.options.start_layer,
            text=classes,
        )
        maps = {name: found[name].vision[..., : config.patches] for name in REDUCTIONS}
        maps["random"] = jax.vmap(order)(raw)
        ranks = ranks_to_remove(jnp.stack([maps[name][:, k] for name, k in tried]))

        def hits_of(rank: jax.Array) -> jax.Array:
            return jax.lax.map(lambda n: classify(black_out(raw, rank < n, config.patch_size)) == labels, counts)

        # Orders and fractions one after the other, so that one forward pass is compiled and held.
        hits = jax.lax.map(hits_of, ranks.reshape(-1, *ranks.shape[-2:]))
        hits = hits.reshape(*ranks.shape[:2], *hits.shape[1:])[position]
        untouched = jnp.broadcast_to(predicted == labels, (*hits.shape[:3], 1, raw.shape[0]))
        hits = jnp.concatenate([untouched, hits], axis=3)
        return {"hits": Moments.of(jnp.moveaxis(hits, -1, 0).astype(jnp.float32), batch["mask"])}

    learnables = study.learnables[model.key]
    classes = task.text_features(study.params, learnables)
    key = jax.random.key(study.options.seed)
    return lambda batch: step(study.params, learnables, classes, key, batch)
