"""Evaluates a tuned adapter, with nothing but its file, or zero-shot CLIP.

    python -m experiments.evaluate --config.adapters=workdir/digits
    python -m experiments.evaluate --config.model=demo --config.dataset=demo/digits
    python -m experiments.evaluate --config.model=demo --config.dataset=demo/digits --config.ood=demo/fashion

The dataset's own classes are used; an adapter that learned something per class refuses others. Beside the accuracy
stands how well calibrated the probabilities are, as they are and at the temperature that the dataset's validation
images ask for; and with `ood` how well they, and the logits, tell the dataset's images from those of another one.
`classes.csv` has each class's accuracy, `confusion.png` what it is taken for, `predictions.csv` every image's answer.

A folder keeps its evaluation: one of another adapter, of other images or with other settings wants another --workdir.
"""

import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import clipbias
from clipbias import hosts
from clipbias.constants import ZERO_SHOT
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, write_text
from clipbias.report.classes import Answers, weakest_classes, write_answers
from clipbias.report.names import method_name
from clipbias.settings import as_json
from clipbias.training import mesh as meshes
from clipbias.training.evaluate import evaluate
from clipbias.training.metrics import MetricWriter
from clipbias.training.predictions import fingerprint, save_predictions
from clipbias.training.workdir import open_workdir
from clipbias.tuning import Learnables, Task
from configs.evaluate import EvaluateSettings
from experiments import common
from experiments.command_line import split
from experiments.inputs import find_adapter

_CONFIG = "configs/evaluate.py"
RESULT = "result.json"


def main(settings: EvaluateSettings, workdir: Path) -> None:
    found = find_adapter(settings.adapters)
    adapter = found[0] if found else None
    mesh = meshes.make_mesh(run=settings.mesh.run, data=settings.mesh.data)
    with open_workdir(workdir, as_json(settings)):
        clip = clipbias.load(settings.model or (adapter.base if adapter else "demo"))
        hosts.assert_same(f"the model {clip.name}", clip.fingerprint)
        name = settings.dataset or (adapter.notes.get("dataset", "") if adapter else "")
        if not name:
            raise ClipbiasError("no dataset; give --config.dataset=NAME, or --config.adapters=FILE to take its own.")
        load = functools.cache(lambda name: common.load_dataset(settings, name))
        dataset, outside = load(name), load(settings.ood).split("test") if settings.ood else None
        if adapter is None:
            task = Task(clip, ZERO_SHOT, dataset, dtype=settings.dtype)
            learnables: Learnables = {}
        else:
            task, learnables = adapter.bind(
                clip,
                dataset.class_names,
                own_methods=split(settings.own_methods),
                descriptions=dataset.descriptions,
                dtype=settings.dtype,
            )
        task = task.with_memory(class_shards=mesh.shape[meshes.DATA])
        method, images = adapter.method if adapter else ZERO_SHOT, dataset.split(settings.split)
        what = fingerprint(task, learnables, method, images)
        hosts.assert_same(f"the images of {name}", what)
        if jax.process_index() == 0:
            keep_evaluation(workdir, what)

        answered: list[Answers] = []

        def save(predicted: np.ndarray) -> None:
            answered.append(Answers(np.asarray(images.labels), predicted, dataset.class_names))
            if jax.process_index() == 0:
                save_predictions(workdir, settings.split, task, learnables, method, images, predicted)

        began = time.monotonic()
        score = evaluate(
            task,
            learnables,
            images,
            mesh=mesh,
            eval_batch_size=settings.eval_batch_size,
            on_image_error=settings.on_image_error,
            workers=settings.workers,
            validation=dataset.splits.get("val"),
            outside=outside,
            save=save,
        )
        with MetricWriter(workdir) as metrics:
            share, seconds = score["correct"] / max(score["images"], 1), time.monotonic() - began
            metrics.write(1, {"accuracy": share, "images": score["images"], "seconds": round(seconds, 4)})
        if jax.process_index() == 0:
            if settings.ood:
                score["ood"] = {"dataset": settings.ood, **score["ood"]}
            result = {"method": method, "dataset": name, "split": settings.split, "fingerprint": what}
            result |= {"dtype": settings.dtype, **score}
            write_text(workdir / RESULT, json.dumps(result, indent=2) + "\n")
            common.tell(f"{method} on {name}: {score['accuracy']:.2f} % of {score['images']} {settings.split} images")
            for line in told(score):
                common.tell(line)
            for answers in answered:
                write_answers(
                    workdir, images.keys, answers, f"{method_name(method)} on {name}, {settings.split} images"
                )
                if words := weakest_classes(answers):
                    common.tell(
                        f"least accurate classes: {words} ({workdir / 'classes.csv'}, {workdir / 'confusion.png'})"
                    )


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


def told(score: dict[str, Any]) -> list[str]:
    """Calibration and detection in words."""
    found = score["calibration"]
    lines = [f"calibration error {found['ece']:.2f} %, adaptive {found['adaptive_ece']:.2f} %"]
    if "temperature" in found:
        lines[0] += (
            f"; {found['ece_at_temperature']:.2f} % and {found['adaptive_ece_at_temperature']:.2f} % at temperature "
            f"{found['temperature']:.3f}, fitted on validation images"
        )
    else:
        lines[0] += "; no temperature is fitted, for want of validation images beside those evaluated on"
    if "ood" in score:
        ood = score["ood"]
        scores = (
            f"by {words} AUROC {ood[key]['auroc']:.2f} %, FPR95 {ood[key]['fpr95']:.2f} %"
            for key, words in (("max_softmax", "largest probability"), ("max_logit", "largest logit"))
        )
        lines.append(f"told from {ood['images']} images of {ood['dataset']}: {'; '.join(scores)}")
    return lines


if __name__ == "__main__":
    common.run(main, _CONFIG)
