"""The perturbation test (Chefer et al. 2021): accuracy while patches are removed in the order of each map."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.explain.perturbation import DIRECTIONS, FRACTIONS, area_under_curve, black_out, ranks_to_remove
from clipbias.explain.reductions import OF_TARGET, REDUCTIONS
from clipbias.explain.relevancy import explanations
from clipbias.explain.results import MAPS
from clipbias.explain.statistics import Moments
from clipbias.explain.study import Batch, Model, Section, Study

TARGETS = ("predicted", "true")


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
