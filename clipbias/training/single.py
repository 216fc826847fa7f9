"""One run from images to accuracy, and the evaluation of something already tuned."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.clip.params import Params
from clipbias.data import Dataset, Split, protocols
from clipbias.data.images import Images
from clipbias.data.pipeline import DEFAULT_CACHE_BYTES, readable
from clipbias.training import mesh as meshes
from clipbias.training.evaluate import Evaluator
from clipbias.training.loop import Run, place_text, train
from clipbias.training.memory import AUTO, StepPlan, fit_task
from clipbias.training.progress import Progress
from clipbias.training.settings import Recipe
from clipbias.training.workdir import ADAPTER
from clipbias.tuning import Task, make_method, parameter_count
from clipbias.tuning.adapter import save_adapter
from clipbias.tuning.method import Learnables
from clipbias.tuning.registry import source_digest


def training_images(dataset: Dataset, *, shots: int, seed: int, on_image_error: str) -> Images:
    """The few-shot draw of a dataset (all training images with `shots` 0); unreadable ones are left out if asked."""
    plan = protocols.few_shot(dataset, shots=shots, seed=seed) if shots else protocols.full(dataset)
    return decoded_on_demand(plan.source.split("train"), on_image_error=on_image_error)


def decoded_on_demand(split: Split, *, on_image_error: str) -> Images:
    """Training images that stay decoded; with "skip" those that cannot be read are left out."""
    images = Images(split, cache_bytes=DEFAULT_CACHE_BYTES)
    return readable(images) if on_image_error == "skip" else images


def evaluate(
    task: Task,
    learnables: Learnables,
    split: Split,
    *,
    mesh: Mesh,
    eval_batch_size: int,
    on_image_error: str,
    params: Params | None = None,
) -> dict[str, Any]:
    """Top-1 accuracy of one set of learnables: `{"accuracy", "correct", "images"}` and `skipped_images` if any.

    `params` are the frozen weights where they are on the mesh already.
    """
    params = meshes.replicate(mesh, task.clip.params) if params is None else params
    evaluator = Evaluator(
        task.clip, params, split, mesh=mesh, batch_size=eval_batch_size, on_error=on_image_error, cache_bytes=0
    )
    stacked = meshes.place(mesh, jax.tree.map(lambda leaf: np.asarray(leaf)[None], learnables), meshes.RUN)
    text, _ = place_text(mesh, [Run(task, split, 0)], params, stacked)
    score = evaluator.accuracy(task.classifier, stacked, text, runs=1)[0]
    return score | ({"skipped_images": evaluator.skipped} if evaluator.skipped else {})


def fit(
    clip: Clip,
    dataset: Dataset,
    method: str,
    method_options: Mapping[str, Any],
    recipe: Recipe,
    *,
    dtype: str,
    mesh: Mesh,
    remat: str = AUTO,
    class_chunks: int = 0,
) -> tuple[Task, StepPlan]:
    """A method bound to a dataset's classes such that its steps fit the memory, and how they run."""
    make = functools.partial(
        Task,
        clip,
        make_method(method, **method_options),
        dataset.class_names,
        template=dataset.template,
        dtype=dtype,
        groups=mesh.shape[meshes.DATA],
    )
    return fit_task(make, batch=recipe.batch_size, runs=1, mesh=mesh, remat=remat, chunks=class_chunks)


def train_and_evaluate(
    clip: Clip,
    dataset: Dataset,
    method: str,
    method_options: Mapping[str, Any],
    recipe: Recipe,
    *,
    shots: int,
    seed: int,
    dtype: str,
    mesh: Mesh,
    eval_batch_size: int,
    checkpoint_seconds: float,
    on_image_error: str,
    workdir: Path,
    remat: str = AUTO,
    class_chunks: int = 0,
) -> dict[str, Any]:
    """Trains one run, saves its adapter in `workdir` and evaluates it on the test images.

    Returns:
      JSON values: what was run, `accuracy` in percent with its counts, parameter counts, the last loss, the share of
      time spent waiting for images.
    """
    task, plan = fit(
        *(clip, dataset, method, method_options, recipe),
        dtype=dtype,
        mesh=mesh,
        remat=remat,
        class_chunks=class_chunks,
    )
    result = {"method": method, "dataset": dataset.name, "shots": shots, "seed": seed, "model": clip.name}
    learnables: Learnables = {}
    params = meshes.replicate(mesh, clip.params)
    if jax.tree.leaves(task.shapes):
        images = training_images(dataset, shots=shots, seed=seed, on_image_error=on_image_error)
        identity = {
            **result,
            "fingerprint": clip.fingerprint,
            "options": {key: list(v) if isinstance(v, tuple) else v for key, v in task.options().items()},
            "class_names": list(dataset.class_names),
            "images": list(images.split.keys),
            "template": dataset.template,
            "source": source_digest(method),
            "dtype": dtype,
            "recipe": vars(recipe),
        }
        progress = Progress(0, title=f"{method} {dataset.name}")
        trained = train(
            clip,
            params,
            [Run(task, images, seed)],
            recipe,
            mesh=mesh,
            folder=workdir / "checkpoints",
            identity=identity,
            checkpoint_seconds=checkpoint_seconds,
            progress=progress,
            metrics_folder=workdir,
            plan=plan,
        )
        learnables = jax.tree.map(lambda leaf: leaf[0], meshes.fetch(trained.learnables))
        result |= {"loss": trained.losses[0], "steps": trained.steps, "waiting_share": round(trained.waiting_share, 4)}
        if images.unreadable:
            result["skipped_training_images"] = len(images.unreadable)
    counts = parameter_count(learnables)
    result |= evaluate(
        task,
        learnables,
        dataset.split("test"),
        mesh=mesh,
        eval_batch_size=eval_batch_size,
        on_image_error=on_image_error,
        params=params,
    )
    result |= {"parameters": counts["total"], **{f"parameters_{k}": counts[k] for k in ("vision", "text", "shared")}}
    if jax.process_index() == 0:
        # What was measured of time would make two equal runs leave different files.
        notes = {name: value for name, value in result.items() if name != "waiting_share"}
        save_adapter(workdir / ADAPTER, task, learnables, method=method, notes=notes)
    return result
