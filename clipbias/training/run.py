"""A group of runs from specs to rows in five steps: prepare, select, train, score, save.

A group runs the same way whenever it runs, so an interrupted group ends with the same numbers to the last bit.
`fit_task` selects and trains a job from memory, without files. Each image has one use, which only this module decides:
training, selection of settings, calibration or test.
"""

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from clipbias import hosts
from clipbias.constants import ZERO_SHOT
from clipbias.data import Dataset, Split, held_out, protocols
from clipbias.data.few_shot import images_per_class
from clipbias.data.held_out import HeldOut
from clipbias.data.images import Images
from clipbias.data.protocols import EvalProtocol, EvaluationSet
from clipbias.errors import ClipbiasWarning
from clipbias.identity import identity
from clipbias.intervals import wilson_interval
from clipbias.sentences import counted
from clipbias.terminal import printable
from clipbias.training import placement
from clipbias.training.context import SweepContext
from clipbias.training.evaluator import RunPredictions
from clipbias.training.loop import Run, RunOutputs, TrainJob, TrainResult, check_images, train_job, validation_images
from clipbias.training.memory import fit_evaluation
from clipbias.training.predictions import predictions_name, save_predictions
from clipbias.training.progress import Progress
from clipbias.training.select import (
    Selection,
    cautions_of_fit,
    frozen_job,
    kept_selection,
    needs_validation,
    nothing_held_out,
    replaced_options,
    score_images,
    searches_options,
    select_settings,
    used_options,
)
from clipbias.training.spec import TEST, UNSELECTED, Group, Row, RunSpec
from clipbias.training.teacher import split_logits
from clipbias.training.workdir import SweepPaths
from clipbias.tuning import Recipe, Task, parameter_count
from clipbias.tuning.adapter import write_adapter
from clipbias.tuning.conformal import Calibration
from clipbias.tuning.method import Learnables, Method, select_run
from clipbias.tuning.tuned import Tuned, transfer

# Fields of a row that differ between equal runs. Adapters leave them out, so that equal runs write equal files.
VOLATILE = ("seconds", "training_seconds", "waiting_share")


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedGroup:
    """Group with its job: `specs` with the validation policy and selected settings.

    `held` are images on which settings are compared; `selection` are the settings that were selected on them.
    """

    specs: Group
    job: TrainJob
    held: HeldOut | None = None
    selection: Selection | None = None


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
    """Runs a group, whose specs differ in seed or learning rate alone, and returns its rows.

    Rows name what differs from the recipe `common`. Of a single run, `compares_rates` says whether held-out images
    select its learning rate beside the options that its method searches; `None` selects nothing. With `calibrates`,
    images that neither train nor select calibrate the adapters. `facts` are further entries by the spec's key.
    """
    outputs = RunOutputs(checkpoints=paths.checkpoints(group), metrics=paths.metrics(group), progress=progress)
    prepared = prepare(group, context, outputs, compares_rates=compares_rates)
    check_images(prepared.job, other_images(prepared))
    selected = select(prepared, paths.workdir, group[0].key, compares_rates=bool(compares_rates))
    zero_shot = zero_shot_facts(selected, paths)
    result = train(selected, asked=prepared.job.task.method)
    scores = score(selected, result, paths)
    # `facts` and `training` go by the specs as asked: a selection changes keys.
    choice = {} if selected.selection is None else {"choice": selected.selection.note}
    added = [{"training": spec.training, **(facts or {}).get(spec.key, {}), **choice, **zero_shot} for spec in group]
    return save(selected, result, scores, paths, common, added, calibrates=calibrates)


def prepare(
    group: Group, context: SweepContext, outputs: RunOutputs, *, compares_rates: bool | None = None
) -> PreparedGroup:
    """Decides which images train and select, and makes the job of a group."""
    outputs.progress.at_work("reading images")
    if compares_rates is None:
        return PreparedGroup(group, make_job(group, context, outputs))
    (spec,) = group
    # From the split before its policy: the rule would take a part of its own part otherwise.
    held = held_out.hold_out_of(context.drawn(spec), spec.seed, calibrates=True)
    # The policy is part of the spec before the job is made, so that the job has the images of its row.
    specs = (dataclasses.replace(spec, validation=validation_of(spec, context, compares_rates=compares_rates)),)
    return PreparedGroup(specs, make_job(specs, context, outputs), held)


