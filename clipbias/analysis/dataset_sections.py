"""Sections of a study that go over a dataset: predictions and relevancy."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.analysis.attention import type_sums
from clipbias.analysis.model import Model, why_no_maps
from clipbias.analysis.relevancy import Relevancy, relevancy
from clipbias.analysis.results import CHANGES, TEXT_TYPES, Average, Missing, Predictions
from clipbias.analysis.sections import Section
from clipbias.analysis.statistics import Moments, Totals, divided_by_sum, merge, rank_correlation, total_variation
from clipbias.analysis.study import Batch, Computation, Request, Step, Study, at_numbers, for_each
from clipbias.analysis.words import index_types, prompt_text, text_types
from clipbias.clip.params import Params
from clipbias.data import Split
from clipbias.sentences import counted
from clipbias.tuning import Learnables
from clipbias.tuning.task import Text

GROUPS = ("corrected", "both_right", "all")
VISION_TYPES = ("patches", "prompts")


@dataclasses.dataclass(frozen=True)
class BothModels:
    """Averages of zero-shot and of the tuned model over the same samples."""

    zero_shot: Average
    tuned: Average


@dataclasses.dataclass(frozen=True)
class RelevancyGroup:
    """Relevancy for the true class over one group of images."""

    count: int
    vision: BothModels  # `[M + V]`: patches row by row, then prompts (zero-shot: `V = 0`)
    text: BothModels  # `[N]` by token index, 0 behind the text's end; a sum over the texts of a class
    vision_types: BothModels  # `[2]`, sums by `VISION_TYPES`
    text_types: BothModels  # `[5]`, sums by `TEXT_TYPES[:5]`
    # `[1]`, between the two models' rows over the patches:
    order: Average  # rank correlation
    variation: Average  # total variation


@dataclasses.dataclass(frozen=True)
class RelevancyText:
    text: str
    texts: int  # of each class
    index_types: tuple[str, ...]  # token type at each index, "" where it differs by class


@dataclasses.dataclass(frozen=True)
class RelevancyGroups:
    """Relevancy over the groups of `GROUPS`; a group without images is `None`."""

    zero_shot: RelevancyText
    tuned: RelevancyText
    corrected: RelevancyGroup | None  # images that zero-shot gets wrong and the tuned model right
    both_right: RelevancyGroup | None  # the control
    all: RelevancyGroup | None

    @property
    def groups(self) -> dict[str, RelevancyGroup]:
        """Groups with images, by name."""
        return {name: group for name in GROUPS if (group := getattr(self, name)) is not None}

    @property
    def corrected_count(self) -> int:
        return 0 if self.corrected is None else self.corrected.count


def compute_predictions(study: Study) -> Computation[Predictions]:
    """Predicts every image's class by every model; -1 if the image is unreadable or lacks a model's prediction."""
    # Stored predictions of an evaluation cover the whole split, others the study's images.
    predicted: dict[str, np.ndarray] = {}
    for model in study.models:
        # Stored predictions serve where they are complete, or where unreadable images may be skipped anyway.
        known = study.known(model)
        if known is not None and ((known >= 0).all() or study.options.on_image_error == "skip"):
            predicted[model.key] = known
    unknown = [model for model in study.models if model.key not in predicted]
    results = yield from for_each(unknown, lambda model: prediction_request(study, model, f"predictions-{model.key}"))
    predicted |= {key: at_numbers(rows, "predicted", len(study.split), -1) for key, rows in results.items()}
    # All models are compared on the same images.
    seen = np.min(list(predicted.values()), axis=0) >= 0
    return Predictions(
        labels=np.asarray(study.split.labels, np.int32),
        models={model.key: np.where(seen, predicted[model.key], -1).astype(np.int32) for model in study.models},
    )


def prediction_request(
    study: Study, model: Model, name: str, *, images: np.ndarray | None = None, split: Split | None = None
) -> Request:
    """Requests the classes "predicted" by a model. Default: of the study's images."""

    def step(batch: Batch) -> dict[str, jax.Array]:
        return {"predicted": _largest(study.predictor(model).logits(batch["images"], batch["mask"]))}

    indices = study.images if images is None else images
    return Request(name, f"{model.label}: predictions", indices, step, split=split, crops=model.crops)


PREDICTIONS = Section(name="predictions", title="Class by class", result=Predictions, compute=compute_predictions)


