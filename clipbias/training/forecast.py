"""What a dry run says of a pack: shapes, parameters, memory and time."""

from collections.abc import Sequence

import jax
import numpy as np

from clipbias.data.protocols import Plan
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.answers import image_features, logits
from clipbias.training.evaluation_plan import answer_arguments, class_bytes, image_arguments
from clipbias.training.features import frozen_features
from clipbias.training.loop import Run, rows_per_step
from clipbias.training.packs import Pack, evaluated_on
from clipbias.training.plan import estimated_seconds, flop, needed_bytes, step_arguments
from clipbias.training.step import train_step
from clipbias.training.trainer import Trainer
from clipbias.tuning import parameter_count
from clipbias.tuning.feature_method import sampling_of


def forecast(trainer: Trainer, pack: Pack, rate: float, *, learned: bool = False) -> tuple[str, float]:
    """The lines of a pack, and its seconds without compiling and reading. Its programs are compiled and not run.

    Args:
      trainer: which would run it.
      pack: where its learning rates do not fit side by side, each is told by itself.
      rate: multiplications and additions per second of one device, see `plan.device_rate`.
      learned: its trials have learned already, and it is evaluated alone.

    Raises:
      ClipbiasError: there is no way to run it.
    """
    draws = trainer.cache.plans(pack)
    runs, plan = list[Run](), None
    try:
        if learned:
            task = trainer.cache.task(pack, draws[0].source)
        else:
            task, runs, plan = trainer.prepare(pack, draws)
    except ClipbiasError:
        if len(pack.learning_rates) == 1:
            raise
        found = [forecast(trainer, part, rate) for part in pack.by_rate]
        return "\n".join(text for text, _ in found), sum(seconds for _, seconds in found)
    recipe, mesh = trainer.recipe_for(pack), trainer.mesh
    images = len(runs[0].train) if runs else 0
    tested = sum(len(split) for _, split in evaluated_on(pack, draws))
    batch, side = min(trainer.settings.eval_batch_size, tested), len(pack.cells)
    arguments, options = image_arguments(task, batch=batch, runs=side, mesh=mesh)
    count = flop(image_features, *arguments, **options) * tested // len(arguments[-1])
    if task.method.conditional:
        of_texts, options_of_texts = answer_arguments(task, batch=batch, runs=side, mesh=mesh)
        count += flop(logits, *of_texts, **options_of_texts) * tested // len(of_texts[-1])
    needed = max(needed_bytes(image_features, *arguments, **options), class_bytes(task, runs=side, mesh=mesh))
    lines = [f"{pack.method} on {pack.dataset}, {pack.shots} shots"]
    classes = f"{len(task.class_names)} classes, {tested} {'validation' if pack.tries else 'test'} images"
    if learned:
        lines.append(f"  what the trials learned at the rate that is chosen, {classes}")
    elif plan is None and task.method.draws:
        lines.append(f"  made at once of {images} training images, {classes}")
    elif plan is None:
        lines.append(f"  nothing to train, {classes}")
    if sampling_of(task.method) is not None and not learned:
        once_line, more = _features(trainer, pack, draws, images, trained=plan is not None)
        lines.append(once_line)
        count += more
    if plan is not None:
        steps, shape, once, rows = 0, "", 0, rows_per_step([run.train for run in runs], recipe)
        for method, own in trainer.stages(pack):
            bound = task if method is task.method else trainer.cache.task(pack, draws[0].source, method, **plan.options)
            step = step_arguments(bound, own, rows=rows, runs=len(runs), mesh=mesh, images=images)
            steps, shape = steps + own.total_steps(images), shape or ", ".join(map(str, step[6]["images"].shape))
            count += own.total_steps(images) * (products := flop(train_step, *step))
            once = once or products  # of the first stage
        kind = "features" if sampling_of(task.method) is not None else "images"
        counts = parameter_count(task.shapes)
        parts = ", ".join(f"{counts[part]:,} {part}" for part in ("vision", "text", "shared") if counts[part])
        side_by_side = f"{len(runs)} runs side by side, " if len(runs) > 1 else ""
        lines += [
            f"  {side_by_side}{images} training images, {steps} steps, {classes}",
            f"  parameters per run: {counts['total']:,} ({parts})",
            *(
                f"    {'/'.join(str(getattr(key, 'key', key)) for key in path)} {list(leaf.shape)}"
                for path, leaf in jax.tree_util.tree_leaves_with_path(task.shapes)
            ),
            f"  a step: {kind} [{shape}], text tokens {list(task.text.ids.shape)}, {once / 1e9:,.1f} GFLOP",
            f"  memory: {plan}",
        ]
    lines.append(f"  memory of the evaluation: about {needed / 1e9:.2g} GB per device")
    seconds = estimated_seconds(count, rate, mesh)
    devices = f"{mesh.devices.size} devices" if mesh.devices.size > 1 else "one device"
    lines.append(f"  time: about {seconds:,.1f} s on {devices} of {rate / 1e9:,.0f} GFLOP/s in products")
    return "\n".join(lines), seconds


def _features(trainer: Trainer, pack: Pack, draws: Sequence[Plan], images: int, *, trained: bool) -> tuple[str, int]:
    """The line on what the frozen vision tower computes once for all seeds, and its multiplications and additions."""
    sampling, recipe, clip = sampling_of(trainer.cache.method(pack)), trainer.recipe_for(pack), trainer.clip
    assert sampling is not None
    passes = max(sampling.passes, 1)
    if trained and sampling.training == "fresh":
        passes += recipe.total_epochs(images)
    validation = [split for draw in draws if sampling.validation and (split := draw.validation()) is not None]
    whole = passes * images * len(draws) + sum(map(len, validation))
    size, batch, dtype = clip.config.vision.image_size, trainer.settings.eval_batch_size, trainer.settings.dtype
    arguments = (
        *(clip.config, clip.preprocessing, meshes.place_weights(trainer.mesh, clip.params, dtype, shapes=True)),
        jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8),
    )
    options = {"dtype": dtype, "projected": sampling.projected}
    count = flop(frozen_features, *arguments, **options) * whole // batch
    more = f" and of {len(validation[0])} validation images" if validation else ""
    seeds = f" for each of {len(draws)} seeds" if len(draws) > 1 else ""
    passed = f"{passes} pass{'es' if passes > 1 else ''} of {images} training images"
    work = f"{whole:,} images through the vision tower, {count / 1e9:,.1f} GFLOP"
    return f"  features, computed once: {passed}{more}{seeds}; {work}", count