def validation_of(spec: RunSpec, context: SweepContext, *, compares_rates: bool) -> str:
    """Names the images that select a setting of a single run: in the run itself, or before it as the spec says."""
    task = context.bind(spec.make_method(), context.drawn(spec).source, spec.method)
    return held_out.POLICY if needs_validation(task, spec.recipe, compares_rates=compares_rates) else spec.validation


def other_images(prepared: PreparedGroup) -> list[Split]:
    """Returns the images that a group reads besides those that train: to select, fit a temperature, calibrate, test."""
    job = prepared.job
    if prepared.specs[0].score_on != TEST:
        return validation_images(job)
    tested = [evaluation.dataset.split("test") for evaluation in job.protocol.evaluations]
    others = []
    for protocol in {id(run.protocol): run.protocol for run in job.runs}.values():
        # Without a validation split, a protocol draws training images, which only a search of the method reads.
        drawn = protocols.validation_policy(protocol.source) == "few-shot"
        if not drawn or searches_options(job.task.method):
            others += [protocol.validation(), None if protocol.calibration is None else protocol.calibration()]
    return [split for split in (*others, *tested) if split is not None]


def make_job(group: Group, context: SweepContext, outputs: RunOutputs | None = None) -> TrainJob:
    """Makes the job of a group. Runs of one seed share their images."""
    first = group[0]
    task = context.bind(first.make_method(), context.drawn(first).source, first.method)
    method = task.method
    # One protocol for all runs of a seed: they differ in their learning rate and share images and validation images.
    by_seed = {spec.seed: under_policy(context.drawn(spec), spec) for spec in group}
    if method.uses_images:
        # Programs for absent devices cannot label images; any images of the same number stand in.
        unlabelled = (method.unlabelled or first.protocol == "pseudo_labels") and placement.is_there(context.mesh)
        splits = [
            context.pseudo_labelled(task, protocol, first.shots) if unlabelled else protocol.source.split("train")
            for protocol in by_seed.values()
        ]
        images = dict(zip(by_seed, context.training_images(splits), strict=True))
    else:
        # A method without training images has an empty training; a job still counts its images.
        images = {seed: Images(protocol.evaluations[0].dataset.split("test")) for seed, protocol in by_seed.items()}
    return TrainJob(
        context=context,
        task=task,
        recipe=first.recipe if method.trains and method.uses_images else None,
        runs=tuple(Run(images[spec.seed], spec.start, by_seed[spec.seed], spec.learning_rate) for spec in group),
        outputs=outputs or RunOutputs(),
    )


def under_policy(drawn: EvalProtocol, spec: RunSpec) -> EvalProtocol:
    """Returns the split with the validation images that the spec's policy allows."""
    if spec.validation == held_out.POLICY:
        return held_out.by_the_rule(drawn, spec.seed)
    if spec.validation == held_out.SHOT:
        return held_out.hold_out_a_shot(drawn, spec.seed)
    return drawn


def calibration_images(drawn: EvalProtocol, spec: RunSpec) -> tuple[Split | None, str]:
    """Returns the images that calibrate a run, or `None` and the reason; `drawn` is the split before its policy."""
    if spec.validation not in (UNSELECTED, held_out.POLICY):
        return None, f"no prediction sets: its validation images ({spec.validation}) selected a setting"
    if (images := held_out.left_to_calibrate(drawn, spec.seed, selects=spec.validation == held_out.POLICY)) is not None:
        return images, ""
    return None, (
        f"no prediction sets: fewer than {held_out.FEWEST_TO_CALIBRATE} images neither train nor select a setting; "
        "give (more) validation images"
    )


