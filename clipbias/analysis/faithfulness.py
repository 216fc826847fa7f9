"""The perturbation test of maps: accuracy while patches are removed in a map's order (Chefer et al. 2021).

A removed patch is black before normalisation. "positive" removes the highest values first: under a faithful map,
accuracy falls fast. "negative" removes the lowest values first: under a faithful map, accuracy stays.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.analysis.model import Model, why_no_maps
from clipbias.analysis.relevancy import OF_TARGET, REDUCTIONS, MapOptions, explanations
from clipbias.analysis.results import Missing
from clipbias.analysis.sections import Section
from clipbias.analysis.statistics import Moments
from clipbias.analysis.study import Batch, Computation, Request, Step, Study, divide, for_each, spread
from clipbias.clip.params import Params
from clipbias.training import placement
from clipbias.tuning import Learnables
from clipbias.tuning.task import Text

MAPS = ("relevancy", "attention", "rollout", "legrad", "grad_eclip", "random")


@dataclasses.dataclass(frozen=True)
class PerturbationCurve:
    """Accuracy while patches are removed, `[S]`, and the area under it."""

    accuracy: np.ndarray
    area: float


@dataclasses.dataclass(frozen=True)
class ModelFaithfulness:
    """Perturbation test of one model, by map of `MAPS`, direction and target class ("predicted", "true")."""

    count: int
    maps: dict[str, dict[str, dict[str, PerturbationCurve]]]


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """Perturbation tests; `fractions [S]` are shares of removed patches."""

    fractions: np.ndarray
    models: dict[str, ModelFaithfulness | Missing]


FRACTIONS = tuple(round(0.1 * step, 1) for step in range(10))
DIRECTIONS = ("positive", "negative")


def ranks_to_remove(maps: jax.Array) -> jax.Array:
    """Ranks patches in both `DIRECTIONS`: maps `[…, B, M]` to the rank of removal, from 0, `[…, 2, B, M]`."""
    # Stable: equal patches go by position, so that a map gives the same order on every device. A second argsort turns
    # the order of patches into the rank of each patch.
    return jnp.argsort(jnp.argsort(jnp.stack([-maps, maps], axis=-3), axis=-1, stable=True), axis=-1)


def distinct_rows(gone: np.ndarray, read: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists distinct pairs of an image and its removed patches `gone [K, B, M]` in `K` tries (map, step and class).

    Returns images `[P]`, removed patches `[P, M]`, and the pair of each try `[K, B]`, 0 where `read [B]` is false.
    """
    # Padded and unreadable images have no tries. One pair is classified once, whichever maps and classes share it.
    images = np.flatnonzero(read)
    which = np.zeros(gone.shape[:2], np.int64)
    numbers = np.broadcast_to(images[:, None], (len(gone), len(images), 1))
    rows = np.concatenate([numbers, gone[:, images]], axis=-1, dtype=np.int32)
    # Sorting rows puts all tries of an image together, since its number is their first column.
    different, inverse = np.unique(rows.reshape(-1, rows.shape[-1]), axis=0, return_inverse=True)
    which[:, images] = inverse.reshape(len(gone), len(images))
    return different[:, 0], different[:, 1:].astype(bool), which


def area_under_curve(fractions: Sequence[float], accuracy: np.ndarray) -> float:
    """Computes the mean height of the accuracy curve `[S]` over the removed share, by trapezoids."""
    # Divided by the removed range, so that areas of other fractions are comparable.
    x = np.asarray(fractions, np.float64)
    return float(np.trapezoid(accuracy, x) / (x[-1] - x[0]))


TARGETS = ("predicted", "true")
IMAGES = 40  # at most, since each runs over a hundred times


def compute_faithfulness(study: Study) -> Computation[Faithfulness]:
    """Computes accuracy while patches are removed in the order of each map, for the predicted and the true class."""
    indices = study.images[spread(len(study.images), IMAGES)]
    models, left_out = divide(study.models, why_no_maps)
    by_model: dict[str, ModelFaithfulness | Missing] = {**left_out}

    def request_of(model: Model) -> Request:
        step = _perturbation_step(study, model)
        return Request(f"faithfulness-{model.key}", f"{model.label}: faithfulness", indices, step)

    for key, sums in (yield from for_each(models, request_of)).items():
        hits = sums["hits"]
        by_model[key] = ModelFaithfulness(count=hits.samples, maps=_curves(np.asarray(hits.mean)))
    return Faithfulness(fractions=np.asarray(FRACTIONS, np.float32), models=by_model)


