"""Explains trained models, asks every explainer for its labels, and counts them against the truth."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

import clipbias
from clipbias import settings
from clipbias.constants import ZERO_SHOT
from clipbias.data.few_shot import wilson_interval
from clipbias.data.held_out import unlabelled_images
from clipbias.errors import ClipbiasError
from clipbias.explain.model import Model
from clipbias.explain.options import StudyOptions
from clipbias.explain.results import StudyResults, load_results
from clipbias.explain.run import run_study
from clipbias.explain.study import Study
from clipbias.explain.uncertainty import excludes
from clipbias.tuning import Task
from tools.mechanisms.models import LABELS, NO_GAIN, OWN, Spec, digest
from tools.mechanisms.rules import RULES, UNDECIDED, Answer, explain, gain_of
from tools.mechanisms.train import adapter_path, dataset_of, frozen_model, start_seed, training_images

SECTIONS = ("predictions", "relevancy", "vision_attention", "decomposition", "factorial")
MODEL = "model"


@dataclasses.dataclass(frozen=True)
class Confusion:
    """How often an explainer gives each label on one axis.

    Attributes:
      counts: by true label and label.
      right, wrong, undecided: shares of the models in percent, with Wilson's 95 % interval.
    """

    counts: dict[str, dict[str, int]]
    models: int
    right: tuple[float, float, float]
    wrong: tuple[float, float, float]
    undecided: tuple[float, float, float]

    @property
    def answers(self) -> bool:
        """Whether the explainer ever gives a label other than "no gain", which all give alike."""
        return any(row[label] for row in self.counts.values() for label in row if label not in (NO_GAIN, UNDECIDED))


def study_model(workdir: Path, spec: Spec, options: StudyOptions) -> StudyResults:
    """The study of one trained model, with constants in its place if it surely gains."""
    results = study(workdir / "studies" / spec.key, workdir, spec, SECTIONS, options)
    if not spec.of_family.replaced or excludes(gain_of(results, MODEL)) <= 0:
        return results
    # Apart, so that the other training is in no other section.
    fitted = study(workdir / "replacements" / spec.key, workdir, spec, ("replacement",), options, again=True)
    return dataclasses.replace(results, replacement=fitted.replacement)


def study(
    folder: Path, workdir: Path, spec: Spec, sections: Sequence[str], options: StudyOptions, *, again: bool = False
) -> StudyResults:
    """Sections on a dataset's test images; those that are finished with these options are read.

    Args:
      folder: of the results.
      workdir: of the benchmark.
      spec: of the model.
      sections: to compute.
      options: of the study.
      again: whether the method's other training is in the study.
    """
    config = settings.as_json(options)
    if (folder / "results.json").exists():
        results = load_results(folder)
        if set(sections) <= set(results.sections) and results.config == config:
            return results
    clip = frozen_model(workdir, spec)
    dataset = dataset_of(workdir, spec)
    models = [Model(ZERO_SHOT, "Zero-shot", ZERO_SHOT, Task(clip, ZERO_SHOT, dataset), {})]
    for key, is_again in ((MODEL, False), ("again", True))[: 1 + again]:
        tuned = clipbias.load_adapter(adapter_path(workdir, spec, again=is_again), clip, own_methods=[OWN])
        models.append(
            Model(
                key,
                f"{spec.key} {key}",
                tuned.task.method_name,
                tuned.task,
                tuned.learnables,
                seed=start_seed(spec, again=is_again),
                trained_on=dataset.name,
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
    truths = {f"truth: {axis}": getattr(spec.of_family, axis) or "" for axis in LABELS}
    silent = Answer("", "")
    said = {f"{name}: {axis}": getattr(answers.get(name, silent), axis) for name in RULES for axis in LABELS}
    return {"model": spec.key, "layers": layers, "digest": digest()[:12], "counts": counts, **truths, **said}


def notes_of(path: Path) -> Mapping[str, object]:
    """What a model's file says of its training."""
    return clipbias.tuning.adapter.read_adapter(path).notes


def read_answers(path: Path) -> pd.DataFrame:
    """What `score` returned, from its file."""
    return pd.read_csv(path, keep_default_na=False)


def confusion(answers: pd.DataFrame, explainer: str, axis: str) -> Confusion:
    """Of the models that count and have a true label on the axis."""
    scored = answers[answers["counts"] & (answers[f"truth: {axis}"] != "")]
    pairs = Counter(zip(scored[f"truth: {axis}"], scored[f"{explainer}: {axis}"], strict=True))
    total = pairs.total()
    right = sum(count for (truth, label), count in pairs.items() if truth == label)
    undecided = sum(count for (_, label), count in pairs.items() if label == UNDECIDED)

    def share(count: int) -> tuple[float, float, float]:
        if not total:
            return (0.0, 0.0, 100.0)
        return (100 * count / total, *wilson_interval(100 * count / total, total))

    labels = (*LABELS[axis], UNDECIDED)
    return Confusion(
        counts={truth: {label: pairs[truth, label] for label in labels} for truth in LABELS[axis]},
        models=total,
        right=share(right),
        wrong=share(total - right - undecided),
        undecided=share(undecided),
    )


def confusions(answers: pd.DataFrame) -> dict[tuple[str, str], Confusion]:
    """By axis and explainer, of those that answer."""
    every = {(axis, explainer): confusion(answers, explainer, axis) for axis in LABELS for explainer in RULES}
    return {place: each for place, each in every.items() if each.answers}


def rates(answers: pd.DataFrame) -> pd.DataFrame:
    """A row for each axis and explainer that answers: models, and how many percent of them are right and wrong."""
    rows = []
    for (axis, explainer), each in confusions(answers).items():
        shares = {"right": each.right, "wrong": each.wrong, "undecided": each.undecided}
        ends = {
            f"{name}{end}": x for name in shares for end, x in zip(("", "_low", "_high"), shares[name], strict=True)
        }
        rows.append({"axis": axis, "explainer": explainer, "models": each.models, **ends})
    return pd.DataFrame(rows)
