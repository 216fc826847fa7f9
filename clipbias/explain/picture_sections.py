"""Sections of a study that show single pictures: relevancy of examples, and Fig. 6's maps."""

import jax
import numpy as np
from jax.typing import ArrayLike

from clipbias.explain.attention_gradients import Relevancy
from clipbias.explain.attention_sections import vision_totals
from clipbias.explain.dataset_sections import compute_predictions, corrected
from clipbias.explain.model import Model
from clipbias.explain.passes import layer_maps, predictor, relevancy_maps
from clipbias.explain.requests import Section
from clipbias.explain.results import ExampleMaps, Examples, Missing, Predictions, Similarity, SimilarityMaps
from clipbias.explain.scope import why_no_maps, why_no_similarity
from clipbias.explain.similarity import to_image
from clipbias.explain.study import Study
from clipbias.explain.tokens import token_labels

EXAMPLES = 4
ROTATIONS = (0, 90, 180, 270)  # degrees counter-clockwise, of Fig. 6


def choose_examples(study: Study, predictions: Predictions) -> np.ndarray:
    """Numbers of the images to show, of different classes if there are enough.

    Images that zero-shot gets wrong and most tuned models get right come first, then other readable images.
    """
    labels = predictions.labels
    corrections = [set(corrected(predictions, model).tolist()) for model in study.tuned]
    fixed_by = np.asarray([sum(index in fixed for fixed in corrections) for index in range(len(labels))])
    readable = np.flatnonzero(predictions.zero_shot >= 0)
    examples: list[int] = []
    for distinct in (True, False):
        for index in readable[np.argsort(-fixed_by[readable], kind="stable")].tolist():
            seen = {int(labels[i]) for i in examples}
            if len(examples) < EXAMPLES and index not in examples and not (distinct and int(labels[index]) in seen):
                examples.append(index)
    return np.asarray(examples, int)


def compute_examples(study: Study) -> Section[Examples]:
    """Relevancy of single pictures for their true class, under every model."""
    predictions = yield from compute_predictions(study)
    examples = choose_examples(study, predictions)
    pictures = study.pictures(examples)
    labels = study.split.labels[examples]
    models: dict[str, ExampleMaps | Missing] = {}
    for number, model in enumerate(study.models, start=1):
        if reason := why_no_maps(model.task):
            models[model.key] = Missing(reason)
            continue
        maps, logits = _explain(study, model, pictures, labels)
        models[model.key] = ExampleMaps(
            vision=np.asarray(maps.vision, np.float32),
            text=first_text(maps.text),
            logits=np.asarray(logits, np.float32),
            tokens=tuple(tuple(token_labels(model.task, int(label))) for label in labels),
            texts=model.texts,
        )
        study.advance("examples", number, len(study.models))
    names = tuple(study.split.keys[int(index)] for index in examples)
    return Examples(images=pictures, labels=labels, names=names, models=models)


def first_text(rows: ArrayLike) -> np.ndarray:
    """The relevancy `[P, N]` of the first text of every class, of `[P, N]` or, with several texts, `[P, S, N]`."""
    texts = np.asarray(rows, np.float32)
    return texts if texts.ndim == 2 else texts[:, 0]


def _explain(study: Study, model: Model, pictures: np.ndarray, labels: np.ndarray) -> tuple[Relevancy, np.ndarray]:
    def run(pictures: jax.Array, labels: jax.Array) -> tuple[Relevancy, jax.Array]:
        return relevancy_maps(study, model, pictures, labels), predictor(study, model).logits(pictures)

    return study.in_passes(run, pictures, labels)


def compute_prompt_similarity(study: Study) -> Section[Similarity]:
    """Fig. 6: the attention of `[cls]` without and with prompts, and nearness to prompts, in rotated images."""
    reasons = {model.key: why_no_similarity(model.task) for model in study.tuned}
    models: dict[str, SimilarityMaps | Missing] = {key: Missing(reason) for key, reason in reasons.items() if reason}
    prompted = [model for model in study.tuned if not reasons[model.key]]
    if not prompted:
        return Similarity(images=None, rotations=None, layers=None, models=models)
    layers = _layers(study)
    totals = yield from vision_totals(study, prompted)
    predictions = yield from compute_predictions(study)
    upright = study.pictures(choose_examples(study, predictions))
    pictures = np.stack([np.rot90(image, angle // 90) for image in upright for angle in ROTATIONS])
    zero_shot_cls = _layer_maps(study, study.zero_shot, pictures, layers)["cls"]
    for model in prompted:
        maps = _layer_maps(study, model, pictures, layers)
        correlation = totals[model.key]["rank_correlation"]
        models[model.key] = SimilarityMaps(
            zero_shot_cls=zero_shot_cls,
            cls=maps["cls"],
            prompts=maps["prompts"],
            rank_correlation=correlation.average,
            count=correlation.samples,
        )
    every_rotation = np.tile(np.asarray(ROTATIONS), len(upright))
    return Similarity(images=pictures, rotations=every_rotation, layers=layers, models=models)


def _layers(study: Study) -> np.ndarray:
    """The first, the middle and the last two."""
    count = study.clip.config.vision.layers
    return np.asarray(sorted({0, count // 2, max(count - 2, 0), count - 1}))


def _layer_maps(study: Study, model: Model, pictures: np.ndarray, layers: np.ndarray) -> dict[str, np.ndarray]:
    """Maps `[K, S, R, R]` of pictures `[K, R, R, 3]` in some layers, at the pictures' size."""
    vision = study.clip.config.vision
    maps = study.in_passes(lambda images: layer_maps(study, model, images), pictures)
    enlarged = {"cls": _at_full_size(maps["attention"][:, layers, : vision.patches], vision.image_size)}
    if "distance" in maps:
        distance = maps["distance"][:, layers].mean(2)
        enlarged["prompts"] = 1 - _at_full_size(distance, vision.image_size)
    return enlarged


def _at_full_size(values: ArrayLike, size: int) -> np.ndarray:
    return np.asarray(_enlarged(values, size), np.float32)


_enlarged = jax.jit(to_image, static_argnums=1)
