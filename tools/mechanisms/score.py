"""Explains trained models, asks every explainer for its labels, and counts them against the truth."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import clipbias
from clipbias import settings
from clipbias.analysis.model import Model
from clipbias.analysis.results import StudyResults, Where
from clipbias.analysis.results_file import load_results
from clipbias.analysis.run import run_study
from clipbias.analysis.study import Study, StudyOptions
from clipbias.constants import ZERO_SHOT
from clipbias.data.held_out import unlabelled_images
from clipbias.errors import ClipbiasError
from clipbias.intervals import RESAMPLES
from clipbias.tuning import Task
from clipbias.tuning.tuned import Tuned
from tools.mechanisms.labels import FAMILIES, OWN, RULES, UNDECIDED, Answer, Spec, digest, explain, gains
from tools.mechanisms.train import adapter_path, dataset_of, frozen_model, training_images

SECTIONS = ("predictions", "causal")
OF_PROMPTS = ("relevancy", "vision_attention")  # what the evidence of the paper is read from, with prompts alone
AXES = ("where", "what")
PROMPTS = [name for name, family in FAMILIES.items() if family.mechanism is not None]
PAPER = ("relevancy of patches (Fig. 3)", "distance and entropy (Fig. 5)")  # rules that are asked of prompts alone
MODEL = "model"


def study_model(workdir: Path, spec: Spec, options: StudyOptions) -> StudyResults:
    """The study of one trained model, with constants in its place if it surely gains."""
    sections = (*SECTIONS, *OF_PROMPTS) if spec.family in PROMPTS else SECTIONS
    results = study(workdir / "studies" / spec.key, workdir, spec, sections, options)
    if not gains(results, MODEL):
        return results
    # Apart, so that the other training is in no other section.
    fitted = study(workdir / "replacements" / spec.key, workdir, spec, ("replacement",), options)
    return dataclasses.replace(results, sections=results.sections | {"replacement": fitted.sections["replacement"]})


def study(folder: Path, workdir: Path, spec: Spec, sections: Sequence[str], options: StudyOptions) -> StudyResults:
    """Sections on a dataset's test images; those that are finished with these options are read.

    Args:
      folder: of the results.
      workdir: of the benchmark.
      spec: of the model.
      sections: to compute.
      options: of the study.
    """
    config = settings.as_json(options)
    if (folder / "results.json").exists():
        results = load_results(folder)
        if set(sections) <= set(results.sections) and results.config == config:
            return results
    clip = frozen_model(workdir, spec)
    dataset = dataset_of(workdir, spec)
    models = [Model(ZERO_SHOT, "Zero-shot", Tuned(Task(clip, ZERO_SHOT, dataset)))]
    tuned = clipbias.load_adapter(adapter_path(workdir, spec), clip, own_methods=[OWN])
    models.append(
        Model(
            MODEL,
            spec.key,
            tuned,
            seed=spec.seed,
            training=dataset.name,
            few_shot_split=str(spec.seed),
        )
    )
    test = dataset.split("test")
    inputs = Study(
        models,
        test,
        options,
        folder,
        training=training_images(dataset, spec),
        unlabelled=unlabelled_images(dataset, test),
    )
    return run_study(inputs, folder, dataset=dataset.name, config=config, sections=sections)


def score(workdir: Path, specs: Sequence[Spec], options: StudyOptions) -> pd.DataFrame:
    """Studies those of the models that are trained and count.

    Returns:
      A row for each trained model: its name, the blocks of its frozen model, the hash of labels and rules, whether it
      counts, its true labels, and what each explainer says of it. A cell is empty where there is no true label, and
      after a model that does not count.

    Raises:
      ClipbiasError: a model was trained under other labels or rules.
    """
    rows = []
    for spec in specs:
        path = adapter_path(workdir, spec)
        if not path.exists():
            continue
        notes = notes_of(path)
        if notes["digest"] != digest():
            raise ClipbiasError(f"{path} was trained under other labels or rules; remove it and train it again.")
        validation = notes["validation"]
        assert isinstance(validation, dict)
        counts = bool(validation["counts"])
        answers = explain(study_model(workdir, spec, options), MODEL) if counts else {}
        rows.append(row(spec, frozen_model(workdir, spec).config.vision.layers, counts, answers))
    return pd.DataFrame(rows)


def row(spec: Spec, layers: int, counts: bool, answers: Mapping[str, Answer]) -> dict[str, object]:
    """What `score` returns of a model."""
    labels = {axis: getattr(spec.of_family, axis) for axis in AXES}
    truths = {f"truth: {axis}": "" if label is None else label.value for axis, label in labels.items()}
    silent = Answer("", "")
    said = {f"{name}: {axis}": getattr(answers.get(name, silent), axis) for name in RULES for axis in AXES}
    facts = {"model": spec.key, "family": spec.family, "layers": layers, "digest": digest()[:12], "counts": counts}
    return {**facts, **truths, **said}


def notes_of(path: Path) -> Mapping[str, object]:
    """What a model's file says of its training."""
    return clipbias.tuning.adapter.read_adapter(path).notes


def scored(answers: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The models that count, have a label on the axis, and should gain."""
    has_label = answers["counts"] & (answers[f"truth: {axis}"] != "")
    return answers[has_label & (answers["truth: where"] != Where.NO_GAIN.value)]


def rates(answers: pd.DataFrame) -> pd.DataFrame:
    """How many percent of the models an explainer is right, wrong and undecided about, a row for each axis.

    Intervals hold 95 % of 2,000 resamples of families, since models of a family are copies. An explainer that gives no
    model a label on an axis is left out there. Models without a gain are a row of their own, *no gain*.
    """
    rows = []
    for axis in AXES:
        of_axis = scored(answers, axis)
        for explainer in RULES:
            asked = of_axis[of_axis["family"].isin(PROMPTS)] if explainer in PAPER else of_axis
            said = asked[f"{explainer}: {axis}"]
            if not len(said) or (said == UNDECIDED).all():
                continue
            right = said == asked[f"truth: {axis}"]
            outcomes = {"right": right, "wrong": ~right & (said != UNDECIDED), "undecided": said == UNDECIDED}
            row: dict[str, object] = {"axis": axis, "explainer": explainer, "models": len(said)}
            for name, holds in outcomes.items():
                row |= _over_families(name, holds, asked["family"])
            rows.append(row)
    none = answers[answers["counts"] & (answers["truth: where"] == Where.NO_GAIN.value)]
    if len(none):
        right = none["verdict: where"] == Where.NO_GAIN.value
        row = {"axis": Where.NO_GAIN.value, "explainer": "verdict", "models": len(none)}
        rows.append(
            row | _over_families("right", right, none["family"]) | _over_families("wrong", ~right, none["family"])
        )
    return pd.DataFrame(rows)


def _over_families(name: str, holds: pd.Series, families: pd.Series) -> dict[str, float]:
    """The percentage of models of which something holds, with its interval over families."""
    of_family = holds.groupby(families).agg(["sum", "size"]).to_numpy(float)
    counts = np.random.default_rng(0).integers(0, len(of_family), (RESAMPLES, len(of_family)))
    drawn = of_family[counts].sum(1)
    low, high = np.quantile(100 * drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return {name: 100 * float(holds.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
