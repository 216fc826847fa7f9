"""One group of runs from draws to rows: prepare, train, evaluate, save the adapters.

How a group runs depends on its specs and on the devices alone, so that an interrupted group ends with the same numbers
to the last bit.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias import hosts
from clipbias.data import Dataset, Split, protocols
from clipbias.data.images import Images
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.compute import AUTO
from clipbias.training.features import epoch_features, support_features
from clipbias.training.loop import Logging, Run, Trained, rows_per_step, train
from clipbias.training.memory import MemoryPlan, plan_step
from clipbias.training.metrics import METRICS
from clipbias.training.outcomes import EvalInputs, EvalStatic, text_features
from clipbias.training.predictions import predictions_name, save_predictions
from clipbias.training.progress import Progress
from clipbias.training.score import merge_scores, score_test, score_validation
from clipbias.training.spec import TEST, Group, RunSpec, group_key, group_name
from clipbias.training.step_inputs import place_text
from clipbias.training.sweep_context import SweepContext, choice_images, text_of
from clipbias.training.timing import Stopwatch, step_seconds
from clipbias.training.workdir import ADAPTER
from clipbias.tuning import Samples, Task, parameter_count
from clipbias.tuning.adapter import save_adapter
from clipbias.tuning.feature_method import FeatureMethod, sampling_of
from clipbias.tuning.learnables import select_run, stack_runs
from clipbias.tuning.method import Learnables, Method
from clipbias.tuning.recipe import Recipe

Row = dict[str, Any]
# Binds a method to the classes of a dataset, with options of `training.memory`.
Bind = Callable[[Method, Dataset], Task]
# Fields of a row that differ between two equal runs; adapters do not have them.
VOLATILE = ("seconds", "training_seconds", "waiting_share")


@dataclasses.dataclass(frozen=True)
class SweepPaths:
    """Where the files of a sweep lie.

    Attributes:
      workdir: the folder of the sweep.
      names: a readable name for each spec, by its key.
      single: whether there is one run alone, whose files lie in the folder itself.
    """

    workdir: Path
    names: dict[str, str]
    single: bool = False

    def metrics(self, group: Group) -> Path:
        """The folder of a group's `metrics.jsonl`."""
        return self.workdir if self.single else self.workdir / "runs" / self.of(group)

    def checkpoints(self, group: Group) -> Path:
        """The folder of a group's checkpoints; it is removed when the group is finished."""
        return self.workdir / "checkpoints" / group_key(group)

    def adapter(self, spec: RunSpec) -> Path:
        """The adapter of a run."""
        return self.workdir / (ADAPTER if self.single else f"adapters/{self.names[spec.key]}.safetensors")

    def predictions(self, spec: RunSpec, evaluation: str) -> str:
        """The name of a run's predictions in one evaluation."""
        return evaluation if self.single else f"{self.names[spec.key]}-{evaluation}"

    @staticmethod
    def of(group: Group) -> str:
        """Names the files of a group."""
        return f"{group_name(group)}-{group_key(group)}"


@dataclasses.dataclass(frozen=True)
class Learned:
    """What the runs of a group learned.

    Attributes:
      task: the method bound to the classes of training.
      learnables: leading axis `R`, on the host.
      trained: `None` where nothing is trained.
      seconds: of each run's training.
    """

    task: Task
    learnables: Learnables
    trained: Trained | None
    seconds: list[float]


def train_group(group: Group, shared: SweepContext, files: SweepPaths, common: Recipe) -> list[Row]:
    """Trains and scores the runs of a group; saves their adapters and predictions, and returns their rows.

    Args:
      group: specs that differ in seed or learning rate alone.
      shared: what the groups of the sweep share.
      files: where to write.
      common: the recipe of methods that have none of their own; rows tell the differences from it.

    Raises:
      ClipbiasError: the method refuses, a loss is not finite, or an image cannot be read.
    """
    first, draws = group[0], shared.draws_of(group)
    draw, method = draws[first.seed], first.make_method()
    runs = training_runs(group, method, draws, shared)
    logging = Logging(
        checkpoints=files.checkpoints(group),
        checkpoint_seconds=shared.compute.checkpoint_seconds,
        metrics=files.metrics(group),
        trackers=shared.compute.trackers,
        profile=shared.compute.profile == "steps",
        progress=Progress(0, title=f"{first.method} on {first.dataset}") if files.single else None,
    )
    validation = [draws[spec.seed].validation for spec in group]

    def bind(bound: Method, dataset: Dataset) -> Task:
        return shared.bind(bound, dataset, first.method if bound is method else None)

    learned = learn(shared, bind, method, first.recipe, draw.source, runs, validation, logging)
    if first.score_on == TEST:
        rows = _tested(group, draw, learned, shared, files)
    else:
        splits = {seed: choice_images(first.dataset, own) for seed, own in draws.items()}
        each = [splits[spec.seed] for spec in group]
        rows = score_validation(shared, learned.task, learned.learnables, draw.source, each)
    rows = [
        _described(spec, row, learned, at, common, shared) | _picks(method, draws[spec.seed], runs[at])
        for at, (spec, row) in enumerate(zip(group, rows, strict=True))
    ]
    if first.score_on == TEST and hosts.is_first():
        for index, (spec, row) in enumerate(zip(group, rows, strict=True)):
            own = select_run(learned.learnables, index)
            if jax.tree.leaves(own) or files.single:
                notes = {name: value for name, value in row.items() if name not in VOLATILE}
                save_adapter(files.adapter(spec), learned.task, own, notes=notes)
    return rows


