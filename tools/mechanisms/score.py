"""Explains trained models, asks every explainer for its labels, and counts them against the truth."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import clipbias
from clipbias import settings
from clipbias.constants import ZERO_SHOT
from clipbias.data.counts import wilson_interval
from clipbias.data.unlabelled import unlabelled_images
from clipbias.explain.model import Model
from clipbias.explain.options import StudyOptions
from clipbias.explain.results import StudyResults, load_results
from clipbias.explain.run import run_study
from clipbias.explain.study import Study
from clipbias.io import write_text
from clipbias.tuning import Task
from tools.mechanisms.models import LABELS, OWN, Spec, digest
from tools.mechanisms.rules import RULES, UNDECIDED, Answer, explain
from tools.mechanisms.train import adapter_path, dataset_of, frozen_model, training_images

SECTIONS = ("predictions", "relevancy", "vision_attention", "decomposition", "factorial")
MODEL = "model"


@dataclasses.dataclass(frozen=True)
class Scored:
    """One model with what every explainer says of it.

    Attributes:
      counts: whether it is scored, see `models.counts`.
      answers: by explainer; none of a model that does not count, which is not studied.
    """

    spec: Spec
    counts: bool
    answers: Mapping[str, Answer]


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


def study_model(workdir: Path, spec: Spec, sections: Sequence[str], options: StudyOptions) -> StudyResults:
    """The study of one trained model on its dataset's test images; one that is finished with these options is read."""
    folder = workdir / "studies" / spec.key
    config = settings.as_json(options)
    if (folder / "results.json").exists():
        results = load_results(folder)
        if set(sections) <= set(results.sections) and results.config == config:
            return results
    clip = frozen_model(workdir, spec)
    dataset = dataset_of(workdir, spec)
    tuned = clipbias.load_adapter(adapter_path(workdir, spec), clip, own_methods=[OWN])
    method = tuned.task.method_name
    models = [
        Model(ZERO_SHOT, "Zero-shot", ZERO_SHOT, Task(clip, ZERO_SHOT, dataset), {}),
        Model(MODEL, spec.key, method, tuned.task, tuned.learnables, seed=spec.seed, trained_on=dataset.name),
    ]
    test = dataset.split("test")
    study = Study(
        models,
        test,
        options,
        folder,
        training=training_images(dataset, spec),
        unlabelled=unlabelled_images(dataset, test),
    )
    return run_study(study, folder, dataset=dataset.name, config=config, sections=sections)


def score(workdir: Path, specs: Sequence[Spec], sections: Sequence[str], options: StudyOptions) -> list[Scored]:
    """Studies those of the models that are trained and count."""
    scored = []
    for spec in specs:
        path = adapter_path(workdir, spec)
        if path.exists():
            validation = notes_of(path)["validation"]
            assert isinstance(validation, dict)
            counts = bool(validation["counts"])
            answers = explain(study_model(workdir, spec, sections, options), MODEL) if counts else {}
            scored.append(Scored(spec, counts, answers))
    return scored


def notes_of(path: Path) -> Mapping[str, object]:
    """What a model's file says of its training."""
    return clipbias.tuning.adapter.read_adapter(path).notes


def confusion(scored: Sequence[Scored], explainer: str, axis: str) -> Confusion:
    """Of the models that count and have a true label on the axis."""
    pairs = Counter[tuple[str, str]]()
    for model in scored:
        truth = getattr(model.spec.of_family, axis)
        if model.counts and truth is not None:
            pairs[truth, getattr(model.answers[explainer], axis)] += 1
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


def as_json(scored: Sequence[Scored], trained_under: Sequence[str]) -> dict[str, object]:
    """Everything that was counted, with the hash of labels and rules, now and when the models were trained."""
    models = [
        {
            "key": model.spec.key,
            "truth": {axis: getattr(model.spec.of_family, axis) for axis in LABELS},
            "counts": model.counts,
            "answers": {name: dataclasses.asdict(answer) for name, answer in model.answers.items()},
        }
        for model in scored
    ]
    matrices = {
        axis: {explainer: dataclasses.asdict(confusion(scored, explainer, axis)) for explainer in RULES}
        for axis in LABELS
    }
    return {"digest": digest(), "trained_under": sorted(set(trained_under)), "models": models, "confusion": matrices}


def format_table(scored: Sequence[Scored]) -> str:
    """Every explainer's confusion matrix and rates."""
    lines = [f"{sum(model.counts for model in scored)} of {len(scored)} models count."]
    for axis in LABELS:
        for explainer in RULES:
            matrix = confusion(scored, explainer, axis)
            rates = {"right": matrix.right, "wrong": matrix.wrong, "undecided": matrix.undecided}
            shown = ", ".join(f"{name} {x:.0f} % ({low:.0f} to {high:.0f})" for name, (x, low, high) in rates.items())
            lines += ["", f"{axis}, {explainer}: {matrix.models} models; {shown}"]
            columns = (*LABELS[axis], UNDECIDED)
            lines.append("  " + " ".join(f"{label:>12}" for label in ("truth", *columns)))
            for truth, row in matrix.counts.items():
                cells = " ".join(f"{row[label]:>12}" for label in columns)
                lines.append(f"  {truth:>12} {cells}")
    return "\n".join(lines)


def write(workdir: Path, scored: Sequence[Scored]) -> None:
    """Writes `scores.json` into the work folder."""
    hashes = [str(notes_of(adapter_path(workdir, model.spec))["digest"]) for model in scored]
    write_text(workdir / "scores.json", json.dumps(as_json(scored, hashes), indent=1) + "\n")
