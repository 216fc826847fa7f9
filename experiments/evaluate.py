"""Evaluates a tuned adapter, with nothing but its file, or zero-shot CLIP.

    python -m experiments.evaluate --config.adapters=workdir/digits
    python -m experiments.evaluate --config.model=demo --config.dataset=demo/digits
    python -m experiments.evaluate --config.model=demo --config.dataset=demo/digits --config.ood=demo/fashion

Uses the dataset's classes; an adapter with parameters for each class refuses others. Writes accuracy, balanced
accuracy, macro-F1, the worst class, and the calibration of the probabilities, as they are and at a temperature that is
fitted on the dataset's validation images. With `ood` it measures how well probabilities and logits separate the
dataset's images from those of another dataset. For a calibrated adapter it also writes coverage and size of the
prediction sets, and the shares of rejected images. `classes.csv` has each class's accuracy, precision and F1,
`confusion.png` the confusions, `predictions.csv` every image's prediction.

A folder keeps its evaluation: another adapter, other images or other settings need another --workdir.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import clipbias
from clipbias import TunedModel, hosts
from clipbias.constants import ZERO_SHOT
from clipbias.data import Dataset, Split, held_out, protocols
from clipbias.data.held_out import FEWEST_TO_CALIBRATE
from clipbias.errors import ClipbiasError
from clipbias.intervals import accuracy_words
from clipbias.io import read_json, write_text
from clipbias.report.names import method_name
from clipbias.report.predictions import Answers, weakest_classes, write_answers
from clipbias.sentences import counted
from clipbias.settings import as_json
from clipbias.terminal import printable
from clipbias.training import placement
from clipbias.training.calibration import COLDEST, HOTTEST
from clipbias.training.predictions import predictions_identity, save_predictions
from clipbias.training.predictor import evaluate
from clipbias.training.progress import MetricWriter
from clipbias.training.spec import DISTILLATION, seen_in_training
from clipbias.training.workdir import open_workdir
from clipbias.tuning import Task
from clipbias.tuning.adapter import Adapter
from clipbias.tuning.conformal import NOT_CALIBRATED, measured_words
from configs.evaluate import EvaluateSettings
from experiments import common
from experiments.inputs import find_adapter, open_adapter

RESULT = "result.json"


def main(settings: EvaluateSettings, workdir: Path) -> None:
    mesh = placement.make_mesh(run=settings.mesh.run, data=settings.mesh.data)
    pair = find_adapter(settings.adapters)
    adapter = None if pair is None else pair[0]
    with open_workdir(workdir, as_json(settings)):
        model, name, dataset = open_model(settings, adapter)
        images = dataset.split(settings.split)
        outside = None if settings.ood is None else common.load_dataset(settings, settings.ood).split("test")
        method = model.task.method_name
        rule = model.rule(settings.answers)
        key = predictions_identity(model, images.identity)
        hosts.assert_same(f"the images of {name}", key)
        if hosts.is_first():
            keep_evaluation(workdir, key)
            if adapter and (words := seen_in_training(adapter.notes, dataset, adapter.classes, settings.split)):
                common.tell(words)
        began = time.monotonic()
        score, predicted = evaluate(
            model,
            images,
            mesh=mesh,
            eval_batch_size=settings.eval_batch_size,
            on_image_error=settings.on_image_error or "raise",
            workers=settings.workers,
            validation=validation_images(dataset, name, {} if adapter is None else adapter.notes),
            outside=outside,
            rule=rule,
        )
        with MetricWriter(workdir) as metrics:
            seconds = round(time.monotonic() - began, 4)
            metrics.write(1, {"accuracy": score["accuracy"], "images": score["images"], "seconds": seconds})
        if not hosts.is_first():
            return
        if settings.ood is not None:
            score["ood"] = {"dataset": settings.ood, **score["ood"]}
        facts = {"method": method, "dataset": name, "split": settings.split, "identity": key}
        facts["dtype"] = model.task.classifier.dtype
        write_text(workdir / RESULT, json.dumps({**facts, **score}, indent=2) + "\n")
        words = accuracy_words(score["accuracy"], score["images"], f"{settings.split} image")
        common.tell(f"{method} on {name}: {words}", describe_classes(score["class_summary"]), *describe_score(score))
        if settings.adapters and rule is None:
            common.tell(f"no prediction sets: {NOT_CALIBRATED}")
        save_predictions(workdir, settings.split, model, images, predicted)
        answers = Answers(np.asarray(images.labels), predicted, dataset.class_names)
        write_answers(workdir, images.keys, answers, f"{method_name(method)} on {name}, {settings.split} images")
        if words := weakest_classes(answers):
            common.tell(f"least accurate classes: {words} ({workdir / 'classes.csv'}, {workdir / 'confusion.png'})")


def open_model(settings: EvaluateSettings, adapter: Adapter | None) -> tuple[TunedModel, str, Dataset]:
    """Opens an adapter, or zero-shot CLIP, with the dataset's classes; returns model, dataset's name, and dataset."""
    name = settings.dataset or (adapter.notes.get("dataset", "") if adapter else "")
    if not name:
        raise ClipbiasError("no dataset; give --config.dataset=NAME, or --config.adapters=FILE to take its own.")
    dataset = common.load_dataset(settings, name)  # before the model, whose weights may have to be downloaded
    clip = clipbias.load(settings.model or (adapter.base if adapter else "demo"), device="host")
    hosts.assert_same(f"the model {clip.name}", clip.identity)
    if adapter is None:
        return TunedModel(Task(clip, ZERO_SHOT, dataset, dtype=settings.dtype or "float32")), name, dataset
    model = open_adapter(adapter, clip, settings)
    return model.with_classes(dataset, descriptions=dataset.descriptions), name, dataset


def validation_images(dataset: Dataset, name: str, notes: Mapping[str, Any]) -> Split | None:
    """Returns the images that may fit a temperature."""
    # Nor may images that trained the adapter, even without labels.
    if (notes.get("dataset"), notes.get("protocol")) == (name, DISTILLATION):
        return None
    # Images on which `train` selected a setting of the adapter must not calibrate it: of those the rule leaves others.
    if (notes.get("dataset"), notes.get("validation")) != (name, held_out.POLICY) or "train" not in dataset.splits:
        return dataset.splits.get("val")
    protocol = held_out.by_the_rule(protocols.full(dataset), notes["seed"])
    return protocol.calibration and protocol.calibration()


def keep_evaluation(workdir: Path, identity: str) -> None:
    """Refuses a folder with the evaluation of another adapter, or of other images, under the same names."""
    try:
        before = read_json(workdir / RESULT, dict).get("identity", identity)
    except ClipbiasError:  # none yet, or damaged
        return
    if before != identity:
        raise ClipbiasError(
            f"{workdir} holds the evaluation of another adapter, of other texts or images, under the same names; "
            "choose another --workdir."
        )


def describe_classes(summary: Mapping[str, Any]) -> str:
    """Describes the scores that weigh classes equally (`data.confusion.class_summary`)."""
    words = (
        f"balanced accuracy {summary['balanced_accuracy']:.2f} %, macro-F1 {summary['macro_f1']:.2f} %, worst class "
        f"{printable(summary['worst_class'])} {summary['worst_accuracy']:.2f} %"
    )
    if untested := summary.get("untested_classes"):
        names = ", ".join(map(printable, untested))
        words += f"; left out: {counted(len(untested), 'class')} without images ({names})"
    return words


def describe_score(score: Mapping[str, Any]) -> list[str]:
    """Describes calibration, detection and prediction sets."""
    calibration = score["calibration"]
    images = calibration.get("validation_images", 0)
    if "temperature" in calibration:
        at = (
            f"{calibration['ece_at_temperature']:.2f} % and {calibration['adaptive_ece_at_temperature']:.2f} % at "
            f"temperature {calibration['temperature']:.3f}, fitted on {counted(images, 'validation image')}"
        )
    else:
        reason = (
            f"the fit to the {images} validation images has no minimum between {COLDEST:g} and {HOTTEST:g}; add more "
            "images, or images that the model gets wrong"
        )
        if images < FEWEST_TO_CALIBRATE:
            reason = f"{images} validation images are too few; it takes {FEWEST_TO_CALIBRATE}"
        if not images:
            reason = "there are no other validation images, or they trained or selected a setting"
        at = f"no temperature is fitted, because {reason}"
    line = f"calibration error {calibration['ece']:.2f} %, adaptive {calibration['adaptive_ece']:.2f} %; {at}"
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


if __name__ == "__main__":
    common.run(main)