def training_runs(
    group: Group, method: Method, draws: dict[int, protocols.EvalProtocol], shared: SweepContext
) -> list[Run]:
    """The runs of a group with their training images; the runs of one seed share them."""
    if not method.uses_images:
        tested = next(iter(draws.values())).evaluations[0].dataset.split("test")
        return [Run(tested, spec.seed) for spec in group]
    # Where nothing can be run, as many labelled images stand for pseudo-labelled ones.
    unlabelled = (method.unlabelled or group[0].protocol == "pseudo_labels") and meshes.is_there(shared.mesh)
    splits = {
        seed: shared.pseudo_labelled(plan, group[0].shots) if unlabelled else plan.source.split("train")
        for seed, plan in draws.items()
    }
    images = dict(zip(splits, shared.training_images(list(splits.values())), strict=True))
    return [Run(images[spec.seed], spec.seed, spec.learning_rate) for spec in group]


def learn(
    shared: SweepContext,
    bind: Bind,
    method: Method,
    recipe: Recipe | None,
    source: Dataset,
    runs: Sequence[Run],
    validation: Sequence[Callable[[], Split | None]],
    logging: Logging,
) -> Learned:
    """Prepares and trains runs of one method.

    Args:
      shared: the model, the mesh and the features.
      bind: makes the task.
      method: with its options.
      recipe: how it is trained; `None` where nothing is.
      source: the classes.
      runs: the runs.
      validation: gives the validation images of each run, where the method asks for them.
      logging: reports and checkpoints.
    """
    stages: Sequence[tuple[Method, Recipe]] = ()
    if method.trains and recipe is not None and method.uses_images:
        settled = recipe.settled(len(runs[0].train))
        if logging.progress is not None and settled != recipe:
            logging.progress.say(f"{settled.epochs} epochs, {settled.total_steps(len(runs[0].train))} steps")
        stages = method.stages(settled)
    task, plan = bind(method, source), None
    if stages and jax.tree.leaves(task.shapes):
        first, plan = _planned(shared, bind, source, runs, *stages[0])
        task = first if first.method is method else bind(method, source).with_memory(**plan.options)
    else:
        stages = ()
    samples = _samples(shared, task, runs, validation)
    trained, host = None, Stopwatch()
    with host:
        learnables = stack_runs([jax.device_get(task.init(run.seed)) for run in runs])
        if samples is not None and isinstance(method, FeatureMethod):
            learnables = each_run(method.support, learnables, samples)
    if plan is not None:
        trained = _train_stages(shared, bind, task, plan, source, runs, stages, learnables, logging)
        learnables = meshes.device_get(trained.learnables)
        if samples is not None and isinstance(method, FeatureMethod) and method.overrides("finish"):
            with host:
                learnables = each_run(method.finish, learnables, samples)
    lengths = [recipe.total_steps(len(runs[0].train)) for _, recipe in stages]
    seconds = _training_seconds(shared, method, stages, runs, samples, host.seconds, logging, lengths)
    return Learned(task, learnables, trained, seconds)


def each_run(
    hook: Callable[[Learnables, Samples], Learnables], learnables: Learnables, samples: Sequence[Samples]
) -> Learnables:
    """A method's hook called with the learnables and samples of each run, its results stacked again."""
    return stack_runs([jax.device_get(hook(select_run(learnables, run), one)) for run, one in enumerate(samples)])


