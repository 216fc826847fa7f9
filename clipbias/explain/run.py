"""A whole study: the chosen sections in order, each finished one kept, into one `Findings`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.explain import (
    amounts_section,
    attention_sections,
    dataset_sections,
    explore_section,
    factorial_section,
    faithfulness_section,
    picture_sections,
)
from clipbias.explain.results import FORMAT, SECTIONS, Findings, save_results
from clipbias.explain.study import Study
from clipbias.explain.verdict import verdicts
from clipbias.tuning import parameter_count


def run_study(
    study: Study,
    folder: Path,
    *,
    dataset: Mapping[str, Any],
    config: Mapping[str, Any],
    sections: Sequence[str] = SECTIONS,
    tell: Callable[[str, float], None] = lambda name, seconds: None,
) -> Findings:
    """Computes `sections` and writes `results.npz` and `results.json` into `folder`.

    Args:
      study: models, images and options.
      folder: where results go.
      dataset: its name, split and whatever else is worth telling.
      config: stored with the results.
      sections: some of `SECTIONS`; predictions are always made.
      tell: told of every section that is there, and how many seconds it took.

    Raises:
      ClipbiasError: an unknown section.
    """
    unknown = [name for name in sections if name not in SECTIONS]
    if unknown:
        raise ClipbiasError(f"unknown section {unknown[0]!r}; choose from {', '.join(SECTIONS)}.")
    chosen = [name for name in SECTIONS if name in sections or name == "predictions"]
    with study.clock.section("predictions"):
        arrays, _ = dataset_sections.compute_predictions(study)
    tell("predictions", study.clock.seconds["predictions"])
    predicted = dict(arrays)
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
        "sections": chosen,
        "config": dict(config),
    }
    makers = {
        "relevancy": lambda: dataset_sections.compute_relevancy(study, predicted),
        "text_attention": lambda: attention_sections.compute_text_attention(study),
        "vision_attention": lambda: attention_sections.compute_vision_attention(study),
        "similarity": lambda: picture_sections.compute_prompt_similarity(study, predicted),
        "decomposition": lambda: attention_sections.compute_decomposition(study),
        "factorial": lambda: factorial_section.compute_factorial(study),
        "amounts": lambda: amounts_section.compute_amounts(study),
        "faithfulness": lambda: faithfulness_section.compute_faithfulness(study),
        "examples": lambda: picture_sections.compute_examples(study, predicted),
        "explore": lambda: explore_section.compute_explore(study, predicted),
    }
    for name, compute in makers.items():
        if name in chosen:
            with study.clock.section(name):
                found, scalars[name] = study.once(name, compute)
            tell(name, study.clock.seconds[name])
            arrays |= found
    results = Findings(arrays, scalars)
    if "verdict" in chosen:
        with study.clock.section("verdict"):
            scalars["verdict"], scalars["agreement"] = verdicts(results)
        tell("verdict", study.clock.seconds["verdict"])
    scalars["seconds_by_section"] = {name: study.clock.seconds[name] for name in chosen}
    scalars["seconds"] = round(sum(scalars["seconds_by_section"].values()), 1)
    if study.is_first:
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
        "key": model.key,
        "label": model.label,
        "method": model.method,
        "options": model.task.options(),
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
