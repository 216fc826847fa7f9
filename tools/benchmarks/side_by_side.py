"""What the main thread spends on each step's images where runs train side by side, and how many threads that takes.

"loaders" is a loader with threads of its own for each run, whose batches the main thread stacks and places on the
device. "shared" is the package's way: all runs share threads, and these stack and place. A step is a pause in which the
threads may work, as an accelerator's is. What counts is the main thread's own time on a processor, so that neither what
it waits for nor other work on the machine is in it.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from clipbias.data.dataset import Split
from clipbias.data.images import ImageCache, Images
from clipbias.data.pipeline import DEFAULT_CACHE_BYTES, Batch, train_batches
from clipbias.data.workers import Workers
from clipbias.training import mesh as meshes
from clipbias.training.batches import RunBatches
from clipbias.tuning.recipe import Recipe

STEPS, SEEDS, MOST_LOADERS = 8, 3, 16


def side_by_side(split: Split, counts: Sequence[int], size: int, batch_size: int, step_ms: float) -> dict[str, Any]:
    """Milliseconds per step, on the main thread, of so many runs; their seeds are 1, 2, 3 in turn."""
    found: dict[str, Any] = {}
    images, recipe = Images(split, ImageCache(DEFAULT_CACHE_BYTES)), _recipe(batch_size, len(split))
    for runs in counts:
        seeds = [1 + run % SEEDS for run in range(runs)]
        ways = {
            "loaders": lambda seeds=seeds: _loaders(images, seeds, recipe, size),
            "shared": lambda seeds=seeds: RunBatches(
                *([images] * len(seeds), seeds, recipe, meshes.single_device()),
                image_size=size,
                start_step=0,
                workers=Workers(),
            ),
        }
        found[str(runs)] = {name: _timed(way, step_ms * runs) for name, way in ways.items()}
    return found


def _recipe(batch_size: int, images: int) -> Recipe:
    epochs = -(-STEPS // max(1, images // batch_size))
    return Recipe(0.1, epochs, 0, 0.1, batch_size, 0.9, 0.0)


def _loaders(images: Images, seeds: Sequence[int], recipe: Recipe, size: int) -> Iterator[Batch]:
    options: dict[str, Any] = dict(image_size=size, batch_size=recipe.batch_size, epochs=recipe.epochs)
    options["workers"] = min(MOST_LOADERS, Workers().count)
    each = [train_batches(images, seed=seed, **options) for seed in seeds]
    for batches in zip(*each, strict=True):
        stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        yield meshes.place_batch(meshes.single_device(), stacked)


def _timed(make: Callable[[], Iterator[Batch]], step_ms: float) -> dict[str, float]:
    """Median milliseconds of the steps after the first two, in which the caches are filled, and most threads."""
    before, batches, spent, threads = set(threading.enumerate()), make(), [], 0
    for _ in range(STEPS):
        began = time.thread_time()
        batch = next(batches)
        jax.block_until_ready(batch)
        spent.append(time.thread_time() - began)
        threads = max(threads, len(set(threading.enumerate()) - before))
        time.sleep(step_ms / 1000)
    return {"main_thread_ms": round(1e3 * float(np.median(spent[2:])), 2), "threads": threads}