def _planned(
    shared: SweepContext, bind: Bind, source: Dataset, runs: Sequence[Run], method: Method, recipe: Recipe
) -> tuple[Task, MemoryPlan]:
    """The task of one stage, and how its steps fit the memory."""
    compute = shared.compute
    task, plan = plan_step(
        bind(method, source),
        recipe,
        rows=rows_per_step([run.train for run in runs], recipe),
        runs=meshes.padded(shared.mesh, len(runs)),
        mesh=shared.mesh,
        remat=compute.remat,
        chunks=compute.class_chunks,
        micro_batch=compute.micro_batch,
        images=len(runs[0].train),
    )
    given = (compute.remat, compute.class_chunks, compute.micro_batch) != (AUTO, None, None)
    if not (given or plan.is_fastest) and len({run.learning_rate for run in runs}) > 1:
        raise ClipbiasError("the learning rates do not fit the memory side by side.")  # the sweep tries them apart
    return task, plan


def _samples(
    shared: SweepContext, task: Task, runs: Sequence[Run], validation: Sequence[Callable[[], Split | None]]
) -> list[Samples] | None:
    """Features of each run's training images, and of its validation images where the method asks for them."""
    sampling = sampling_of(task.method)
    if sampling is None:
        return None
    text, scale = np.asarray(text_of(shared, task)), float(np.exp(np.float32(shared.clip.params["logit_scale"])))
    found = []
    for run, split in zip(runs, validation, strict=True):
        chosen_on = split() if sampling.validation else None
        beside: dict[str, Any] = {}
        if chosen_on is not None:
            source = shared.features(Images(chosen_on), run.seed, sampling)
            features = source.plain()[0]
            beside = {"validation": features[source.readable], "validation_labels": chosen_on.labels[source.readable]}
        source = shared.features(Images.of(run.train), run.seed, sampling)
        features = support_features(source, sampling)  # which finds out which images can be read
        labels = np.asarray(run.train.labels)[source.readable]
        found.append(Samples(features=features, labels=labels, text=text, scale=scale, seed=run.seed, **beside))
    return found


def _train_stages(
    shared: SweepContext,
    bind: Bind,
    task: Task,
    plan: MemoryPlan,
    source: Dataset,
    runs: Sequence[Run],
    stages: Sequence[tuple[Method, Recipe]],
    start: Learnables,
    logging: Logging,
) -> Trained:
    """Trains the stages of a method one after another; most methods have one.

    Each stage has its own checkpoints, and is done once they say so.
    """
    method, steps = task.method, [recipe.total_steps(len(runs[0].train)) for _, recipe in stages]

    def train_stage(number: int, start: Learnables) -> tuple[Task, Trained]:
        trained, recipe = stages[number]
        bound = (task, plan) if trained is method else _planned(shared, bind, source, runs, trained, recipe)
        folder = logging.checkpoints and logging.checkpoints / f"stage{number}"
        before = sum(steps[:number])
        own = dataclasses.replace(logging, checkpoints=folder, steps_before=before, steps_in_all=sum(steps))
        sampling = sampling_of(trained)
        options: dict[str, Any] = dict(plan=bound[1], on_image_error=shared.on_image_error, workers=shared.workers)
        if sampling is not None:
            epochs = recipe.total_epochs(len(runs[0].train))
            sources = [shared.features(Images.of(run.train), run.seed, sampling) for run in runs]
            options["features"] = [epoch_features(source, sampling, epochs) for source in sources]
            options["readable"] = [source.readable for source in sources]
        return bound[0], train(bound[0], shared.params, runs, recipe, start, mesh=shared.mesh, logging=own, **options)

    if len(stages) == 1 and not method.overrides("next_stage"):
        return train_stage(0, start)[1]
    found: list[Trained] = []
    learnables = _next_stage(method, 0, start, None)
    for number in range(len(stages)):
        bound, trained = train_stage(number, learnables)
        found.append(trained)
        last, learnables = number + 1 == len(stages), meshes.device_get(trained.learnables)
        text = None if last else _stage_texts(shared, bound, learnables)
        learnables = _next_stage(method, number + 1, learnables, text)
    seconds = sum(one.seconds for one in found)
    waiting = sum(one.waiting_share * one.seconds for one in found) / max(seconds, 1e-9)
    skipped = [max(counts) for counts in zip(*(one.skipped for one in found), strict=True)]
    return Trained(learnables, found[-1].losses, sum(steps), seconds, waiting, skipped)


def _next_stage(method: Method, stage: int, learnables: Learnables, text: np.ndarray | None) -> Learnables:
    """`Method.next_stage` of each run, on the host."""
    runs = jax.tree.leaves(learnables)[0].shape[0]
    each = [
        method.next_stage(stage, select_run(learnables, run), None if text is None else text[run])
        for run in range(runs)
    ]
    return stack_runs(jax.device_get(each))


