"""Gains in accuracy over zero-shot CLIP with the dataset's template, whatever text a method starts from."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clipbias.explain.uncertainty import Estimate, estimate, resample
from clipbias.report.study_results import StudyResults

# Beside "accuracy", whose gains are over a method's own start, as an outcome of a summary.
OVER_ZERO_SHOT = "over_zero_shot"


def over_zero_shot(study: StudyResults, model: Mapping[str, Any]) -> dict[str, Estimate]:
    """Points of accuracy over zero-shot, image by image, with 95 % bootstrap intervals.

    Returns:
      "gain" of the tuned model and "start" of the frozen model with the text that training starts from, on the images
      of the causal test, and of each form of a constant in the method's place, on the images that it was measured on;
      the gain without a causal test on the latter, and without them on all images. What a study has not is absent.
    """
    key, labels = model["key"], study.array("predictions/labels")
    zero = study.array(f"predictions/{study.zero_shot['key']}")
    if labels is None or zero is None:
        return {}
    right = (zero == labels).astype(float)
    found: dict[str, Estimate] = {}
    for section in ("amounts", "factorial"):
        images, correct = (study.array(f"{section}/{key}/{name}") for name in ("images", "correct"))
        facts = study.section(section, key)
        if images is None or correct is None or "missing" in facts:
            continue
        if section == "factorial":  # from the reference to the tuned model, of both towers
            corners, both = 2 ** len(facts["effects"]), list(facts["towers"]).index("both")
            named = {"start": correct[:, both, 0], "gain": correct[:, both, corners - 1]}
        else:
            named = {"gain" if form == "tuned" else form: correct[:, k] for k, form in enumerate(facts["forms"])}
            del named["reference"]
        changes = 100.0 * (np.column_stack(list(named.values())) - right[images][:, None])
        draws = resample(changes)
        found |= {name: estimate(changes[:, k].mean(), draws[:, k]) for k, name in enumerate(named)}
    tuned = study.array(f"predictions/{key}")
    if not found and tuned is not None:
        read = (zero >= 0) & (tuned >= 0)
        change = 100.0 * ((tuned == labels) - right)[read]
        found["gain"] = estimate(change.mean(), resample(change[:, None])[:, 0])
    return found
