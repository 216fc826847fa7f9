"""A whole study: the sections asked for, over as few passes over the images as they allow, into one `Findings`."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbias import hosts
from clipbias.errors import ClipbiasError
from clipbias.explain import (
    attention_sections,
    constants_section,
    dataset_sections,
    explore_section,
    factorial_section,
    faithfulness_section,
    picture_sections,
)
from clipbias.explain.results import FORMAT, SECTIONS, Findings, plain, save_results
from clipbias.explain.study import Study
from clipbias.explain.verdict import verdicts
from clipbias.tuning import parameter_count

# What goes over images, in the order of `SECTIONS`. Each is a generator (`stream`).
COMPUTED: Mapping[str, Callable[[Study], Any]] = {
    "predictions": dataset_sections.compute_predictions,
    "relevancy": dataset_sections.compute_relevancy,
    "text_attention": attention_sections.compute_text_attention,
    "vision_attention": attention_sections.compute_vision_attention,
    "similarity": picture_sections.compute_prompt_similarity,
    "decomposition": attention_sections.compute_decomposition,
    "factorial": factorial_section.compute_factorial,
    "constants": constants_section.compute_constants,
    "faithfulness": faithfulness_section.compute_faithfulness,
    "examples": picture_sections.compute_examples,
    "explore": explore_section.compute_explore,
}


def run_study(
    study: Study,
    folder: Path,
    *,
    dataset: Mapping[str, Any],
    config: Mapping[str, Any],
    sections: Sequence[str] = SECTIONS,
) -> Findings:
    """Computes `sections` and writes `results.npz` and `results.json` into `folder`.

    Args:
      study: models, images and options.
      folder: where results go.
      dataset: its name, split and whatever else is worth telling.
      config: stored with the results.
      sections: some of `SECTIONS`; predictions are always made.

    Raises:
      ClipbiasError: an unknown section, or no image could be read.
    """
    unknown = [name for name in sections if name not in SECTIONS]
    if unknown:
        raise ClipbiasError(f"unknown section {unknown[0]!r}; choose from {', '.join(SECTIONS)}.")
    began = time.monotonic()
    asked = [name for name in SECTIONS if name in sections or name == "predictions"]
    found = study.run({name: compute(study) for name, compute in COMPUTED.items() if name in asked})
    predicted = found.pop("predictions")
    scalars: dict[str, Any] = {
        "format": FORMAT,
        "dataset": {
            **dataset,
            "images": int((predicted["predictions/zero_shot"] >= 0).sum()),
            "class_names": study.zero_shot.task.class_names,
            "template": study.zero_shot.task.template,
        },
        "clip": _geometry(study),
        "models": [_describe(study, model, predicted) for model in study.models],
        "sections": asked,
        "config": dict(config),
    }
    arrays = dict(predicted)
    for name, (own, facts) in found.items():
        arrays |= own
        scalars[name] = plain(facts)
    results = Findings(arrays, scalars)
    if "verdict" in asked:
        scalars["verdict"] = plain(verdicts(results))
    scalars["seconds"] = round(time.monotonic() - began, 1)
    if hosts.is_first():
        save_results(folder, results)
    return results


def _geometry(study: Study) -> dict[str, Any]:
    vision, text = study.clip.config.vision, study.clip.config.text
    return {
        "name": study.clip.name,
        "fingerprint": study.clip.fingerprint,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "grid": vision.grid,
        "patches": vision.patches,
        "tokens": vision.tokens,
        "vision_layers": vision.layers,
        "vision_heads": vision.heads,
        "text_layers": text.layers,
        "text_heads": text.heads,
    }


def _describe(study: Study, model: Any, predicted: Mapping[str, np.ndarray]) -> dict[str, Any]:
    own, labels = predicted[f"predictions/{model.key}"], predicted["predictions/labels"]
    images, correct = int((own >= 0).sum()), int((own == labels).sum())
    if not images:
        raise ClipbiasError("none of the images could be read; check the data folder.")
    (vision, text), (vision_depth, text_depth) = model.prompts, model.depths
    return {
        **model.facts(),
        "parameters": parameter_count(model.learnables),
        "vision_prompts": vision,
        "text_prompts": text,
        "vision_depth": vision_depth,
        "text_depth": text_depth,
        "accuracy": 100 * correct / images,
        "correct": correct,
        "images": images,
        "source": model.source,
    }
