"""Runs a study: computes the requested sections, judges the methods, and stores the results."""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipbias import hosts
from clipbias.analysis.model import Model, why_no_causal_test
from clipbias.analysis.results import ClipFacts, DatasetFacts, ModelFacts, ParameterCount, Predictions, StudyResults
from clipbias.analysis.results_file import save_results
from clipbias.analysis.sections import Section, all_sections
from clipbias.analysis.study import Study
from clipbias.analysis.verdict import judge
from clipbias.errors import ClipbiasError
from clipbias.tuning import parameter_count


def run_study(
    study: Study,
    folder: Path,
    *,
    dataset: str,
    split: str = "test",
    config: Mapping[str, Any] | None = None,
    sections: Iterable[str] | None = None,
) -> StudyResults:
    """Computes a study's sections and writes `results.npz` and `results.json` into `folder`.

    `dataset` and `split` name the images; `config` is stored. `sections` are names (default: all); predictions are
    always computed. Raises `ClipbiasError` if a section is unknown, or no image could be read.
    """
    began = time.monotonic()
    requested = named_sections(sections)
    # All sections at once, so that they share passes over the images.
    computed = study.run({section.name: section.compute(study) for section in requested})
    predictions: Predictions = computed["predictions"]
    task, vision = study.zero_shot.task, study.clip.config.vision
    facts = StudyResults(
        dataset=DatasetFacts(
            name=dataset,
            split=split,
            images=int((predictions.zero_shot >= 0).sum()),
            class_names=tuple(task.class_names),
            template=task.template,
        ),
        clip=ClipFacts(
            name=study.clip.name,
            identity=study.clip.identity,
            image_size=vision.image_size,
            grid=vision.grid,
            patches=vision.patches,
            tokens=vision.tokens,
            vision_layers=vision.layers,
        ),
        models=tuple(_describe(study, model, predictions) for model in study.models),
        sections=computed,
        config=dict(config or {}),
        seconds=0.0,
    )
    # The verdict needs the causal test of all models, and a section's `finish` needs the verdict.
    results = judge(facts)
    finished = {section.name: section.finish(study, results) for section in requested if section.finish}
    results = dataclasses.replace(results, sections=computed | finished, seconds=round(time.monotonic() - began, 1))
    # Results are whole on every process, and a file may have a single writer.
    if hosts.is_first():
        save_results(folder, results)
    return results


def named_sections(names: Iterable[str] | None) -> list[Section[Any]]:
    """Returns the sections of these names, and predictions. Raises `ClipbiasError` for an unknown name."""
    known = all_sections()
    asked = list(known) if names is None else list(names)
    if unknown := [name for name in asked if name not in known]:
        raise ClipbiasError(f"unknown section {unknown[0]!r}; choose from {', '.join(known)}, or 'all'.")
    return [section for name, section in known.items() if name in asked or name == "predictions"]


def _describe(study: Study, model: Model, predictions: Predictions) -> ModelFacts:
    # Accuracy is over images that all models could read, so that models are comparable.
    images = int((predictions.models[model.key] >= 0).sum())
    correct = int(predictions.right(model.key).sum())
    if not images:
        raise ClipbiasError("none of the images could be read; check the data folder.")
    # Models without patched runs are compared with zero-shot.
    task = study.zero_shot.task if why_no_causal_test(model.task) else model.task
    vision_prompts, text_prompts = model.prompts
    return ModelFacts(
        key=model.key,
        label=model.label,
        name=model.name or model.label,
        method=model.method,
        options=model.options,
        training=model.training,
        parameters=ParameterCount(**parameter_count(model.learnables)),
        vision_prompts=vision_prompts,
        text_prompts=text_prompts,
        vision_depth=model.depths[0],
        changes_vision=model.task.method.adapt(model.learnables).changes_vision,
        reference=task.texts[0],
        accuracy=100 * correct / images,
        images=images,
        source=model.source,
    )
