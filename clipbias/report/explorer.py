"""What the page's explorer shows: a study's maps of single images, packed into JSON."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from clipbias.constants import ZERO_SHOT
from clipbias.explain.results import CHANGES, TEXT_KINDS, Exploration, ExploredModel, ModelFacts, StudyResults, present
from clipbias.report.names import KIND_NAMES
from clipbias.report.overlay import HEAT

_LOSSLESS = 64  # pixels: pictures so small are shown pixel by pixel
_ARRAYS = (
    "relevancy",
    "relevancy_scale",
    "relevancy_sum",
    "slot_relevancy",
    "text",
    "attention",
    "attention_scale",
    "slot_attention",
    "distance",
    "distance_scale",
    "distance_lowest",
)


def explorer_data(study: StudyResults) -> dict[str, Any] | None:
    """All that the page's script reads, in JSON's types, or `None` where the study has no images to explore."""
    explore = study.explore
    if explore is None or not len(explore.images):
        return None
    explored = present(explore.models)
    models = [model for model in study.models if model.key in explored]
    if not models:
        return None
    numbers = explore.images
    names = study.dataset.class_names
    predicted = np.concatenate([study.predictions.models[model.key][numbers] for model in models])
    classes = np.unique(np.append(explore.pairs[:, 1], predicted)).tolist()
    return {
        "grid": [study.clip.grid, study.clip.grid],
        "layers": study.clip.vision_layers,
        "colours": _packed(colours()),
        "changes": list(CHANGES),
        "classes": {number: names[number] for number in classes},
        "kinds": [[kind, KIND_NAMES[kind]] for kind in TEXT_KINDS[:-1]],
        "pairs": explore.pairs[:, 1].tolist(),
        "images": _images(study, explore, models),
        "models": [_model(model, explored[model.key]) for model in models],
    }


def _images(study: StudyResults, explore: Exploration, models: Sequence[ModelFacts]) -> list[dict[str, Any]]:
    labels = study.predictions.labels[explore.images]
    tuned = [model.key for model in models if model is not study.zero_shot]
    changes = {key: study.predictions.changes(key)[explore.images] for key in tuned}
    explored = present(explore.models)
    images = []
    for row, number in enumerate(explore.images.tolist()):
        images.append(
            {
                "name": explore.names[row],
                "number": number,
                "picture": _picture(explore.pictures[row]),
                "label": int(labels[row]),
                "pairs": np.flatnonzero(explore.pairs[:, 0] == row).tolist(),
                "models": {
                    model.key: _outcome(explored[model.key], int(study.predictions.models[model.key][number]), row)
                    for model in models
                },
                "changes": {key: int(of_images[row]) for key, of_images in changes.items()},
            }
        )
    return images


def _model(model: ModelFacts, explored: ExploredModel) -> dict[str, Any]:
    arrays = {name: getattr(explored, name) for name in _ARRAYS}
    return {
        "key": model.key,
        "label": model.label,
        "tuned": model.key != ZERO_SHOT,
        "slots": model.vision_prompts,
        "depth": model.vision_depth,
        "tokens": explored.tokens,
        "kinds": explored.kinds,
        "arrays": {name: _packed(array) for name, array in arrays.items() if array is not None},
    }


def _outcome(explored: ExploredModel, predicted: int, row: int) -> dict[str, Any]:
    return {
        "predicted": predicted,
        "margin": float(explored.margin[row]),
        "likelihood": float(explored.log_likelihood[row]),
    }


def _picture(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    kind = "png" if len(pixels) <= _LOSSLESS else "jpeg"
    Image.fromarray(pixels).save(file, kind, quality=85)  # which PNG does not look at
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _packed(array: np.ndarray) -> dict[str, Any]:
    """An array as the script reads it: bytes, or little-endian 32-bit floats, in base64."""
    plain = array if array.dtype == np.uint8 else np.asarray(array, "<f4")
    kind = "uint8" if plain.dtype == np.uint8 else "float32"
    data = base64.b64encode(np.ascontiguousarray(plain).tobytes()).decode("ascii")
    return {"type": kind, "shape": list(plain.shape), "data": data}


def colours() -> np.ndarray:
    """The static figures' heat colours, `[256, 3]` uint8."""
    from matplotlib import colormaps

    return np.rint(255 * colormaps[HEAT](np.arange(256))[:, :3]).astype(np.uint8)
