"""Sections of a study that go over a dataset: predictions and relevancy."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.explain.attention import kind_sums
from clipbias.explain.model import Model
from clipbias.explain.passes import classify, relevancy_maps
from clipbias.explain.results import GROUPS, TEXT_KINDS
from clipbias.explain.scope import why_no_maps
from clipbias.explain.statistics import Moments, Totals, merge, normalise_maps, rank_correlation, total_variation
from clipbias.explain.stream import Batch, Reading, Rows, Sums
from clipbias.explain.streaming import Relevancy
from clipbias.explain.study import Section, Study
from clipbias.explain.tokens import index_kinds, prompt_text, text_kinds


def compute_predictions(study: Study) -> Reading[dict[str, np.ndarray]]:
    """The class that each model gives every image; -1 for those that could not be read, or that not all models saw.

    An evaluation has seen the whole split, a study that images are limited for only so many of them.
    """
    predicted, requests = {}, {}
    for model in study.models:
        known = study.known(model)
        if known is not None and ((known >= 0).all() or study.options.on_image_error == "skip"):
            predicted[model.key] = known
        else:
            requests[model.key] = _prediction(study, model)
    found = yield list(requests.values())
    for key, request in requests.items():
        rows = found[request.name]
        predicted[key] = np.full(len(study.split), -1, np.int32)
        predicted[key][rows["images"]] = rows["predicted"]
    seen = np.min(list(predicted.values()), axis=0) >= 0
    arrays = {f"predictions/{model.key}": np.where(seen, predicted[model.key], -1) for model in study.models}
    return {"predictions/labels": np.asarray(study.split.labels, np.int32)} | {
        name: own.astype(np.int32) for name, own in arrays.items()
    }


def _prediction(study: Study, model: Model) -> Rows:
    def step(batch: Batch) -> dict[str, jax.Array]:
        return {"predicted": _largest(classify(study, model, batch["images"], batch["mask"]))}

    title = f"{model.label}: predictions"
    return Rows(f"predictions-{model.key}", title, study.images, step, crops=model.crops)


@jax.jit
def _largest(logits: jax.Array) -> jax.Array:
    return logits.argmax(-1).astype("int32")


def corrected(arrays: dict[str, np.ndarray], model: Model) -> np.ndarray:
    """Numbers of the images that zero-shot gets wrong and the tuned model right."""
    labels, before = arrays["predictions/labels"], arrays["predictions/zero_shot"]
    return np.flatnonzero((before >= 0) & (before != labels) & (arrays[f"predictions/{model.key}"] == labels))


def relevancy_groups(study: Study, predicted: dict[str, np.ndarray], model: Model) -> np.ndarray:
    """Which images belong to which of `GROUPS`: bool `[n, 3]`.

    The corrected ones are all that are known; the control and "all" are spread over the split where the options limit
    images.
    """
    labels = predicted["predictions/labels"]
    groups = np.zeros((len(labels), len(GROUPS)), bool)
    groups[corrected(predicted, model), GROUPS.index("corrected")] = True
    spread = study.images
    both = (predicted["predictions/zero_shot"] == labels) & (predicted[f"predictions/{model.key}"] == labels)
    groups[spread, GROUPS.index("both_right")] = both[spread]
    groups[spread, GROUPS.index("all")] = True
    return groups


def compute_relevancy(study: Study) -> Reading[Section]:
    """Fig. 2 and 3: both models' normalised rows for the true class, for every group of images."""
    predicted = yield from compute_predictions(study)
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, Any] = {}
    reasons = {model.key: why_no_maps(study.worded.task) or why_no_maps(model.task) for model in study.tuned}
    scalars |= {key: {"missing": reason} for key, reason in reasons.items() if reason}
    followed = [model for model in study.tuned if not reasons[model.key]]
    if not followed:
        return arrays, scalars
    groups = {model.key: relevancy_groups(study, predicted, model) for model in followed}
    # Images that the same models are asked about go together, so that zero-shot's maps are computed once for all.
    asked = np.stack([own.any(1) for own in groups.values()], axis=1)
    requests = []
    for pattern in np.unique(asked[asked.any(1)], axis=0):
        models = [model for model, own in zip(followed, pattern, strict=True) if own]
        images = np.flatnonzero((asked == pattern).all(1))
        name, title = f"relevancy-{''.join(map(str, pattern.astype(int)))}", f"relevancy of {len(models)} models"
        requests.append(Sums(name, title, images, _relevancy_step(study, models, groups)))
    found = yield requests
    totals: dict[str, Totals] = {model.key: {} for model in followed}
    for sums in found.values():
        for model in followed:
            start = f"{model.key}/"
            own = {name.removeprefix(start): x for name, x in sums.items() if name.startswith(start)}
            totals[model.key] = merge(totals[model.key], own)
    for model in followed:
        about: dict[str, Any] = {"normalisation": study.options.normalisation}
        for name, moments in totals[model.key].items():
            if moments.samples:
                arrays |= moments.arrays(f"relevancy/{model.key}/{name}")
        for group in GROUPS:
            about[group] = {"count": totals[model.key][f"{group}/order"].samples}
        for side, shown in (("zero_shot", study.worded), ("tuned", model)):
            kinds = index_kinds(text_kinds(shown.task))
            about[side] = {"text": prompt_text(shown.task), "texts": shown.texts, "index_kinds": kinds}
        scalars[model.key] = about
    return arrays, scalars


