"""A group of runs from specs to rows: make its job, train it, score it, calibrate it, save the adapters.

How a group runs depends on its specs and on the devices alone, so that an interrupted group ends with the same numbers
to the last bit. `fit_task` makes the same job from memory, without files.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from clipbias import hosts
from clipbias.constants import ZERO_SHOT
from clipbias.data import Dataset, Split, held_out, protocols
from clipbias.data.confusion import class_summary
from clipbias.data.few_shot import images_per_class
from clipbias.data.held_out import hold_out_of
from clipbias.data.images import Images
from clipbias.identity import identity
from clipbias.sentences import counted
from clipbias.training import mesh as meshes
from clipbias.training.context import SweepContext
from clipbias.training.evaluate import Evaluation, predictions_name, save_predictions
from clipbias.training.loop import Logging, Run, TrainJob, TrainResult, check_images, train_job, validation_images
from clipbias.training.memory import fit_evaluation
from clipbias.training.progress import Progress
from clipbias.training.select import (
    apply,
    cautions_of_fit,
    frozen,
    replaced_options,
    score_validation,
    select,
    select_settings,
    selects,
    with_validation,
)
from clipbias.training.spec import TEST, UNSELECTED, Group, Row, RunSpec
from clipbias.training.teacher import split_logits
from clipbias.training.workdir import SweepPaths
from clipbias.tuning import Recipe, Task, parameter_count
from clipbias.tuning.adapter import write_adapter
from clipbias.tuning.conformal import Calibration
from clipbias.tuning.method import Learnables, select_run
from clipbias.tuning.transfer import transfer
from clipbias.tuning.tuned import Tuned

# Fields of a row that differ between two equal runs; adapters do not have them.
VOLATILE = ("seconds", "training_seconds", "waiting_share")


def run_group(
    group: Group,
    context: SweepContext,
    paths: SweepPaths,
    common: Recipe,
    progress: Progress,
    *,
    compares_rates: bool | None = None,
    calibrates: bool = False,
    facts: Mapping[str, Row] | None = None,
) -> list[Row]:
    """Runs a group, whose specs differ in seed or learning rate alone, from its specs to its rows.

    Args:
      group, context, paths: the specs, what the groups of the sweep share, and where to write.
      common: the recipe of methods that have none of their own; rows tell the differences from it.
      progress: is told stages and steps.
      compares_rates: of a group of one run: whether held-out images select its learning rate, beside what its method
        searches for; `None` selects nothing.
      calibrates: whether images that neither train nor select calibrate the adapters.
      facts: what is added to a row and its adapter, by the key of its spec.

    Returns:
      The rows. Of a run for which something was selected, the row's spec has the settings that were selected.
    """
    # Job
    logging = Logging(checkpoints=paths.checkpoints(group), metrics=paths.metrics(group), progress=progress)
    progress.at_work("reading images")
    job = make_job(group, context, logging)
    asked = job.task.method
    added = [{"training": spec.training, **(facts or {}).get(spec.key, {})} for spec in group]
    # Select. The spec of the row then has the settings that were selected.
    if compares_rates is not None:
        (spec,) = group
        spec, job, choice = select_settings(spec, job, paths.workdir, compares_rates=compares_rates)
        group = (spec,)
        added[0] |= choice
    if group[0].score_on != TEST:  # a broken image is told before the training
        check_images(job, list({split.digest: split for split in validation_images(job)}.values()))
    if paths.single and group[0].method != ZERO_SHOT:
        progress.at_work("evaluating zero-shot")
        _, _, of_frozen = evaluate_test(frozen(job), {}, job.protocol.evaluations[0])
        added[0]["zero_shot_accuracy"] = of_frozen.scores[0]["accuracy"]
    # Train
    result = train_job(job)
    for sentence in replaced_options(asked, select_run(result.learnables, 0)):
        progress.say(sentence)
    # Score
    progress.at_work("evaluating")
    if group[0].score_on == TEST:
        scores = _score_test(group, job, result.learnables, paths)
    else:
        scores = score_validation(job, result.learnables)
    rows = []
    for run, spec in enumerate(group):
        row = _row(spec, job, result, run, common, scores[run]) | added[run]
        learnables = select_run(result.learnables, run)
        has_adapter = spec.score_on == TEST and (bool(jax.tree.leaves(learnables)) or paths.single)
        # Calibrate: all processes compute, the first one writes.
        calibration, prediction_sets = None, "no prediction sets: the method learns nothing"
        if calibrates and has_adapter:
            images, prediction_sets = calibration_images(spec, context)
            if images is not None:
                calibration = calibrate(Tuned(job.task, learnables), images, context)
                prediction_sets = f"calibrated on {counted(len(calibration), 'image')}: it has prediction sets"
        # Save
        if has_adapter and hosts.is_first():
            kept = {name: value for name, value in row.items() if name not in VOLATILE}
            write_adapter(paths.adapter(spec), Tuned(job.task, learnables, kept, calibration))
        rows.append(row | {"prediction_sets": prediction_sets} if calibrates else row)
    return rows


def make_job(group: Group, context: SweepContext, logging: Logging | None = None) -> TrainJob:
    """The job of a group: its task, and its runs with their training images; runs of one seed share them.

    A method that takes no training image has its test images there.
    """
    first = group[0]
    method = first.make_method()
    by_seed = context.protocols_of(group)
    task = context.bind(method, by_seed[first.seed].source, first.method)
    if method.uses_images:
        # Where nothing can be run, as many labelled images stand for pseudo-labelled ones.
        unlabelled = (method.unlabelled or first.protocol == "pseudo_labels") and meshes.is_there(context.mesh)
        splits = [
            context.pseudo_labelled(task, protocol, first.shots) if unlabelled else protocol.source.split("train")
            for protocol in by_seed.values()
        ]
        images = dict(zip(by_seed, context.training_images(splits), strict=True))
    else:
        images = {seed: Images(protocol.evaluations[0].dataset.split("test")) for seed, protocol in by_seed.items()}
    runs = [Run(images[spec.seed], spec.start, by_seed[spec.seed], spec.learning_rate) for spec in group]
    return TrainJob(
        context=context,
        task=task,
        recipe=first.recipe if method.trains and method.uses_images else None,
        runs=tuple(runs),
        logging=logging or Logging(),
    )


def evaluate_test(
    job: TrainJob, learnables: Learnables, evaluation: protocols.EvaluationSet
) -> tuple[Task, Learnables, Evaluation]:
    """Evaluates the runs of a job, and their padding, on test images; `learnables [R, …]` lie on the host.

    A temperature is fitted on validation images (`calibration.temperature_images`).

    Returns:
      The task of the evaluation's classes, which may differ from those of training; its learnables; the predictions.
    """
    context = job.context
    task = context.bind(job.task.method, evaluation.dataset)
    task = fit_evaluation(task, runs=job.padded_runs, mesh=context.mesh)
    learnables = transfer(job.task, task, learnables, evaluation.source_labels, axis=1)
    evaluator = context.evaluator(evaluation.dataset.split("test"))
    validation = context.temperature_evaluator(job.protocol, evaluation)
    return task, learnables, evaluator.evaluate(*job.evaluation(task, learnables), validation=validation)


def _score_test(group: Group, job: TrainJob, learnables: Learnables, paths: SweepPaths) -> list[Row]:
    """Scores the runs on all test images, and saves their predictions."""
    scores: list[dict[str, Row]] = [{} for _ in group]
    identities: list[dict[str, str]] = [{} for _ in group]
    for evaluation in job.protocol.evaluations:
        task, transferred, tested = evaluate_test(job, learnables, evaluation)
        split = evaluation.dataset.split("test")
        images = split.identity  # which looks at every file
        skipped = {"skipped_images": tested.skipped} if tested.skipped else {}
        # Padding lies behind the runs.
        for run, (spec, score) in enumerate(zip(group, tested.scores, strict=False)):
            predicted = tested.predicted[run]
            summary = class_summary(split.labels, predicted, task.class_names)
            scores[run][evaluation.name] = score | {"class_summary": summary} | skipped
            if hosts.is_first():
                identities[run][evaluation.name] = save_predictions(
                    paths.workdir,
                    paths.predictions(spec, evaluation.name),
                    Tuned(task, select_run(transferred, run)),
                    split,
                    predicted,
                    tested.log_probs[run],
                    images=images,
                )
    rows = []
    for run, spec in enumerate(group):
        names = {name: predictions_name(paths.predictions(spec, name)) for name in scores[run]}
        facts = {"predictions": names, "identities": identities[run]}
        rows.append(facts | merge_scores(scores[run]))
    return rows


def merge_scores(scores: Mapping[str, Row]) -> Row:
    """The scores of one run in its evaluations, as its row has them: by name where it has more than one."""
    if len(scores) == 1:
        return dict(next(iter(scores.values())))
    merged: Row = {
        "tested_images": {name: score["images"] for name, score in scores.items()},
        "accuracies": {name: score["accuracy"] for name, score in scores.items()},
        "calibrations": {name: score["calibration"] for name, score in scores.items()},
        "class_summaries": {name: score["class_summary"] for name, score in scores.items()},
    }
    skipped = sum(score.get("skipped_images", 0) for score in scores.values())
    return merged | ({"skipped_images": skipped} if skipped else {})


def _row(spec: RunSpec, job: TrainJob, result: TrainResult, run: int, common: Recipe, scores: Row) -> Row:
    counts = parameter_count(select_run(result.learnables, run))
    row = spec_facts(spec, common) | {"model": job.context.clip.name, "status": "ok"} | scores
    row |= {f"parameters_{part}": counts[part] for part in ("vision", "text", "shared")}
    row |= {"parameters": counts["total"], "loss": None, "training_seconds": round(result.training_seconds[run], 4)}
    if result.losses:
        row |= {"loss": result.losses[run], "steps": result.steps, "waiting_share": round(result.waiting_share, 4)}
        if result.skipped[run]:
            row["skipped_training_images"] = result.skipped[run]
    if job.task.method.uses_images:  # in all, and of the classes with the fewest and the most
        labels = job.runs[run].images.labels
        row |= {"train_images": len(labels), "images_per_class": images_per_class(labels, len(job.task.class_names))}
    return row


def spec_facts(spec: RunSpec, common: Recipe) -> Row:
    """What names a run in its row; `own_recipe` is where its recipe differs from the common one."""
    different = {} if spec.recipe is None else spec.recipe.differences(common.with_learning_rate(spec.learning_rate))
    return {"key": spec.key, **spec.facts(), **({"own_recipe": different} if different else {})}


def calibrate(model: Tuned, images: Split, context: SweepContext) -> Calibration:
    """A tuned model's scores of images that neither trained it nor selected a setting."""
    logits, read = split_logits(model, Images(images), context)
    scale = float(np.exp(np.asarray(model.task.method.logit_scale(model.clip.params))))
    return Calibration.of(logits[read], images.labels[read], scale)