FAITHFULNESS = Section(
    name="faithfulness",
    title="Whether the maps point at what matters",
    result=Faithfulness,
    compute=compute_faithfulness,
)


def _curves(accuracy: np.ndarray) -> dict[str, dict[str, dict[str, PerturbationCurve]]]:
    """Returns curves by map, direction and target; accuracies are `[targets, maps, directions, steps]`."""

    def curve(*place: int) -> PerturbationCurve:
        return PerturbationCurve(accuracy[place].astype(np.float32), area_under_curve(FRACTIONS, accuracy[place]))

    return {
        name: {
            direction: {target: curve(k, number, way) for k, target in enumerate(TARGETS)}
            for way, direction in enumerate(DIRECTIONS)
        }
        for number, name in enumerate(MAPS)
    }


def _perturbation_step(study: Study, model: Model) -> Step:
    config = study.clip.config.vision
    task = model.task
    of_model = study.predictor(model)
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
            options=MapOptions(chunk=model.chunk(raw)),
            text=text if model.has_own_head else None,
        )
        maps = {name: explained[name].vision[..., : config.patches] for name in REDUCTIONS}
        maps["random"] = jax.vmap(order)(raw)
        ranks = ranks_to_remove(jnp.stack([maps[name][:, k] for name, k in cases]))
        # A reversed random order is random too: one order serves both directions, and halves its runs.
        at = cases.index(("random", 0))
        return predicted, ranks.at[at, 1:].set(ranks[at, 0])

    @jax.jit
    def perturbed(raw: jax.Array, which: jax.Array, gone: jax.Array) -> jax.Array:
        images = raw[which]
        patch, grid = config.patch_size, config.grid
        mask = gone.reshape(len(images), grid, grid).repeat(patch, axis=1).repeat(patch, axis=2)
        if margin := config.image_size - grid * patch:  # behind the last whole patch, which the tower does not read
            mask = jnp.pad(mask, [(0, 0), (0, margin), (0, margin)])
        return jnp.where(mask[..., None], jnp.zeros((), images.dtype), images)

    def step(batch: Batch) -> dict[str, Moments]:
        logits = of_model.logits(batch["images"], batch["mask"])
        ordered = explain(study.params, study.learnables[model.key], of_model.text, batch, logits)
        facts = {name: batch[name] for name in ("images", "labels", "mask")}
        (predicted, ranks), host = placement.device_get((ordered, facts))
        # Each image with the same patches removed is classified once. Where the predicted class is the true class, all
        # tries of the second target repeat those of the first.
        # A patch is gone at a step if its rank of removal is below the step's count.
        gone = ranks[:, :, None] < counts[:, None, None]  # [maps, directions, steps, B, M]
        images, patches, which = distinct_rows(gone.reshape(-1, *gone.shape[-2:]), host["mask"])
        raw = study.replicate(host["images"])
        seen = which
        if len(images):
            # Tries of a batch are far more than a batch: they run in batches of the study's size.
            classified = study.in_passes(
                lambda which, gone, mask: of_model.logits(perturbed(raw, which, gone), mask), images, patches
            )
            seen = classified.argmax(-1)[which]
        # The accuracy of the true class counts, whichever class the map explains.
        hits = (seen == host["labels"]).reshape(gone.shape[:-1])[position]
        # Fraction 0 is the model's own prediction, computed already.
        untouched = np.broadcast_to(predicted == host["labels"], (*hits.shape[:3], 1, hits.shape[-1]))
        hits = np.moveaxis(np.concatenate([untouched, hits], axis=3), -1, 0).astype(np.float32)
        return {"hits": _moments(*study.replicate((hits, host["mask"])))}

    return step


_moments = jax.jit(Moments.of)
