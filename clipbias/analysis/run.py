"""A whole study: the requested sections, over as few passes over the images as they allow."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipbias import hosts
from clipbias.analysis import (
    attention,
    causal_section,
    dataset_sections,
    faithfulness,
    observations,
    pictures,
    replacement,
    words,
)
from clipbias.analysis.model import Model
from clipbias.analysis.results import (
    SECTIONS,
    ClipFacts,
    DatasetFacts,
    ModelFacts,
    ParameterCount,
    Predictions,
    StudyResults,
)
from clipbias.analysis.results_file import save_results
from clipbias.analysis.study import Section, Study
from clipbias.analysis.verdict import judge
from clipbias.errors import ClipbiasError
from clipbias.tuning import parameter_count

# What goes over images, in the order of `SECTIONS`.
COMPUTED: Mapping[str, Callable[[Study], Section[Any]]] = {
    "predictions": dataset_sections.compute_predictions,
    "relevancy": dataset_sections.compute_relevancy,
    "text_attention": attention.compute_text_attention,
    "vision_attention": attention.compute_vision_attention,
    "similarity": pictures.compute_prompt_similarity,
    "decomposition": attention.compute_decomposition,
    "causal": causal_section.compute_causal,
    "faithfulness": faithfulness.compute_faithfulness,
    "examples": pictures.compute_examples,
    "explore": pictures.compute_explore,
    "words": words.compute_words,
    "observations": observations.compute_observations,
    "replacement": replacement.compute_replacement,
}


def run_study(
    study: Study,
    folder: Path,
    *,
    dataset: str,
    split: str = "test",
    config: Mapping[str, Any] | None = None,
    sections: Sequence[str] = SECTIONS,
) -> StudyResults:
    """Computes `sections`, some of `SECTIONS`, and writes `results.npz` and `results.json` into `folder`.

    Predictions are always made. `dataset` and `split` name the images, and `config` is stored with the results. Raises
    `ClipbiasError` for an unknown section, or where no image could be read.
    """
    unknown = [name for name in sections if name not in SECTIONS]
    if unknown:
        raise ClipbiasError(f"unknown section {unknown[0]!r}; choose from {', '.join(SECTIONS)}.")
    began = time.monotonic()
    requested = tuple(name for name in SECTIONS if name in sections or name == "predictions")
    computed = study.run({name: compute(study) for name, compute in COMPUTED.items() if name in requested})
    predictions: Predictions = computed.pop("predictions")
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
        models=tuple(_describe(model, predictions) for model in study.models),
        sections=requested,
        config=dict(config or {}),
        seconds=0.0,
        predictions=predictions,
    )
    results = judge(dataclasses.replace(facts, **computed))
    if results.observations is not None:
        rows = observations.observe(results, seed=study.options.seed)
        results = dataclasses.replace(results, observations=dataclasses.replace(results.observations, rows=rows))
    results = dataclasses.replace(results, seconds=round(time.monotonic() - began, 1))
    if hosts.is_first():
        save_results(folder, results)
    return results


def _describe(model: Model, predictions: Predictions) -> ModelFacts:
    images = int((predictions.models[model.key] >= 0).sum())
    correct = int(predictions.right(model.key).sum())
    if not images:
        raise ClipbiasError("none of the images could be read; check the data folder.")
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
        accuracy=100 * correct / images,
        images=images,
        source=model.source,
    )
