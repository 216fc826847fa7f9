"""A group of runs from specs to rows: make its job, train it, score it, save the adapters.

How a group runs depends on its specs and on the devices alone, so that an interrupted group ends with the same numbers
to the last bit.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax

from clipbias import hosts
from clipbias.constants import ZERO_SHOT
from clipbias.data.counts import images_per_class
from clipbias.data.images import Images
from clipbias.sentences import counted
from clipbias.training import mesh as meshes
from clipbias.training.calibrate import calibrate, calibration_images
from clipbias.training.job import Logging, Run, TrainJob, TrainResult, check_images, validation_images
from clipbias.training.predictions import predictions_name, save_predictions
from clipbias.training.progress import Progress
from clipbias.training.score import merge_scores, score_test, score_validation
from clipbias.training.selection import select_settings
from clipbias.training.spec import TEST, Group, Row, RunSpec
from clipbias.training.stages import train_job
from clipbias.training.sweep_context import SweepContext
from clipbias.training.sweep_paths import SweepPaths
from clipbias.tuning import parameter_count
from clipbias.tuning.adapter import save_adapter
from clipbias.tuning.learnables import select_run
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import make_method

# Fields of a row that differ between two equal runs; adapters do not have them.
VOLATILE = ("seconds", "training_seconds", "waiting_share")


def run_group(
    group: Group,
    context: SweepContext,
    paths: SweepPaths,
    common: Recipe,
    *,
    compares_rates: bool | None = None,
    calibrates: bool = False,
    notes: Mapping[str, Row] | None = None,
) -> list[Row]:
    """Runs a group from its specs to its rows: job, select, train, score, calibrate, save.

    Args:
      group: specs that differ in seed or learning rate alone.
      context: what the groups of the sweep share.
      paths: where to write.
      common: the recipe of methods that have none of their own; rows tell the differences from it.
      compares_rates: of a group of one run: whether held-out images select its learning rate, beside what its method
        searches for; `None` selects nothing.
      calibrates: whether images that neither train nor select calibrate the adapters.
      notes: facts that are added to a row and its adapter, by the key of its spec.

    Returns:
      The rows. Of a run for which something was selected, the row's spec has the settings that were selected.

    Raises:
      ClipbiasError: the method refuses, a loss is not finite, or an image cannot be read.
    """
    job = make_job(group, context, _logging(group, context, paths))
    own_notes = [dict((notes or {}).get(spec.key, {})) for spec in group]
    if compares_rates is not None:
        (spec,) = group
        spec, job, choice = select_settings(spec, job, paths.workdir, compares_rates=compares_rates)
        group, own_notes = (spec,), [own_notes[0] | choice]
    if group[0].score_on != TEST:
        check_images(job, list({split.digest: split for split in validation_images(job)}.values()))
    if paths.single and group[0].method != ZERO_SHOT:
        frozen = dataclasses.replace(job, task=job.task.with_method(make_method(ZERO_SHOT)), recipe=None)
        own_notes[0]["zero_shot_accuracy"] = score_test(frozen, {}, job.protocol.evaluations[0]).scores[0]["accuracy"]
    result = train_job(job)
    if group[0].score_on == TEST:
        scores = _score_test(group, job, result, paths)
    else:
        scores = score_validation(job, result.learnables)
    rows = []
    for run, spec in enumerate(group):
        row = _row(spec, job, result, run, common, scores[run]) | _training_images(job, run) | own_notes[run]
        learnables = select_run(result.learnables, run)
        images, calibrated = calibration_images(spec, context) if calibrates else (None, "")
        calibration = None
        if images is not None:
            calibration = calibrate(job.task, learnables, images, context)
            calibrated = f"calibrated on {counted(len(calibration), 'image')}: it has prediction sets"
        if spec.score_on == TEST and hosts.is_first() and (jax.tree.leaves(learnables) or paths.single):
            facts = {name: value for name, value in row.items() if name not in VOLATILE}
            save_adapter(paths.adapter(spec), job.task, learnables, notes=facts, calibration=calibration)
        rows.append(row | {"calibrated": calibrated} if calibrates else row)
    return rows


def make_job(group: Group, context: SweepContext, logging: Logging | None = None) -> TrainJob:
    """The job of a group: its task, and its runs with their training images; runs of one seed share them.

    A method that takes no training image has its test images there.
    """
    first = group[0]
    method = first.make_method()
    by_seed = context.protocols_of(group)
    if method.uses_images:
        # Where nothing can be run, as many labelled images stand for pseudo-labelled ones.
        unlabelled = (method.unlabelled or first.protocol == "pseudo_labels") and meshes.is_there(context.mesh)
        splits = [
            context.pseudo_labelled(protocol, first.shots) if unlabelled else protocol.source.split("train")
            for protocol in by_seed.values()
        ]
        images = dict(zip(by_seed, context.training_images(splits), strict=True))
    else:
        images = {seed: Images(protocol.evaluations[0].dataset.split("test")) for seed, protocol in by_seed.items()}
    runs = [Run(images[spec.seed], spec.start, by_seed[spec.seed], spec.learning_rate) for spec in group]
    return TrainJob(
        context=context,
        task=context.bind(method, by_seed[first.seed].source, first.method),
        recipe=first.recipe if method.trains and method.uses_images else None,
        runs=tuple(runs),
        shots=first.shots,
        logging=logging or Logging(),
    )


def _logging(group: Group, context: SweepContext, paths: SweepPaths) -> Logging:
    first = group[0]
    compute = context.compute
    return Logging(
        checkpoints=paths.checkpoints(group),
        checkpoint_seconds=compute.checkpoint_seconds,
        metrics=paths.metrics(group),
        trackers=compute.trackers,
        profile=compute.profile == "steps",
        progress=Progress(0, title=f"{first.method} on {first.dataset}") if paths.single else None,
    )


def _score_test(group: Group, job: TrainJob, result: TrainResult, paths: SweepPaths) -> list[Row]:
    """Scores the runs on test images, and saves their predictions."""
    scores: dict[str, Sequence[Row]] = {}
    fingerprints: list[dict[str, str]] = [{} for _ in group]
    for evaluation in job.protocol.evaluations:
        tested = score_test(job, result.learnables, evaluation)
        scores[evaluation.name] = tested.scores
        for run, spec in enumerate(group if hosts.is_first() else ()):
            fingerprints[run][evaluation.name] = save_predictions(
                paths.workdir,
                paths.predictions(spec, evaluation.name),
                tested.task,
                select_run(tested.learnables, run),
                spec.method,
                evaluation.dataset.split("test"),
                tested.predicted[run],
                tested.log_probs[run],
            )
    rows = []
    for run, spec in enumerate(group):
        names = {name: predictions_name(paths.predictions(spec, name)) for name in scores}
        facts = {"predictions": names, "fingerprints": fingerprints[run]}
        rows.append(facts | merge_scores({name: of_runs[run] for name, of_runs in scores.items()}))
    return rows


def _training_images(job: TrainJob, run: int) -> Row:
    """How many images a run was made from, in all and of the classes with the fewest and the most."""
    if not job.task.method.uses_images:
        return {}
    labels = job.runs[run].images.labels
    return {"train_images": len(labels), "images_per_class": images_per_class(labels, len(job.task.class_names))}


def _row(spec: RunSpec, job: TrainJob, result: TrainResult, run: int, common: Recipe, scores: Row) -> Row:
    """The spec of a run, its scores, its parameters, and what its training took."""
    counts = parameter_count(select_run(result.learnables, run))
    row = spec_facts(spec, common) | {"model": job.context.clip.name, "status": "ok"} | scores
    row |= {f"parameters_{part}": counts[part] for part in ("vision", "text", "shared")}
    row |= {"parameters": counts["total"], "loss": None, "training_seconds": round(result.training_seconds[run], 4)}
    if result.losses:
        row |= {"loss": result.losses[run], "steps": result.steps, "waiting_share": round(result.waiting_share, 4)}
        if result.skipped[run]:
            row["skipped_training_images"] = result.skipped[run]
    return row


def spec_facts(spec: RunSpec, common: Recipe) -> Row:
    """What names a run in its row; `own_recipe` is where its recipe differs from the common one."""
    different = {} if spec.recipe is None else spec.recipe.differences(common.with_learning_rate(spec.learning_rate))
    return {"key": spec.key, **spec.facts(), **({"own_recipe": different} if different else {})}