def select(prepared: PreparedGroup, workdir: Path, key: str, *, compares_rates: bool) -> PreparedGroup:
    """Selects the settings of the run that was asked for as `key`, or reads them from its `selection.json`."""
    job = prepared.job
    held = prepared.held
    if held is None:
        return prepared
    if sentence := nothing_held_out(job, held, compares_rates=compares_rates):
        job.outputs.progress.say(sentence)
    if not needs_validation(job.task, job.recipe, compares_rates=compares_rates):
        return prepared
    make = functools.partial(select_settings, job, held, compares_rates=compares_rates)
    # Nothing is selected where the method searches on its validation split while it trains.
    if (selection := kept_selection(workdir, key, make)) is None:
        return prepared
    (spec,) = prepared.specs
    return dataclasses.replace(
        prepared, specs=(selection.of_spec(spec),), job=selection.of_job(job), selection=selection
    )


def zero_shot_facts(selected: PreparedGroup, paths: SweepPaths) -> Row:
    """Returns the frozen model's accuracy on the test images for the row of a single run; empty in a sweep."""
    if not paths.single or selected.specs[0].method == ZERO_SHOT:
        return {}
    # Before the training: an evaluation that fails, for lack of memory or an image, costs no step.
    selected.job.outputs.progress.at_work("evaluating zero-shot")
    evaluation = selected.job.protocol.evaluations[0]
    task, _, tested = evaluate_test(frozen_job(selected.job), {}, evaluation)
    scores = tested.scores(evaluation.dataset.split("test").labels, task.class_names)
    return {"zero_shot_accuracy": scores[0]["accuracy"]}


def train(selected: PreparedGroup, *, asked: Method) -> TrainResult:
    """Trains the runs of a group, and says where the method found better options than those that were asked for."""
    job = selected.job
    result = train_job(job)
    for sentence in replaced_options(asked, select_run(result.learnables, 0)):
        job.outputs.progress.say(sentence)
    return result


def score(selected: PreparedGroup, result: TrainResult, paths: SweepPaths) -> list[Row]:
    """Scores the runs on test images, where their predictions are saved, or on validation images."""
    group = selected.specs
    job = selected.job
    job.outputs.progress.at_work("evaluating")
    if group[0].score_on != TEST:
        return score_images(job, result.learnables, validation_images(job))
    scores: list[dict[str, Row]] = [{} for _ in group]
    identities: list[dict[str, str]] = [{} for _ in group]
    for evaluation in job.protocol.evaluations:
        task, transferred, tested = evaluate_test(job, result.learnables, evaluation)
        split = evaluation.dataset.split("test")
        images = split.identity  # once for all runs, since it looks at every file
        # Not strict: padding lies behind the runs.
        for run, (spec, score) in enumerate(zip(group, tested.scores(split.labels, task.class_names), strict=False)):
            scores[run][evaluation.name] = score
            if hosts.is_first():
                identities[run][evaluation.name] = save_predictions(
                    paths.workdir,
                    paths.predictions(spec, evaluation.name),
                    Tuned(task, select_run(transferred, run)),
                    split,
                    tested.predicted[run],
                    tested.log_probs[run],
                    images_identity=images,
                )
    rows = []
    for run, spec in enumerate(group):
        names = {name: predictions_name(paths.predictions(spec, name)) for name in scores[run]}
        rows.append({"predictions": names, "identities": identities[run], **merge_scores(scores[run])})
    return rows


def save(
    selected: PreparedGroup,
    result: TrainResult,
    scores: Sequence[Row],
    paths: SweepPaths,
    common: Recipe,
    added: Sequence[Row],
    *,
    calibrates: bool,
) -> list[Row]:
    """Makes the rows of the runs, calibrates the tuned models, and writes these with their rows as adapters."""
    job = selected.job
    rows = []
    for run, spec in enumerate(selected.specs):
        row = _row(spec, job, result, run, common, scores[run]) | added[run]
        learnables = select_run(result.learnables, run)
        # A single run always has its adapter, also of a method that learns nothing: other commands take the folder.
        has_adapter = spec.score_on == TEST and (bool(jax.tree.leaves(learnables)) or paths.single)
        calibration, prediction_sets = None, "no prediction sets: the method learns nothing"
        if calibrates and has_adapter:
            # All processes compute the logits together; the first one writes.
            images, prediction_sets = calibration_images(job.context.drawn(spec), spec)
            if images is not None:
                calibration = calibrate(Tuned(job.task, learnables), images, job.context)
                prediction_sets = f"calibrated on {counted(len(calibration), 'image')}: it has prediction sets"
        if has_adapter and hosts.is_first():
            kept = {name: value for name, value in row.items() if name not in VOLATILE}
            write_adapter(paths.adapter(spec), Tuned(job.task, learnables, kept, calibration))
        rows.append(row | {"prediction_sets": prediction_sets} if calibrates else row)
    return rows


