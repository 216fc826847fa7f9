"""What a dry run says of a pack: shapes, parameters, memory and time."""

import jax

from clipbias.errors import ClipbiasError
from clipbias.training.evaluate import class_bytes, image_arguments, image_features
from clipbias.training.grid import Grid
from clipbias.training.loop import rows_per_step
from clipbias.training.packs import Pack
from clipbias.training.plan import estimated_seconds, flop, needed_bytes, step_arguments
from clipbias.training.step import train_step
from clipbias.tuning import parameter_count


def forecast(grid: Grid, pack: Pack, rate: float) -> tuple[str, float]:
    """The lines of a pack, and its seconds without compiling and reading. Its programs are compiled and not run.

    Args:
      grid: which would run it.
      pack: where its learning rates do not fit side by side, each is told by itself.
      rate: multiplications and additions per second of one device, see `plan.device_rate`.

    Raises:
      ClipbiasError: there is no way to run it.
    """
    draws = grid.cache.plans(pack)
    try:
        task, runs, plan = grid.prepare(pack, draws)
    except ClipbiasError:
        if len(pack.learning_rates) == 1:
            raise
        found = [forecast(grid, part, rate) for part in pack.by_rate]
        return "\n".join(text for text, _ in found), sum(seconds for _, seconds in found)
    recipe, mesh = grid.recipe_for(pack), grid.mesh
    images, rows = len(runs[0].train), rows_per_step([run.train for run in runs], recipe)
    tested = sum(len(one.dataset.split("test")) for one in draws[0].evaluations)
    batch = min(grid.settings.eval_batch_size, tested)
    arguments, options = image_arguments(task, batch=batch, runs=len(runs), mesh=mesh)
    count = flop(image_features, *arguments, **options) * tested // batch
    needed = max(needed_bytes(image_features, *arguments, **options), class_bytes(task, runs=len(runs), mesh=mesh))
    lines = [f"{pack.method} on {pack.dataset}, {pack.shots} shots"]
    classes = f"{len(task.class_names)} classes, {tested} test images"
    if plan is None:
        lines.append(f"  nothing to train, {classes}")
    else:
        step = step_arguments(task, recipe, rows=rows, runs=len(runs), mesh=mesh, images=images)
        steps, size = recipe.total_steps(images), task.clip.config.vision.image_size
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