def _kinds_by_class(model: Model) -> np.ndarray:
    """The kinds of the tokens of all a class' texts, one after another: `[C, S · N]`."""
    kinds = text_kinds(model.task)
    by_text = kinds.reshape(model.texts, -1, kinds.shape[-1])
    return by_text.swapaxes(0, 1).reshape(by_text.shape[1], -1)


def _relevancy_step(study: Study, tuned: Sequence[Model], groups: dict[str, np.ndarray]) -> Any:
    """Averages of every tuned model and of zero-shot beside it, `{key}/{group}/{what}`."""
    normalisation, patches = study.options.normalisation, study.clip.config.vision.patches

    @jax.jit
    def summed(
        maps: dict[str, Relevancy], kinds: dict[str, jax.Array], members: jax.Array, batch: Batch
    ) -> dict[str, Moments]:
        values, among_patches = {}, []
        for side, own in maps.items():
            kind = kinds[side][batch["labels"]]
            vision = normalise_maps(own.vision, normalisation)
            # Of several texts of a class the row is that of all their tokens together, added up by token index.
            text = normalise_maps(own.text.reshape(kind.shape), normalisation, kind < TEXT_KINDS.index("eos"))
            among_patches.append(own.vision[:, :patches])
            values[f"vision/{side}"] = vision
            values[f"text/{side}"] = text.reshape(len(text), -1, own.text.shape[-1]).sum(1)
            by_source = jnp.stack([vision[:, :patches].sum(-1), vision[:, patches:].sum(-1)], axis=-1)
            values[f"vision_kinds/{side}"] = by_source
            values[f"text_kinds/{side}"] = kind_sums(text, kind)[:, : TEXT_KINDS.index("eos")]
        values["order"] = rank_correlation(*among_patches)[:, None]
        values["variation"] = total_variation(*among_patches)[:, None]
        counted = batch["mask"][:, None] & members[batch["numbers"]]
        return {
            f"{group}/{name}": Moments.of(value, counted[:, i])
            for i, group in enumerate(GROUPS)
            for name, value in values.items()
        }

    models = (study.worded, *tuned)
    kinds = [study.replicate(_kinds_by_class(model)) for model in models]
    members = study.replicate({model.key: groups[model.key] for model in tuned})

    def step(batch: Batch) -> dict[str, Moments]:
        maps = [relevancy_maps(study, model, batch["images"], batch["labels"])[0] for model in models]
        found: dict[str, Moments] = {}
        for model, own, kind in zip(tuned, maps[1:], kinds[1:], strict=True):
            sides = {"zero_shot": maps[0], "tuned": own}
            sums = summed(sides, {"zero_shot": kinds[0], "tuned": kind}, members[model.key], batch)
            found |= {f"{model.key}/{name}": moments for name, moments in sums.items()}
        return found

    return step
