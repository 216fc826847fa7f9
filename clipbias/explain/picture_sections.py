"""Sections of a study that show single pictures: relevancy of examples, and Fig. 6's maps."""

from typing import Any

import jax
import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.explain.attention_sections import vision_totals
from clipbias.explain.dataset_sections import compute_predictions, corrected
from clipbias.explain.model import Model
from clipbias.explain.passes import classify, layer_maps, relevancy_maps
from clipbias.explain.scope import why_no_maps, why_no_similarity
from clipbias.explain.similarity import choose_prompt, to_image
from clipbias.explain.stream import Reading
from clipbias.explain.study import Section, Study
from clipbias.explain.tokens import token_labels


def choose_examples(study: Study, predicted: dict[str, np.ndarray]) -> np.ndarray:
    """Numbers of the pictures to show, of different classes where there are enough.

    Those that zero-shot gets wrong and most tuned models get right come first, then others that could be read.
    """
    labels, wanted = predicted["predictions/labels"], study.options.examples
    corrections = [set(corrected(predicted, model).tolist()) for model in study.tuned]
    fixed_by = np.asarray([sum(index in fixed for fixed in corrections) for index in range(len(labels))])
    readable = np.flatnonzero(predicted["predictions/zero_shot"] >= 0)
    chosen: list[int] = []
    for distinct in (True, False):
        for index in readable[np.argsort(-fixed_by[readable], kind="stable")].tolist():
            seen = {int(labels[i]) for i in chosen}
            if len(chosen) < wanted and index not in chosen and not (distinct and int(labels[index]) in seen):
                chosen.append(index)
    return np.asarray(chosen, int)


def compute_examples(study: Study) -> Reading[Section]:
    """Relevancy of single pictures for their true class, under every model."""
    predicted = yield from compute_predictions(study)
    chosen = choose_examples(study, predicted)
    pictures, labels = study.pictures(chosen), study.split.labels[chosen]
    arrays: dict[str, np.ndarray] = {"examples/images": pictures, "examples/labels": labels}
    scalars: dict[str, Any] = {"names": [study.split.keys[int(i)] for i in chosen]}
    for model in study.models:
        if reason := why_no_maps(model.task):
            scalars[model.key] = {"missing": reason}
            continue
        maps, logits = _explain(study, model, pictures, labels)
        arrays[f"examples/{model.key}/vision"] = np.asarray(maps.vision, np.float32)
        arrays[f"examples/{model.key}/text"] = first_text(maps.text)
        arrays[f"examples/{model.key}/logits"] = np.asarray(logits, np.float32)
        tokens = [token_labels(model.task, int(label)) for label in labels]
        scalars[model.key] = {"tokens": tokens, "texts": model.texts}
        study.advance("examples", study.models.index(model) + 1, len(study.models))
    return arrays, scalars


def first_text(rows: Any) -> np.ndarray:
    """Of relevancy `[P, N]` of texts, or `[P, S, N]` of several of a class, the first text's: what is shown of them."""
    found = np.asarray(rows, np.float32)
    return found if found.ndim == 2 else found[:, 0]


def _explain(study: Study, model: Model, pictures: np.ndarray, labels: np.ndarray) -> Any:
    def run(pictures: jax.Array, labels: jax.Array) -> Any:
        return relevancy_maps(study, model, pictures, labels)[0], classify(study, model, pictures)

    return study.in_passes(run, pictures, labels)


def compute_prompt_similarity(study: Study) -> Reading[Section]:
    """Fig. 6: where `[cls]` looks without and with prompts, and where the prompts are near, in rotated pictures."""
    reasons = {model.key: why_no_similarity(model.task) for model in study.tuned}
    scalars: dict[str, Any] = {key: {"missing": reason} for key, reason in reasons.items() if reason}
    prompted = [model for model in study.tuned if not reasons[model.key]]
    if not prompted:
        return {}, scalars
    options = study.options
    layers = np.asarray(options.layers or default_layers(study.clip.config.vision.layers))
    if layers.min() < 0 or layers.max() >= study.clip.config.vision.layers:
        raise ClipbiasError(f"layers {layers.tolist()} are not all in 0 … {study.clip.config.vision.layers - 1}.")
    totals = yield from vision_totals(study, prompted)
    predicted = yield from compute_predictions(study)
    upright = study.pictures(choose_examples(study, predicted))
    pictures = np.stack([np.rot90(image, angle // 90) for image in upright for angle in options.rotations])
    arrays: dict[str, np.ndarray] = {
        "similarity/images": pictures,
        "similarity/rotations": np.tile(np.asarray(options.rotations), len(upright)),
        "similarity/layers": layers,
    }
    plain = _layer_maps(study, study.zero_shot, pictures, layers)["cls"]
    for model in prompted:
        maps = _layer_maps(study, model, pictures, layers)
        arrays[f"similarity/{model.key}/zero_shot_cls"] = plain
        arrays[f"similarity/{model.key}/cls"] = maps["cls"]
        arrays[f"similarity/{model.key}/prompts"] = maps["prompts"]
        correlation = totals[model.key]["rank_correlation"]
        arrays |= correlation.arrays(f"similarity/{model.key}/rank_correlation")
        scalars[model.key] = {"count": correlation.samples, "prompt": options.prompt}
    return arrays, scalars


def default_layers(count: int) -> list[int]:
    """The first, the middle and the last two of `count` layers."""
    return sorted({0, count // 2, max(count - 2, 0), count - 1})


def _layer_maps(study: Study, model: Model, pictures: np.ndarray, layers: np.ndarray) -> dict[str, np.ndarray]:
    """Maps `[K, S, R, R]` of pictures `[K, R, R, 3]` in some layers, at the pictures' size."""
    patches, found = study.clip.config.vision.patches, {}
    maps = study.in_passes(lambda images: layer_maps(study, model, images), pictures)
    shown = {"cls": maps["attention"][:, layers, :patches]}
    if "distance" in maps:
        shown["distance"] = jax.vmap(choose_prompt, (1, None), 1)(maps["distance"][:, layers], study.options.prompt)
    for name, values in shown.items():
        found[name] = np.asarray(_enlarged(values, study.clip.config.vision.image_size), np.float32)
    return {"cls": found["cls"], **({"prompts": 1 - found["distance"]} if "distance" in found else {})}


_enlarged = jax.jit(to_image, static_argnums=1)
