"""Trains a job: plan its stages, collect features, start the learnables, train stage by stage, finish them."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.data.images import Images
from clipbias.training import mesh as meshes
from clipbias.training.features import support_features
from clipbias.training.job import Run, TrainJob, TrainResult, check_images, check_side_by_side, plan_stages
from clipbias.training.loop import train
from clipbias.training.metrics import METRICS
from clipbias.training.outcomes import EvalInputs, EvalStatic, text_features
from clipbias.training.step_inputs import place_text
from clipbias.training.teacher import check_student
from clipbias.training.timing import Stopwatch, step_seconds
from clipbias.tuning import Samples
from clipbias.tuning.feature_method import FeatureMethod, sampling_of
from clipbias.tuning.learnables import select_run, stack_runs
from clipbias.tuning.method import Learnables


def train_job(job: TrainJob) -> TrainResult:
    """Prepares and trains the runs of a job.

    Raises:
      ClipbiasError: the method refuses, a loss is not finite, or an image cannot be read.
    """
    method = job.task.method
    if job.teacher is not None:
        check_student(job.task, job.teacher)
    check_images(job)
    host = Stopwatch()
    stages = plan_stages(job)
    check_side_by_side(stages)
    samples = sample_features(job)
    with host:
        start = stack_runs([jax.device_get(job.task.init(run.seed)) for run in job.runs])
        if isinstance(method, FeatureMethod):
            start = _each_run(method.support, start, samples)
    result = _train_stages(job, stages, start) if stages else TrainResult(start)
    learnables = result.learnables
    if stages and isinstance(method, FeatureMethod) and method.overrides("finish"):
        with host:
            learnables = _each_run(method.finish, learnables, samples)
    seconds = _training_seconds(job, stages, samples, host.seconds)
    return dataclasses.replace(result, learnables=learnables, training_seconds=seconds)


def sample_features(job: TrainJob) -> list[Samples]:
    """Features of each run's training images, and of its validation images where the method asks for them.

    Empty for a method that takes images.
    """
    context = job.context
    sampling = sampling_of(job.task.method)
    if sampling is None:
        return []
    text = place_text(context.mesh, job.task, context.params)
    assert isinstance(text, jax.Array), "a method on features of images leaves the text tower alone"
    texts = np.asarray(job.task.classifier.split_by_template(text))
    scale = float(np.exp(np.float32(context.clip.params["logit_scale"])))

    def samples_of(run: Run) -> Samples:
        validation = validation_labels = None
        split = run.protocol.validation() if sampling.validation else None
        if split is not None:
            source = context.features(Images(split), run.seed, sampling)
            validation = source.plain()[0][source.readable]
            validation_labels = split.labels[source.readable]
        source = context.features(run.images, run.seed, sampling)
        features = support_features(source, sampling)  # it finds out which images can be read
        return Samples(
            features=features,
            labels=np.asarray(run.images.labels)[source.readable],
            text=texts,
            scale=scale,
            validation=validation,
            validation_labels=validation_labels,
            seed=run.seed,
        )

    return [samples_of(run) for run in job.runs]


def _each_run(
    hook: Callable[[Learnables, Samples], Learnables], learnables: Learnables, samples: Sequence[Samples]
) -> Learnables:
    """A method's hook called with the learnables and samples of each run, its results stacked again."""
    results = [hook(select_run(learnables, run), of_run) for run, of_run in enumerate(samples)]
    return stack_runs(jax.device_get(results))


def _train_stages(job: TrainJob, stages: Sequence[TrainJob], start: Learnables) -> TrainResult:
    """Trains the stages one after another. Each has its own checkpoints, and is done once they say so."""
    results = list[TrainResult]()
    learnables = _next_stage(job, 0, start, None)
    for number, stage in enumerate(stages):
        result = train(stage, learnables)
        results.append(result)
        text = _stage_texts(stage, result.learnables) if stage is not stages[-1] else None
        learnables = _next_stage(job, number + 1, result.learnables, text)
    seconds = sum(result.seconds for result in results)
    waiting = sum(result.waiting_share * result.seconds for result in results)
    return TrainResult(
        learnables=learnables,
        losses=results[-1].losses,
        steps=sum(result.steps for result in results),
        seconds=seconds,
        waiting_share=waiting / max(seconds, 1e-9),
        skipped=tuple(max(counts) for counts in zip(*(result.skipped for result in results), strict=True)),
    )


def _next_stage(job: TrainJob, stage: int, learnables: Learnables, text: np.ndarray | None) -> Learnables:
    """`Method.next_stage` of each run, on the host."""
    method = job.task.method
    if not method.overrides("next_stage"):
        return learnables
    starts = [
        method.next_stage(stage, select_run(learnables, run), None if text is None else text[run])
        for run in range(len(job.runs))
    ]
    return stack_runs(jax.device_get(starts))


def _stage_texts(stage: TrainJob, learnables: Learnables) -> np.ndarray:
    """The texts under each run's learnables: `[R, S, C, d]`."""
    mesh = stage.context.mesh
    params = stage.context.params
    task = stage.task
    runs = len(stage.runs)
    text = place_text(mesh, task, params)
    if isinstance(text, jax.Array):  # no learnable changes it
        features = jnp.broadcast_to(text, (runs, *text.shape))
    else:
        static = EvalStatic(task.classifier, task.clip.preprocessing, mesh, runs)
        inputs = EvalInputs(params, meshes.device_put(mesh, learnables, meshes.RUN), text)
        features = text_features(static, inputs)
    return np.asarray(meshes.device_get(task.classifier.split_by_template(features)))


def _training_seconds(
    job: TrainJob, stages: Sequence[TrainJob], samples: Sequence[Samples], host: float
) -> tuple[float, ...]:
    """Each run's share of the time of training: its own features, and equal shares of what all runs do together.

    Args:
      job: with the folder of the metrics.
      stages: of the job.
      samples: of each run; empty without features.
      host: seconds of the method's own computations.
    """
    runs = len(job.runs)
    folder = job.logging.metrics
    sampling = sampling_of(job.task.method)
    steps = 0.0 if folder is None else step_seconds(folder / METRICS, [stage.steps for stage in stages])
    if sampling is None:
        return (steps / runs,) * runs
    passes = max(sampling.passes, 1)
    if stages and sampling.training == "fresh":
        passes += stages[0].training.total_epochs(job.examples)
    seconds = []
    for run, of_run in zip(job.runs, samples, strict=True):
        count = passes * len(of_run.labels) + (0 if of_run.validation is None else len(of_run.validation))
        features = job.context.features(run.images, run.seed, sampling).seconds(count)
        seconds.append(features + (steps + host) / runs)
    return tuple(seconds)