def evaluate_test(
    job: TrainJob, learnables: Learnables, evaluation: EvaluationSet
) -> tuple[Task, Learnables, RunPredictions]:
    """Evaluates `learnables [R, …]`, on the host, on test images: their task, its learnables, and the predictions."""
    context = job.context
    task = context.bind(job.task.method, evaluation.dataset)
    task = fit_evaluation(task, runs=job.run_axis.padded, mesh=context.mesh)
    # Learnables of a class follow it to its place among the tested classes; other learnables stay.
    learnables = transfer(job.task, task, learnables, evaluation.source_labels, axis=1)
    evaluator = context.evaluator(evaluation.dataset.split("test"))
    validation = context.temperature_evaluator(job.protocol, evaluation)
    return task, learnables, evaluator.evaluate(*job.evaluation(task, learnables), validation=validation)


def merge_scores(scores: Mapping[str, Row]) -> Row:
    """Merges the scores of one run in its evaluations for its row: by name where there are several."""
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
    # Counted in the learnables and not in their shapes, where an axis of training images has length 0.
    learnables = select_run(result.learnables, run)
    counts = parameter_count(learnables)
    row = spec_facts(spec, common) | {"model": job.context.clip.name, "status": "ok"} | scores
    # `options` are those that were asked for.
    if (used := used_options(job.task.method, learnables)) is not None:
        row["used_options"] = used
    # Zero-shot reads descriptions that a fixed prompt does not: the gain over it is not of tuning alone.
    if "descriptions" in job.task.unread and spec.protocol != "pseudo_labels":
        row["descriptions"] = "not read"
    row |= {f"parameters_{part}": counts[part] for part in ("vision", "text", "shared")}
    row |= {"parameters": counts["total"], "loss": None, "training_seconds": round(result.training_seconds[run], 4)}
    if result.losses:
        row |= {"loss": result.losses[run], "steps": result.steps, "waiting_share": round(result.waiting_share, 4)}
    return row | (_image_counts(job, run) if job.task.method.uses_images else {})


def _image_counts(job: TrainJob, run: int) -> Row:
    images = job.runs[run].images
    per_class = images_per_class(images.labels, len(job.task.class_names))
    # An exchange, which all processes must join. Names and not counts: two may have read the same broken image.
    skipped = set().union(*hosts.gather(sorted(images.unreadable)))
    counts = {"train_images": len(images), "images_per_class": per_class}
    return counts | ({"skipped_training_images": len(skipped)} if skipped else {})


def spec_facts(spec: RunSpec, common: Recipe) -> Row:
    """Returns the entries that name a run in its row; `own_recipe` is the difference from the common recipe."""
    different = {} if spec.recipe is None else spec.recipe.differences(common.with_learning_rate(spec.learning_rate))
    return {"key": spec.key, **spec.facts(), **({"own_recipe": different} if different else {})}


def calibrate(model: Tuned, split: Split, context: SweepContext) -> Calibration:
    """Calibrates a tuned model on images that neither trained it nor selected a setting."""
    logits, read = split_logits(model, Images(split), context)
    # MCM scores cosines without this factor (Ming et al. 2022); the logits have it.
    scale = float(np.exp(np.asarray(model.task.method.logit_scale(model.clip.params))))
    accuracy = 100 * float(np.mean(logits[read].argmax(axis=-1) == split.labels[read]))
    if wilson_interval(accuracy, int(read.sum()))[1] < 100 / len(model.class_names):
        right = f"{accuracy:.1f} % of {counted(int(read.sum()), 'calibration image')} are predicted right"
        first = printable(model.class_names[0])
        words = f"{right}, fewer than by chance; labels by number are in the order of the classes, and 0 is {first}."
        warnings.warn(words, ClipbiasWarning, stacklevel=2)
    return Calibration.of(logits[read], split.labels[read], scale)


