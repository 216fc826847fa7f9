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
      "gain" of the tuned model; "start" of the frozen model with the text that training starts from, on the images of
      the causal test; and of each form of a constant in the method's place, on its images. What a study has not is
      absent.
    """
    key, labels = model["key"], study.array("predictions/labels")
    zero, tuned = (study.array(f"predictions/{name}") for name in (study.zero_shot["key"], key))
    if labels is None or zero is None or tuned is None:
        return {}
    read = np.flatnonzero((zero >= 0) & (tuned >= 0))
    right = {"gain": (tuned == labels, read)}
    images, correct = (study.array(f"factorial/{key}/{name}") for name in ("images", "correct"))
    if images is not None and correct is not None:
        # The first mixture is the reference: the frozen model with the method's start.
        towers = list(study.section("factorial", key)["towers"])
        right["start"] = (correct[:, towers.index("both"), 0], images)
    images, correct = (study.array(f"amounts/{key}/{name}") for name in ("images", "correct"))
    if images is not None and correct is not None:
        forms = study.section("amounts", key)["forms"]
        right |= {
            form: (correct[:, place], images) for place, form in enumerate(forms) if form not in ("reference", "tuned")
        }
    found = {}
    for name, (own, numbers) in right.items():
        own = own[numbers] if len(own) == len(labels) and name == "gain" else own
        change = 100.0 * (own.astype(float) - (zero == labels)[numbers])
        found[name] = estimate(float(change.mean()), resample(change[:, None])[:, 0])
    return found
