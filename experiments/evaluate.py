"""Evaluates a tuned adapter, with nothing but its file, or zero-shot CLIP.

    python -m experiments.evaluate --config.adapters=workdir/digits
    python -m experiments.evaluate --config.model=demo --config.dataset=demo/digits
    python -m experiments.evaluate --config.model=demo --config.dataset=demo/digits --config.ood=demo/fashion

The dataset's classes are used; an adapter with parameters for each class refuses others. Besides the accuracy, balanced
accuracy, macro-F1 and the worst class are written, and the calibration of the probabilities, as they are and at a
temperature fitted on the dataset's validation images; with `ood`, how well probabilities and logits separate the
dataset's images from those of another dataset. Of a calibrated adapter, the coverage and size of its prediction sets,
and the shares of images that it rejects. `classes.csv` has each class's accuracy, precision and F1, `confusion.png` its
confusions, `predictions.csv` every image's prediction.

A folder keeps its evaluation: another adapter, other images or other settings need another --workdir.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

import clipbias
from clipbias import TunedModel, hosts
from clipbias.constants import ZERO_SHOT
from clipbias.data import Dataset, Split
from clipbias.data.few_shot import accuracy_words
from clipbias.data.held_out import FEWEST_TO_CALIBRATE
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, write_text
from clipbias.report.classes import Answers, weakest_classes, write_answers
from clipbias.report.names import method_name
from clipbias.sentences import counted
from clipbias.settings import as_json
from clipbias.terminal import printable
from clipbias.training import mesh as meshes
from clipbias.training.calibration import COLDEST, HOTTEST
from clipbias.training.evaluate import evaluate, fingerprint, save_predictions
from clipbias.training.progress import MetricWriter
from clipbias.training.workdir import open_workdir
from clipbias.tuning import Learnables, Task
from clipbias.tuning.adapter import Adapter
from clipbias.tuning.conformal import NOT_CALIBRATED, AnswerRule, measured_words
from configs.evaluate import EvaluateSettings
from experiments import common
from experiments.command_line import split
from experiments.inputs import find_adapter

_CONFIG = "configs/evaluate.py"
RESULT = "result.json"


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A model and the images that it is evaluated on.

    Attributes:
      method: the method's name.
      dataset_name: as the settings or the adapter name it.
      dataset: the images' dataset.
      images: one of its splits.
      task, learnables: the model.
      rule: what its prediction sets and rejections are made by; `None` where it is not calibrated for these classes.
    """

    method: str
    dataset_name: str
    dataset: Dataset
    images: Split
    task: Task
    learnables: Learnables
    rule: AnswerRule | None = None

    @property
    def title(self) -> str:
        """Method and dataset for pages."""
        return f"{method_name(self.method)} on {self.dataset_name}"


def main(settings: EvaluateSettings, workdir: Path) -> None:
    pair = find_adapter(settings.adapters)
    adapter = None if pair is None else pair[0]
    mesh = meshes.make_mesh(run=settings.mesh.run, data=settings.mesh.data)
    with open_workdir(workdir, as_json(settings)):
        model = open_model(settings, adapter, mesh)
        outside = None if settings.ood is None else common.load_dataset(settings, settings.ood).split("test")
        key = fingerprint(model.task, model.learnables, model.method, model.images)
        hosts.assert_same(f"the images of {model.dataset_name}", key)
        if hosts.is_first():
            keep_evaluation(workdir, key)
        predictions: list[np.ndarray] = []
        began = time.monotonic()
        score = evaluate(
            model.task,
            model.learnables,
            model.images,
            mesh=mesh,
            eval_batch_size=settings.eval_batch_size,
            on_image_error=settings.on_image_error,
            workers=settings.workers,
            validation=model.dataset.splits.get("val"),
            outside=outside,
            rule=model.rule,
            save=predictions.append,
        )
        with MetricWriter(workdir) as metrics:
            seconds = round(time.monotonic() - began, 4)
            metrics.write(1, {"accuracy": score["accuracy"], "images": score["images"], "seconds": seconds})
        if hosts.is_first():
            if settings.ood is not None:
                score["ood"] = {"dataset": settings.ood, **score["ood"]}
            write_result(settings, model, score, key, workdir)
            write_predictions(settings, model, predictions[0], workdir)


def open_model(settings: EvaluateSettings, adapter: Adapter | None, mesh: Mesh) -> Evaluated:
    """An adapter, or zero-shot CLIP, with the classes of the dataset that it is evaluated on."""
    clip = clipbias.load(settings.model or (adapter.base if adapter else "demo"))
    hosts.assert_same(f"the model {clip.name}", clip.fingerprint)
    name = settings.dataset or (adapter.notes.get("dataset", "") if adapter else "")
    if not name:
        raise ClipbiasError("no dataset; give --config.dataset=NAME, or --config.adapters=FILE to take its own.")
    dataset = common.load_dataset(settings, name)
    learnables: Learnables = {}
    rule = None
    if adapter is None:
        task = Task(clip, ZERO_SHOT, dataset, dtype=settings.dtype)
    else:
        tuned = TunedModel.of(adapter, clip, own_methods=split(settings.own_methods), dtype=settings.dtype)
        tuned = tuned.with_classes(dataset, descriptions=dataset.descriptions)
        task = tuned.task
        learnables = tuned.learnables
        rule = tuned.rule(settings.answers)
    return Evaluated(
        method=adapter.method if adapter else ZERO_SHOT,
        dataset_name=name,
        dataset=dataset,
        images=dataset.split(settings.split),
        task=task.with_memory(class_shards=mesh.shape[meshes.DATA]),
        learnables=learnables,
        rule=rule,
    )