@jax.jit
def _largest(logits: jax.Array) -> jax.Array:
    return logits.argmax(-1).astype("int32")


def corrected(predictions: Predictions, model: Model) -> np.ndarray:
    """Returns the numbers of the images that zero-shot gets wrong and the tuned model right."""
    return np.flatnonzero(predictions.changes(model.key) == CHANGES.index("wrong → right"))


def relevancy_groups(study: Study, predictions: Predictions, model: Model) -> np.ndarray:
    """Assigns images to `GROUPS`: bool `[n, 3]`."""
    # Corrected images are few, so all of the split are taken; the other groups keep to the study's images.
    groups = np.zeros((len(predictions.labels), len(GROUPS)), bool)
    groups[corrected(predictions, model), GROUPS.index("corrected")] = True
    both = predictions.changes(model.key) == CHANGES.index("both right")
    groups[study.images, GROUPS.index("both_right")] = both[study.images]
    groups[study.images, GROUPS.index("all")] = True
    return groups


def relevancy_maps(study: Study, model: Model, images: jax.Array, targets: jax.Array) -> Relevancy:
    """Computes the relevancy of raw images `[B, R, R, 3]` for a class of each, `[B]`."""

    def maps(
        params: Params, learnables: Learnables, text: Text | None, images: jax.Array, targets: jax.Array
    ) -> Relevancy:
        return relevancy(
            model.task, params, learnables, study.normalize(images), targets, chunk=model.chunk(images), text=text
        )

    # The method's own head needs the texts of all classes, which are encoded once for all batches.
    text = study.predictor(model).text if model.has_own_head else None
    return study.program("relevancy", model, maps)(study.params, study.learnables[model.key], text, images, targets)


def why_no_relevancy(study: Study, model: Model) -> str:
    """Returns why a model's relevancy is not compared with zero-shot's, or ""."""
    return why_no_maps(study.worded.task) or why_no_maps(model.task)


def relevancy_totals(study: Study) -> Computation[dict[str, dict[str, Any]]]:
    """Computes the relevancy of both models, by model key.

    Returns moments `[groups, …]` by quantity, rows of images as `each/{quantity} [n, …]`, NaN for other images, and
    `corrected [n]`, which of them zero-shot gets wrong and the model right.
    """
    predictions = yield from compute_predictions(study)
    models = [model for model in study.tuned if not why_no_relevancy(study, model)]
    if not models:
        return {}
    if study.worded is not study.zero_shot:
        # Zero-shot's maps are those of the paper's text, so this text also says which images zero-shot gets wrong.
        (rows,) = (yield [prediction_request(study, study.worded, "predictions-worded")]).values()
        worded = at_numbers(rows, "predicted", len(study.split), -1)
        predictions = dataclasses.replace(predictions, models={**predictions.models, study.zero_shot.key: worded})
    groups = {model.key: relevancy_groups(study, predictions, model) for model in models}
    # Images that the same models need go together, so that zero-shot's maps are computed once for all.
    needed = np.stack([members.any(1) for members in groups.values()], axis=1)
    requests = []
    for pattern in np.unique(needed[needed.any(1)], axis=0):
        group = [model for model, is_needed in zip(models, pattern, strict=True) if is_needed]
        images = np.flatnonzero((needed == pattern).all(1))
        name = f"relevancy-{''.join(map(str, pattern.astype(int)))}"
        step = _relevancy_step(study, group, groups)
        requests.append(Request(name, f"relevancy of {counted(len(group), 'model')}", images, step))
    results = yield requests
    totals: dict[str, dict[str, Any]] = {}
    for model in models:
        averages: Totals = {}
        each: dict[str, np.ndarray] = {}
        for result in results.values():
            for name, value in result.items():
                key, _, quantity = name.partition("/")
                if key == model.key and isinstance(value, Moments):
                    averages = merge(averages, {quantity: value})
                elif key == model.key:
                    empty = np.full((len(study.split), *value.shape[1:]), np.nan, np.float32)
                    each.setdefault(quantity, empty)[result["images"]] = value
        totals[model.key] = averages | each | {"corrected": groups[model.key][:, GROUPS.index("corrected")]}
    return totals


