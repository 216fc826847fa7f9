"""What the page's explorer shows: a study's maps of single images, packed into JSON."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from clipbias.explain.results import CHANGES, TEXT_KINDS, changes
from clipbias.explain.uncertainty import shapley
from clipbias.report.overlay import HEAT
from clipbias.report.study_results import KIND_NAMES, StudyResults, label_of

_LOSSLESS = 64  # pixels: pictures so small are shown pixel by pixel
_ARRAYS = (
    *("relevancy", "relevancy_scale", "relevancy_sum", "slot_relevancy", "text"),
    *("attention", "attention_scale", "slot_attention", "distance", "distance_scale", "distance_lowest"),
    "prompt_share_from",
)


def explorer_data(study: StudyResults) -> dict[str, Any] | None:
    """All that the page's script reads, in JSON's types, or None where the study has no images to explore."""
    numbers = study.array("explore/images")
    models = explored_models(study)
    if numbers is None or not len(numbers) or not models:
        return None
    pairs, labels = study.present("explore/pairs"), study.present("predictions/labels")[numbers]
    names = study.scalars["dataset"]["class_names"]
    causes = {model["key"]: causes_of(study, model, numbers) for model in models if model is not study.zero_shot}
    images = []
    for row, (number, picture) in enumerate(zip(numbers.tolist(), study.present("explore/pictures"), strict=True)):
        images.append(
            {
                "name": study.section("explore")["names"][row],
                "number": number,
                "picture": _picture(picture),
                "label": int(labels[row]),
                "pairs": np.flatnonzero(pairs[:, 0] == row).tolist(),
                "models": {model["key"]: _outcome(study, model, row, number) for model in models},
                "causes": {key: found[row] for key, found in causes.items()},
            }
        )
    return {
        "grid": list(study.grid),
        "layers": study.scalars["clip"]["vision_layers"],
        "colours": _packed(colours()),
        "changes": list(CHANGES),
        "classes": {int(c): names[c] for c in np.unique(np.append(pairs[:, 1], _predicted(study, models, numbers)))},
        "kinds": [[kind, KIND_NAMES[kind]] for kind in TEXT_KINDS[:-1]],
        "pairs": pairs[:, 1].tolist(),
        "images": images,
        "models": [_model(study, model) for model in models],
    }


def explored_models(study: StudyResults) -> list[Mapping[str, Any]]:
    """Those that there are maps of; the section says of every other why there are none."""
    return [model for model in study.models if study.array(f"explore/{model['key']}/relevancy") is not None]


def _predicted(study: StudyResults, models: Sequence[Mapping[str, Any]], numbers: np.ndarray) -> np.ndarray:
    return np.concatenate([study.present(f"predictions/{model['key']}")[numbers] for model in models])


def _model(study: StudyResults, model: Mapping[str, Any]) -> dict[str, Any]:
    key = model["key"]
    arrays = {name: study.array(f"explore/{key}/{name}") for name in _ARRAYS}
    return {
        "key": key,
        "label": label_of(model),
        "tuned": model is not study.zero_shot,
        "slots": model["vision_prompts"],
        "depth": model["vision_depth"],
        "tokens": study.section("explore", key)["tokens"],
        "kinds": study.section("explore", key).get("kinds"),
        "arrays": {name: _packed(array) for name, array in arrays.items() if array is not None},
    }


def _outcome(study: StudyResults, model: Mapping[str, Any], row: int, number: int) -> dict[str, Any]:
    key = model["key"]
    return {
        "predicted": int(study.present(f"predictions/{key}")[number]),
        "margin": float(study.present(f"explore/{key}/margin")[row]),
        "likelihood": float(study.present(f"explore/{key}/log_likelihood")[row]),
    }


def causes_of(study: StudyResults, model: Mapping[str, Any], numbers: np.ndarray) -> list[dict[str, Any]]:
    """What tuning changed of images by number, and each effect's Shapley value of the calibrated log-likelihood.

    Returns:
      For every image its "change" and, where it was in the causal test, "effects" by name and which one "decided": the
      one that did most for a decision that became right, most against one that became wrong, and otherwise most in the
      direction in which the calibrated log-likelihood went.
    """
    rows, values, effects = {}, np.zeros((0, 0)), []
    facts = study.section("factorial", model["key"])
    if facts.get("streams"):
        outcome = study.present(f"factorial/{model['key']}/calibrated")
        values = shapley(outcome[:, list(facts["towers"]).index("both")])
        rows = {int(n): i for i, n in enumerate(study.present(f"factorial/{model['key']}/images"))}
        effects = list(facts["effects"])
    found = []
    for number, change in zip(numbers.tolist(), changes(study.results.arrays, model["key"])[numbers], strict=True):
        own: dict[str, Any] = {"change": int(change), "effects": {}, "decided": None}
        if number in rows:
            of_image = values[rows[number]]
            direction = (1, -1)[change] if change < 2 else np.sign(of_image.sum())
            own["effects"] = dict(zip(effects, of_image.tolist(), strict=True))
            own["decided"] = effects[int(np.argmax(direction * of_image))]
        found.append(own)
    return found


def _picture(pixels: np.ndarray) -> str:
    file, kind = io.BytesIO(), "png" if len(pixels) <= _LOSSLESS else "jpeg"
    Image.fromarray(pixels).save(file, kind, **({"quality": 85} if kind == "jpeg" else {}))
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