def calibration_images(spec: RunSpec, context: SweepContext) -> tuple[Split | None, str]:
    """The images that calibrate a run, or `None` and why there are none."""
    if spec.validation not in (UNSELECTED, held_out.POLICY):
        return None, f"no prediction sets: its validation images ({spec.validation}) selected a setting"
    (protocol,) = context.protocols_of((dataclasses.replace(spec, validation=UNSELECTED),)).values()
    images = held_out.left_to_calibrate(protocol, spec.seed, selects=spec.validation == held_out.POLICY)
    if images is not None:
        return images, ""
    return None, (
        f"no prediction sets: fewer than {held_out.FEWEST_TO_CALIBRATE} images neither train nor select a setting; "
        "give (more) validation images"
    )


# A job from memory, for `clipbias.fit`.


def fit_task(
    task: Task,
    recipe: Recipe,
    dataset: Dataset,
    context: SweepContext,
    *,
    shots: int | None,
    seed: int,
    start_seed: int | None = None,
    progress: Progress,
    compares_rates: bool = False,
    calibrates: bool | None = None,
) -> Tuned:
    """Trains a task with the few-shot splits, steps and numbers of `clipbias train`. Nothing is saved.

    Args:
      task: a method bound to classes, which uses training images.
      dataset: with the task's classes; it trains on "train", and "val" serves methods that select on it.
      shots: images of each class; `None` takes all.
      seed, start_seed: of the few-shot split; of initial learnables and the order of images, `None` for the same.
      compares_rates: whether the learning rate is selected on held-out images (`data.held_out`).
      calibrates: whether images are left to calibrate; `None` where there are enough.

    Returns:
      The model, with the settings that were selected. Its notes tell of its training and have sentences of "warnings".
    """
    protocol = protocols.few_shot(dataset, shots=shots, seed=seed) if shots is not None else protocols.full(dataset)
    unlabelled = task.method.unlabelled
    train = context.pseudo_labelled(task, protocol, shots) if unlabelled else protocol.source.split("train")
    (images,) = context.training_images([train])
    job = TrainJob(
        context=context,
        task=task.with_memory(class_shards=context.mesh.shape[meshes.DATA]),
        recipe=recipe if task.method.trains else None,
        runs=(Run(images, seed if start_seed is None else start_seed, protocol),),
        logging=Logging(progress=progress),
    )
    progress.at_work("reading images")
    selecting = selects(job, compares_rates=compares_rates)
    left = None
    if calibrates is not False:
        left = held_out.left_to_calibrate(protocol, seed, selects=selecting, required=bool(calibrates))
    held = hold_out_of(protocol, seed, calibrates=selecting and left is not None)
    validation = None if held.from_training else held.choose
    if validation is None or held.calibrate is not None:
        job = with_validation(job, validation)
    selection = select(job, held, compares_rates=compares_rates)
    if selection is not None:
        progress.say(str(selection))
        job = apply(job, selection.best.learning_rate, selection.options)
    result = train_job(job)
    model = Tuned(job.task, jax.tree.map(jnp.asarray, select_run(result.learnables, 0)))
    pools = {name: split for name, split in dataset.splits.items() if name != "test"}
    start = {} if start_seed is None else {"start_seed": start_seed}
    notes: dict[str, object] = {"seed": seed, **start, "data": identity(pools)}
    notes |= {"training": identity([task, pools, shots, recipe, compares_rates])}
    notes |= {"train_images": len(images)} | ({} if shots is None else {"shots": shots})
    notes["images_per_class"] = images_per_class(images.labels, len(model.class_names))
    if job.recipe is not None:
        notes |= {"learning_rate": job.recipe.learning_rate, "recipe": job.recipe.facts()}
    if selection is not None:
        notes["choice"] = selection.note
    cautions = [
        *cautions_of_fit(job, result, held, selection, compares_rates=compares_rates),
        *replaced_options(task.method, model.learnables),
    ]
    if cautions:
        notes["warnings"] = cautions
    return dataclasses.replace(
        model, notes=notes, calibration=None if left is None else calibrate(model, left, context)
    )


def calibrate_untrained(
    model: Tuned,
    dataset: Dataset,
    context: SweepContext,
    *,
    seed: int,
    calibrates: bool | None = None,
) -> Calibration | None:
    """Calibrates a method that learns from no training image; arguments as of `fit_task`."""
    if calibrates is False:
        return None
    protocol = protocols.full(dataset)
    left = held_out.left_to_calibrate(protocol, seed, selects=False, trains=False, required=bool(calibrates))
    return None if left is None else calibrate(model, left, context)