def compute_relevancy(study: Study) -> Computation[dict[str, RelevancyGroups | Missing]]:
    """Computes Fig. 2 and 3: both models' normalised rows for the true class, for every group of images."""
    every = yield from relevancy_totals(study)
    by_model: dict[str, RelevancyGroups | Missing] = {}
    for model in study.tuned:
        if model.key not in every:
            by_model[model.key] = Missing(why_no_relevancy(study, model))
            continue
        totals = {name: value for name, value in every[model.key].items() if isinstance(value, Moments)}
        groups = {group: _relevancy_group(jax.tree.map(lambda x, i=i: x[i], totals)) for i, group in enumerate(GROUPS)}
        by_model[model.key] = RelevancyGroups(_relevancy_text(study.worded), _relevancy_text(model), **groups)
    return by_model


RELEVANCY = Section(
    name="relevancy",
    title="Which tokens and patches count",
    result=dict[str, RelevancyGroups | Missing],
    compute=compute_relevancy,
)


def _relevancy_text(model: Model) -> RelevancyText:
    return RelevancyText(prompt_text(model.task), model.texts, tuple(index_types(text_types(model.task))))


def _relevancy_group(totals: Totals) -> RelevancyGroup | None:
    if not totals or not totals["order"].samples:
        return None
    both = {
        name: BothModels(zero_shot=totals[f"{name}/zero_shot"].average, tuned=totals[f"{name}/tuned"].average)
        for name in ("vision", "text", "vision_types", "text_types")
    }
    order, variation = totals["order"], totals["variation"]
    return RelevancyGroup(count=order.samples, **both, order=order.average, variation=variation.average)


def _relevancy_step(study: Study, explained: Sequence[Model], groups: Mapping[str, np.ndarray]) -> Step:
    patches = study.clip.config.vision.patches

    @jax.jit
    def summed(
        maps: dict[str, Relevancy], token_types: dict[str, jax.Array], members: jax.Array, batch: Batch
    ) -> dict[str, Any]:
        quantities: dict[str, jax.Array] = {}
        among_patches = []
        for side, of_side in maps.items():
            types = token_types[side][batch["labels"]]
            vision = divided_by_sum(of_side.vision)
            # All texts of a class are one row of tokens, divided by one sum: a text without relevancy counts 0.
            text = divided_by_sum(of_side.text.reshape(types.shape), types < TEXT_TYPES.index("eos"))
            # Order and variation compare patches alone, since zero-shot has no prompts.
            among_patches.append(of_side.vision[:, :patches])
            quantities[f"vision/{side}"] = vision
            quantities[f"text/{side}"] = text.reshape(len(text), -1, of_side.text.shape[-1]).sum(1)
            # Zero-shot has no prompts: its second share is 0, and both models have the same columns.
            by_source = jnp.stack([vision[:, :patches].sum(-1), vision[:, patches:].sum(-1)], axis=-1)
            quantities[f"vision_types/{side}"] = by_source
            quantities[f"text_types/{side}"] = type_sums(text, types)[:, : TEXT_TYPES.index("eos")]
        quantities["order"] = rank_correlation(*among_patches)[:, None]
        quantities["variation"] = total_variation(*among_patches)[:, None]
        # An image may be in several groups; the mask over groups counts it in each.
        counted = batch["mask"][:, None] & members[batch["numbers"]]
        # Rows of images serve the observations, whose bootstrap draws images.
        each = {f"each/{name}": quantities[name] for name in ("text_types/zero_shot", "text_types/tuned", "variation")}
        # All groups at once, `[groups, …]`: group by group, the program would have three times the parts to compile.
        return each | {name: Moments.of(value[:, None], counted) for name, value in quantities.items()}

    models = (study.worded, *explained)
    types = []  # of all texts of a class, text by text: `[C, S · N]`
    for model in models:
        by_text = text_types(model.task).reshape(model.texts, len(model.task.class_names), -1)
        types.append(study.replicate(by_text.swapaxes(0, 1).reshape(len(model.task.class_names), -1)))
    members = study.replicate({model.key: groups[model.key] for model in explained})

    def step(batch: Batch) -> dict[str, Any]:
        maps = [relevancy_maps(study, model, batch["images"], batch["labels"]) for model in models]
        seen: dict[str, Any] = {}
        for model, of_model, own_types in zip(explained, maps[1:], types[1:], strict=True):
            sides = {"zero_shot": maps[0], "tuned": of_model}
            sums = summed(sides, {"zero_shot": types[0], "tuned": own_types}, members[model.key], batch)
            seen |= {f"{model.key}/{name}": value for name, value in sums.items()}
        return seen

    return step