def fit_images(
    dataset: Dataset, *, shots: int | None, seed: int, selects: bool, calibrates: bool | None
) -> tuple[EvalProtocol, HeldOut, Split | None]:
    """Divides the images of a dataset for `fit_task`: those of the protocol, of a selection, and of calibration.

    Raises `ClipbiasError` where too few images are left to calibrate, and `calibrates` requires them.
    """
    drawn = protocols.full(dataset) if shots is None else protocols.few_shot(dataset, shots=shots, seed=seed)
    calibration = None
    if calibrates is not False:
        calibration = held_out.left_to_calibrate(drawn, seed, selects=selects, required=bool(calibrates))
    # Also where nothing is calibrated, as in `train`: the same images select, and the others may fit a temperature.
    held = held_out.hold_out_of(drawn, seed, calibrates=selects)
    validation = None if held.from_training else held.choose
    if validation is None or held.calibrate is not None:
        # Training images outside the few-shot split validate under the protocol of a benchmark, never for a user; and
        # an image that calibrates must not validate.
        drawn = dataclasses.replace(drawn, validation=lambda: validation)
    return drawn, held, calibration


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
    """Trains a task as `clipbias train` does, with its few-shot splits, steps and numbers. Saves nothing.

    The dataset has the task's classes: "train" trains, `shots` of each class (`None`: all), "val" selects and
    calibrates. `start_seed`, of initial learnables and the order of images, is by default `seed`, of the few-shot
    split. `calibrates`: `None` where enough images are left.
    """
    recipe_of_job = recipe if task.method.trains else None
    progress.at_work("reading images")
    # First whether a setting is selected: the images that select it are lost to calibration, whose guarantee needs
    # images that decided nothing.
    selects = needs_validation(task, recipe_of_job, compares_rates=compares_rates)
    protocol, held, left = fit_images(dataset, shots=shots, seed=seed, selects=selects, calibrates=calibrates)
    train = protocol.source.split("train")
    if task.method.unlabelled:
        train = context.pseudo_labelled(task, protocol, shots)
    (images,) = context.training_images([train])
    job = TrainJob(
        context=context,
        task=task.with_memory(class_shards=context.mesh.shape[placement.DATA]),
        recipe=recipe_of_job,
        runs=(Run(images, seed if start_seed is None else start_seed, protocol),),
        outputs=RunOutputs(progress=progress),
    )
    searched = protocol.validation() if searches_options(task.method) else None
    choose = None if held.from_training else held.choose
    check_images(job, [split for split in (choose, searched, left) if split is not None])
    selection = select_settings(job, held, compares_rates=compares_rates)
    if selection is not None:
        job = selection.of_job(job)
    result = train_job(job)
    # On the default device: a user jits and differentiates with them, step after step.
    model = Tuned(job.task, jax.tree.map(jnp.asarray, select_run(result.learnables, 0)))
    # `data` and `training` name images and settings, by which adapters of one training, and changed data, are known.
    # The test images decide nothing: with others it is still the same training.
    pools = {name: split for name, split in dataset.splits.items() if name != "test"}
    start = {} if start_seed is None else {"start_seed": start_seed}
    data = identity(pools)  # once, since it looks at every file
    notes: dict[str, object] = {"seed": seed, **start, "data": data}
    notes |= {"training": identity([task, data, shots, recipe, compares_rates])}
    notes["validation"] = held_out.POLICY if selects else UNSELECTED
    notes |= _image_counts(job, 0) | ({} if shots is None else {"shots": shots})
    if job.recipe is not None:
        notes |= {"learning_rate": job.recipe.learning_rate, "recipe": job.recipe.facts()}
    if (used := used_options(task.method, model.learnables)) is not None:
        notes["used_options"] = used
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
    model: Tuned, dataset: Dataset, context: SweepContext, *, seed: int, calibrates: bool | None = None
) -> Calibration | None:
    """Calibrates a method without training images; see `fit_task` for the arguments."""
    if calibrates is False:
        return None
    protocol = protocols.full(dataset)
    left = held_out.left_to_calibrate(protocol, seed, selects=False, trains=False, required=bool(calibrates))
    return None if left is None else calibrate(model, left, context)