def write_result(
    settings: EvaluateSettings, model: Evaluated, score: Mapping[str, Any], key: str, workdir: Path
) -> None:
    """Writes and prints the accuracy and what goes with it."""
    result = {
        "method": model.method,
        "dataset": model.dataset_name,
        "split": settings.split,
        "fingerprint": key,
        "dtype": settings.dtype,
        **score,
    }
    write_text(workdir / RESULT, json.dumps(result, indent=2) + "\n")
    words = accuracy_words(score["accuracy"], score["images"], f"{settings.split} image")
    common.tell(f"{model.method} on {model.dataset_name}: {words}")
    common.tell(describe_classes(score["class_summary"]), *describe_score(score))
    if settings.adapters and model.rule is None:
        common.tell(f"no prediction sets: {NOT_CALIBRATED}")


def write_predictions(settings: EvaluateSettings, model: Evaluated, predicted: np.ndarray, workdir: Path) -> None:
    """Writes every image's prediction and each class's accuracy."""
    save_predictions(workdir, settings.split, model.task, model.learnables, model.method, model.images, predicted)
    answers = Answers(np.asarray(model.images.labels), predicted, model.dataset.class_names)
    write_answers(workdir, model.images.keys, answers, f"{model.title}, {settings.split} images")
    if words := weakest_classes(answers):
        common.tell(f"least accurate classes: {words} ({workdir / 'classes.csv'}, {workdir / 'confusion.png'})")


def keep_evaluation(workdir: Path, fingerprint: str) -> None:
    """Refuses a folder that holds the evaluation of an adapter, or of images, that were exchanged since."""
    try:
        before = read_json(workdir / RESULT, dict).get("fingerprint", fingerprint)
    except ClipbiasError:  # none yet, or damaged
        return
    if before != fingerprint:
        raise ClipbiasError(
            f"{workdir} holds the evaluation of another adapter or of other images, under the same names; choose "
            "another --workdir."
        )


def describe_classes(summary: Mapping[str, Any]) -> str:
    """The scores that count each class alike in words (`data.confusion.class_summary`)."""
    words = (
        f"balanced accuracy {summary['balanced_accuracy']:.2f} %, macro-F1 {summary['macro_f1']:.2f} %, worst class "
        f"{printable(summary['worst_class'])} {summary['worst_accuracy']:.2f} %"
    )
    if untested := summary.get("untested_classes"):
        names = ", ".join(map(printable, untested))
        words += f"; left out: {counted(len(untested), 'class')} without images ({names})"
    return words


def describe_score(score: Mapping[str, Any]) -> list[str]:
    """Calibration and detection in words."""
    calibration = score["calibration"]
    line = f"calibration error {calibration['ece']:.2f} %, adaptive {calibration['adaptive_ece']:.2f} %"
    if "temperature" in calibration:
        line += (
            f"; {calibration['ece_at_temperature']:.2f} % and {calibration['adaptive_ece_at_temperature']:.2f} % at "
            f"temperature {calibration['temperature']:.3f}, fitted on validation images"
        )
    else:
        line += f"; no temperature is fitted, because {_no_temperature(score.get('validation_images', 0))}"
    lines = [line]
    if "ood" in score:
        ood = score["ood"]
        scores = (
            f"by {words} AUROC {ood[key]['auroc']:.2f} %, FPR95 {ood[key]['fpr95']:.2f} %"
            for key, words in (("max_softmax", "largest probability"), ("max_logit", "largest logit"))
        )
        lines.append(f"separated from {counted(ood['images'], 'image')} of {ood['dataset']}: {'; '.join(scores)}")
        if "accepted" in ood:
            lines.append(f"{ood['accepted']:.1f} % of these images are accepted at the adapter's threshold")
    if "answers" in score:
        lines.append(measured_words(score["answers"]))
    return lines


def _no_temperature(images: int) -> str:
    """Why no temperature was fitted on so many validation images."""
    if not images:
        return "there are no other images to validate on"
    if images < FEWEST_TO_CALIBRATE:
        return f"{images} validation images are too few; it takes {FEWEST_TO_CALIBRATE}"
    return (
        f"none between {COLDEST:g} and {HOTTEST:g} suits the {images} validation images best; add images that the "
        "model gets wrong, or more of them"
    )


if __name__ == "__main__":
    common.run(main, _CONFIG)
