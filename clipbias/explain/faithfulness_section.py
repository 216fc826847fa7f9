"""The perturbation test (Chefer et al. 2021): accuracy while patches are removed in the order of each map."""

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip.params import Params
from clipbias.explain.attention_gradients import MapOptions
from clipbias.explain.model import Model
from clipbias.explain.passes import chunk, predictor
from clipbias.explain.perturbation import (
    DIRECTIONS,
    FRACTIONS,
    area_under_curve,
    black_out,
    distinct_rows,
    ranks_to_remove,
)
from clipbias.explain.reductions import OF_TARGET, REDUCTIONS
from clipbias.explain.relevancy import explanations
from clipbias.explain.requests import Batch, Section, Step, SumRequest
from clipbias.explain.results import (
    MAPS,
    Faithfulness,
    MapCurves,
    Missing,
    ModelFaithfulness,
    PerturbationCurve,
    TargetCurves,
)
from clipbias.explain.scope import why_no_maps
from clipbias.explain.statistics import Moments
from clipbias.explain.study import Study, spread
from clipbias.training import mesh as meshes
from clipbias.tuning import Learnables
from clipbias.tuning.task import Text

TARGETS = ("predicted", "true")
IMAGES = 40  # at most so many are perturbed, each of which runs over a hundred times


def compute_faithfulness(study: Study) -> Section[Faithfulness]:
    """Accuracy while patches are removed in the order of each map, for the predicted and the true class."""
    indices = study.images[spread(len(study.images), IMAGES)]
    reasons = {model.key: why_no_maps(model.task) for model in study.models}
    results: dict[str, ModelFaithfulness | Missing] = {
        key: Missing(reason) for key, reason in reasons.items() if reason
    }
    requests = {}
    for model in study.models:
        if not reasons[model.key]:
            step = _perturbation_step(study, model)
            title = f"{model.label}: faithfulness"
            requests[model.key] = SumRequest(f"faithfulness-{model.key}", title, indices, step)
    sums = yield list(requests.values())
    for key, request in requests.items():
        hits = sums[request.name]["hits"]
        results[key] = ModelFaithfulness(count=hits.samples, maps=_curves(np.asarray(hits.mean)))
    return Faithfulness(fractions=np.asarray(FRACTIONS, np.float32), models=results)


def _curves(accuracy: np.ndarray) -> dict[str, MapCurves]:
    """By map, of accuracies `[targets, maps, directions, steps]`."""

    def curve(target: str, place: int, direction: str) -> PerturbationCurve:
        values = accuracy[TARGETS.index(target), place, DIRECTIONS.index(direction)]
        return PerturbationCurve(accuracy=values.astype(np.float32), area=area_under_curve(FRACTIONS, values))

    def targets(place: int, direction: str) -> TargetCurves:
        return TargetCurves(predicted=curve("predicted", place, direction), true=curve("true", place, direction))

    return {
        name: MapCurves(positive=targets(place, "positive"), negative=targets(place, "negative"))
        for place, name in enumerate(MAPS)
    }


def _perturbation_step(study: Study, model: Model) -> Step:
    config = study.clip.config.vision
    task = model.task
    of_model = predictor(study, model)
    key = jax.random.key(study.options.seed)
    counts = np.asarray([round(fraction * config.patches) for fraction in FRACTIONS[1:]])
    # Maps that do not depend on the target are tested once.
    cases = [(name, k) for name in MAPS for k in range(len(TARGETS)) if k == 0 or name in OF_TARGET]
    position = np.asarray([[cases.index((n, k if (n, k) in cases else 0)) for n in MAPS] for k in range(len(TARGETS))])

    @jax.jit
    def explain(
        params: Params, learnables: Learnables, text: Text | None, batch: Batch, logits: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        raw = batch["images"]

        def order(image: jax.Array) -> jax.Array:
            # The order depends on the image alone, not on its batch.
            of_image = jax.random.fold_in(key, image.astype(jnp.uint32).sum())
            return jax.random.uniform(of_image, maps["relevancy"].shape[1:])

        predicted = logits.argmax(-1)
        explained = explanations(
            task,
            params,
            learnables,
            study.normalize(raw),
            targets=jnp.stack([predicted, batch["labels"]], axis=1),
            options=MapOptions(chunk=chunk(model, raw)),
            text=text if model.has_own_head else None,
        )
        maps = {name: explained[name].vision[..., : config.patches] for name in REDUCTIONS}
        maps["random"] = jax.vmap(order)(raw)
        ranks = ranks_to_remove(jnp.stack([maps[name][:, k] for name, k in cases]))
        # A reversed random order is random, too, so one order serves both directions.
        at = cases.index(("random", 0))
        return predicted, ranks.at[at, 1:].set(ranks[at, 0])

    @jax.jit
    def perturbed(raw: jax.Array, which: jax.Array, gone: jax.Array) -> jax.Array:
        return black_out(raw[which], gone, config.patch_size)

    def step(batch: Batch) -> dict[str, Moments]:
        facts = {name: batch[name] for name in ("images", "labels", "mask")}
        logits = of_model.logits(batch["images"])
        ordered = explain(study.params, study.learnables[model.key], of_model.text, batch, logits)
        (predicted, ranks), host = meshes.device_get((ordered, facts))
        # An image without the same patches is classified once: if the predicted class is the true one, both targets
        # share all their images.
        gone = ranks[:, :, None] < counts[:, None, None]  # [maps, directions, steps, B, M]
        images, patches, which = distinct_rows(gone.reshape(-1, *gone.shape[-2:]), host["mask"])
        raw = study.replicate(host["images"])
        seen = which
        if len(images):
            classified = study.in_passes(lambda *rows: of_model.logits(perturbed(raw, *rows)), images, patches)
            seen = classified.argmax(-1)[which]
        hits = (seen == host["labels"]).reshape(gone.shape[:-1])[position]
        untouched = np.broadcast_to(predicted == host["labels"], (*hits.shape[:3], 1, hits.shape[-1]))
        hits = np.moveaxis(np.concatenate([untouched, hits], axis=3), -1, 0).astype(np.float32)
        return {"hits": _moments(*study.replicate((hits, host["mask"])))}

    return step


_moments = jax.jit(Moments.of)
