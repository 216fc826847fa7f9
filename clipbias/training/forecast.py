"""What a dry run says of a pack: shapes, parameters, memory and time."""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from clipbias.data import Dataset
from clipbias.data.pipeline import steps_per_epoch
from clipbias.training.evaluate import class_bytes, image_arguments, image_features
from clipbias.training.loop import Run, rows_per_step
from clipbias.training.plan import StepPlan, estimated_seconds, flop, needed_bytes, step_arguments
from clipbias.training.settings import GridSettings, Recipe
from clipbias.training.step import train_step
from clipbias.tuning import Task, parameter_count


def forecast(
    title: str,
    task: Task,
    runs: Sequence[Run],
    plan: StepPlan | None,
    evaluations: Sequence[Dataset],
    recipe: Recipe,
    settings: GridSettings,
    mesh: Mesh,
    rate: float,
) -> tuple[str, float]:
    """The lines of one program, and its seconds without compiling and reading.

    Args:
      title: what is trained.
      task: a method bound to the classes of training.
      runs: those that train side by side.
      plan: how a step runs; `None` where nothing is trained.
      evaluations: datasets whose test images each run is evaluated on.
      recipe, settings: of the grid.
      mesh: the devices.
      rate: multiplications and additions per second of one device, see `plan.device_rate`.
    """
    images, rows = len(runs[0].train), rows_per_step([run.train for run in runs], recipe)
    tested = sum(len(dataset.split("test")) for dataset in evaluations)
    batch = min(settings.eval_batch_size, tested)
    arguments, options = image_arguments(task, batch=batch, runs=len(runs), mesh=mesh)
    count = flop(image_features, *arguments, **options) * tested // batch
    needed = max(needed_bytes(image_features, *arguments, **options), class_bytes(task, runs=len(runs), mesh=mesh))
    lines = [title]
    classes = f"{len(task.class_names)} classes, {tested} test images"
    if plan is None:
        lines.append(f"  nothing to train, {classes}")
    else:
        step = step_arguments(task, recipe, rows=rows, runs=len(runs), mesh=mesh)
        steps, size = recipe.epochs * steps_per_epoch(images, recipe.batch_size), task.clip.config.vision.image_size
        count += steps * (once := flop(train_step, *step))
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
            f"  a step: images [{len(runs)}, {rows}, {size}, {size}, 3], text tokens {list(task.text.ids.shape)}, "
            f"{once / 1e9:,.1f} GFLOP",
            f"  memory: {plan}",
        ]
    lines.append(f"  memory of the evaluation: about {needed / 1e9:.2g} GB per device")
    seconds = estimated_seconds(count, rate, mesh)
    devices = f"{mesh.devices.size} devices" if mesh.devices.size > 1 else "one device"
    lines.append(f"  time: about {seconds:,.1f} s on {devices} of {rate / 1e9:,.0f} GFLOP/s in products")
    return "\n".join(lines), seconds
