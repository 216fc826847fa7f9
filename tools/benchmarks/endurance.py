"""Whether memory, threads and open files stay as they are over many steps, over the groups of a sweep, and with runs.

A model of tiny geometry trains on drawn JPEG files: first for many steps, then in a sweep of many groups, each of which
trains, evaluates and writes its results, then with more and more runs side by side. What each needs is told in bytes of
this process, at several moments: what grows from one to the next is kept by somebody.
"""

import argparse
import dataclasses
import gc
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.data.dataset import Dataset, Split
from clipbias.training import mesh as meshes
from clipbias.training.loop import Logging, Run, Trained, train
from clipbias.training.shared import Compute, Shared
from clipbias.training.spec import make_specs
from clipbias.training.sweep import sweep
from clipbias.tuning import Task
from clipbias.tuning.learnables import stack_runs
from clipbias.tuning.recipe import Recipe
from tools.benchmarks.image_ways import draw_images
from tools.benchmarks.model import geometry, random_clip

CLASSES, EACH, HEIGHT, WIDTH = 8, 12, 96, 128
MOMENTS = 20  # at which the process is looked at
SIDE_BY_SIDE = (1, 9, 32)


def endurance(arguments: argparse.Namespace) -> dict[str, Any]:
    """Memory, threads and open files over steps, groups and runs."""
    clip, dataset = random_clip(geometry("tiny")), _dataset()
    recipe = Recipe(0.01, 1, 0, 0.01, 32, 0.9, 5e-4)
    return {
        "name": "memory, threads and open files over time",
        "steps": over_steps(clip, dataset, recipe, arguments.steps),
        "groups": over_groups(clip, dataset, recipe, arguments.groups),
        "runs": {str(runs): side_by_side(clip, dataset, recipe, runs) for runs in SIDE_BY_SIDE},
    }


class Moments:
    """What this process holds at several moments."""

    def __init__(self) -> None:
        self._process, self.found = psutil.Process(), list[dict[str, int]]()

    def look(self) -> None:
        held = {"bytes": self._process.memory_info().rss, "threads": threading.active_count()}
        self.found.append(held | {"files": len(os.listdir("/proc/self/fd"))})

    def summary(self) -> dict[str, Any]:
        """The first quarter, in which programs are compiled and caches filled, is left out of what grows."""
        settled = self.found[len(self.found) // 4 :]
        counts = np.arange(len(settled))
        slope = np.polyfit(counts, [one["bytes"] for one in settled], 1)[0] if len(settled) > 1 else 0.0
        return {
            "megabytes": [round(one["bytes"] / 1e6, 1) for one in self.found],
            "grows_megabytes": round(float(slope) * max(len(settled) - 1, 0) / 1e6, 2),
            **{name: max(one[name] for one in self.found) for name in ("threads", "files")},
            **{f"settled_{name}": sorted({one[name] for one in settled}) for name in ("threads", "files")},
        }


def over_steps(clip: Clip, dataset: Dataset, recipe: Recipe, steps: int) -> dict[str, Any]:
    """One training of so many steps."""
    split, mesh, moments = dataset.split("train"), meshes.single_device(), Moments()
    recipe = dataclasses.replace(recipe, epochs=-(-steps // recipe.steps_per_epoch(len(split))))
    total = recipe.total_steps(len(split))
    task = Task(clip, "bias", dataset.class_names)
    watched = _Watched(moments, every=max(1, total // MOMENTS))
    trained = _train(task, [Run(split, 1)], recipe, mesh, watched)
    return {"count": total, "waiting_share": round(trained.waiting_share, 4), **moments.summary()}


def over_groups(clip: Clip, dataset: Dataset, recipe: Recipe, groups: int) -> dict[str, Any]:
    """A sweep of so many groups, each a run of its own, on a dataset that stays."""
    moments, datasets = Moments(), {dataset.name: dataset}
    axes: dict[str, Any] = dict(methods=["bias"], datasets=[dataset.name], shots=[4], seeds=range(1, groups + 1))
    specs = make_specs(clip, datasets, recipe, **axes)
    shared = Shared(clip, datasets, Compute(eval_batch_size=32), meshes.single_device())
    begin = shared.begin

    def watched(dataset: str) -> None:
        begin(dataset)
        moments.look()

    shared.begin = watched  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        rows = sweep(specs, shared, Path(folder), recipe, most_runs=1)
    assert len(rows) == groups and {row["status"] for row in rows} == {"ok"}
    return {"count": groups, **moments.summary()}


def side_by_side(clip: Clip, dataset: Dataset, recipe: Recipe, runs: int) -> dict[str, Any]:
    """A group of so many runs: what memory it takes beyond what was there before, at most."""
    moments, mesh = Moments(), meshes.single_device()
    gc.collect()
    moments.look()
    recipe = dataclasses.replace(recipe, epochs=8)
    task, split = Task(clip, "bias", dataset.class_names), dataset.split("train")
    own = [Run(split, 1 + run % 3, 0.001 * (1 + run // 3)) for run in range(runs)]
    _train(task, own, recipe, mesh, _Watched(moments, every=1))
    first, *rest = moments.found
    return {
        "more_megabytes": round((max(one["bytes"] for one in rest) - first["bytes"]) / 1e6, 1),
        **{name: max(one[name] for one in rest) for name in ("threads", "files")},
    }


class _Watched:
    """Stands in for a training's progress, and looks at the process."""

    def __init__(self, moments: Moments, *, every: int) -> None:
        self._moments, self._every, self._done = moments, every, 0

    def start(self, total: int, *, done: int = 0) -> None:
        self._done = done

    def advance(self, count: int, values: Any) -> None:
        self._done += count
        if self._done % self._every == 0:
            self._moments.look()

    def say(self, line: str) -> None:
        pass

    def close(self) -> None:
        pass


def _train(task: Task, runs: Sequence[Run], recipe: Recipe, mesh: Mesh, watched: _Watched) -> Trained:
    start = stack_runs([jax.device_get(task.init(run.seed)) for run in runs])
    logging = Logging(progress=watched)  # type: ignore[arg-type]
    return train(task, meshes.replicate(mesh, task.clip.params), runs, recipe, start, mesh=mesh, logging=logging)


def _dataset() -> Dataset:
    """Drawn JPEG files: as many of each class for training as for testing."""

    def split(name: str, seed: int) -> Split:
        files = draw_images(CLASSES * EACH, HEIGHT, WIDTH, seed=seed)
        keys: Sequence[str] = [f"{name}/{number}.jpg" for number in range(len(files))]
        return Split(tuple(keys), np.arange(len(files)) % CLASSES, files.__getitem__)

    names = tuple(f"class {number}" for number in range(CLASSES))
    return Dataset("drawn", names, "a photo of a {}.", {"train": split("train", 0), "test": split("test", 1)})