def _stage_texts(shared: SweepContext, task: Task, learnables: Learnables) -> np.ndarray:
    """The texts under each run's learnables: `[R, S, C, d]`."""
    runs = jax.tree.leaves(learnables)[0].shape[0]
    text, placed = place_text(shared.mesh, task, shared.params), meshes.device_put(shared.mesh, learnables, meshes.RUN)
    if isinstance(text, jax.Array):  # no learnable changes it
        features = jnp.broadcast_to(text, (runs, *text.shape))
    else:
        static = EvalStatic(task.classifier, task.clip.preprocessing, shared.mesh, runs)
        features = text_features(static, EvalInputs(shared.params, placed, text))
    return np.asarray(meshes.device_get(task.classifier.split_by_template(features)))


def _training_seconds(
    shared: SweepContext,
    method: Method,
    stages: Sequence[tuple[Method, Recipe]],
    runs: Sequence[Run],
    samples: Sequence[Samples] | None,
    host: float,
    logging: Logging,
    lengths: Sequence[int],
) -> list[float]:
    """Each run's share of the time of training: its own features, and equal shares of what all runs do together."""
    together = step_seconds(logging.metrics / METRICS, lengths) if logging.metrics is not None else 0.0
    if samples is None:
        return [together / len(runs)] * len(runs)
    sampling = sampling_of(method)
    assert sampling is not None
    passes = max(sampling.passes, 1)
    if stages and sampling.training == "fresh":
        passes += stages[0][1].total_epochs(len(runs[0].train))
    counts = [passes * len(one.labels) + (0 if one.validation is None else len(one.validation)) for one in samples]
    own = [
        shared.features(Images.of(run.train), run.seed, sampling).seconds(count)
        for run, count in zip(runs, counts, strict=True)
    ]
    return [seconds + (together + host) / len(runs) for seconds in own]


def _tested(
    group: Group, draw: protocols.EvalProtocol, learned: Learned, shared: SweepContext, files: SweepPaths
) -> list[Row]:
    """Scores the runs on test images, and saves their predictions."""
    found: dict[str, list[dict[str, Any]]] = {}
    for evaluation in draw.evaluations:
        tested = score_test(shared, learned.task, learned.learnables, draw, evaluation, len(group), group[0].shots)
        found[evaluation.name] = tested.scores
        if hosts.is_first():
            for index, spec in enumerate(group):
                name, own = files.predictions(spec, evaluation.name), select_run(tested.learnables, index)
                said = evaluation.dataset.split("test"), tested.predicted[index], tested.log_probs[index]
                save_predictions(files.workdir, name, tested.task, own, spec.method, *said)
    rows = []
    for index, spec in enumerate(group):
        scores = {name: each[index] for name, each in found.items()}
        predictions = {name: predictions_name(files.predictions(spec, name)) for name in scores}
        rows.append({"predictions": predictions, **merge_scores(scores)})
    return rows


def _picks(method: Method, draw: protocols.EvalProtocol, run: Run) -> Row:
    """The hashes of the images that a run was made from, as published picks have them."""
    if not method.uses_images:
        return {}
    found = {"train": Images.of(run.train).split.names_hash}
    return {"picks": found | ({"val": draw.source.split("val").names_hash} if "val" in draw.source.splits else {})}


def _described(spec: RunSpec, row: Row, learned: Learned, index: int, common: Recipe, shared: SweepContext) -> Row:
    """A row with its spec, its parameters, and what its training took."""
    counts, trained = parameter_count(select_run(learned.learnables, index)), learned.trained
    facts = spec_facts(spec, common) | {"model": shared.clip.name, "status": "ok"} | row
    facts |= {f"parameters_{part}": counts[part] for part in ("vision", "text", "shared")}
    facts |= {"parameters": counts["total"], "loss": None, "training_seconds": round(learned.seconds[index], 4)}
    if trained is not None:
        facts |= {"loss": trained.losses[index], "steps": trained.steps}
        facts |= {"waiting_share": round(trained.waiting_share, 4)}
        facts |= {"skipped_training_images": skipped} if (skipped := trained.skipped[index]) else {}
    return facts


def spec_facts(spec: RunSpec, common: Recipe) -> Row:
    """What names a run in its row; `own_recipe` is where its recipe differs from the common one."""
    own = {} if spec.recipe is None else spec.recipe.differences(common.at(spec.learning_rate))
    return {"key": spec.key, **spec.facts(), **({"own_recipe": own} if own else {})}
