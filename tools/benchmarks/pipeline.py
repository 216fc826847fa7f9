"""The input pipeline against plain PIL on one thread, torchvision and tf.data, in turn.

JPEG files of 500 x 375 pixels are drawn, decoded and augmented by each way, several times; the best round of each
counts, and by time on a processor, which other work on the machine is not in, the median round. Beside them: what a
few-shot set gains from keeping decoded images over the epochs of a training run, and what the main thread spends on
each step's images where runs train side by side. "recipe" does what torchvision does per image (float32, normalised,
channels first) with PIL and NumPy on one thread. `cores_used` tells whether other work kept cores from this process; it
does not count torch's worker processes. With `--held` nothing but memory is measured: what batches of runs side by side
need of it, and what of a set whose pixels are three times as large as the cache is read again in each epoch from
storage that answers after some milliseconds; with `--checkout` another working copy takes turns.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from clipbias.data.dataset import Split
from clipbias.data.images import ImageCache, Images
from clipbias.data.pipeline import DEFAULT_CACHE_BYTES, train_batches
from clipbias.data.workers import processors
from tools.benchmarks import checkouts
from tools.benchmarks.image_ways import draw_images, peers, plain, recipe
from tools.benchmarks.side_by_side import side_by_side

HEIGHT, WIDTH = 375, 500  # of the JPEG files
SIZE = 224  # side of the model's input
EPOCHS = 10  # of the training run
STEPS, EPOCHS_KEPT = 6, 3  # in which memory is measured


RUNS_AND_SEEDS = ((1, 1), (9, 3), (32, 3), (32, 32))  # of which memory is measured
LATENCY_MS = 10.0  # of storage


def held(arguments: argparse.Namespace) -> dict[str, Any]:
    """What images of training need of memory, here and in another checkout."""
    found: dict[str, Any] = {"images": arguments.images, "side_by_side": {}, "cache": {}}
    with tempfile.TemporaryDirectory(prefix="clipbias-images-") as folder:
        for number, content in enumerate(draw_images(arguments.images, HEIGHT, WIDTH)):
            (Path(folder) / f"{number:05d}.jpg").write_bytes(content)
        file_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
        pixel_bytes = arguments.images * HEIGHT * WIDTH * 3
        found |= {"file_bytes": file_bytes, "pixel_bytes": pixel_bytes}
        options: dict[str, Any] = dict(folder=folder, size=SIZE, batch=min(arguments.batch, arguments.images))
        more: dict[str, Any] = dict(cache_bytes=pixel_bytes // 3, epochs=EPOCHS_KEPT, latency_ms=LATENCY_MS)
        for name, checkout in checkouts.of(arguments).items():
            for runs, seeds in RUNS_AND_SEEDS:
                given = options | dict(runs=runs, seeds=seeds, steps=STEPS)
                told = found["side_by_side"].setdefault(f"{runs} runs, {seeds} seeds", {})
                told[name] = checkouts.measured("images_held", given, checkout)
            found["cache"][name] = checkouts.measured("images_held", options | more, checkout)
    return {"name": "memory of images", **found}


def rate(batches: Iterable, images: int) -> tuple[float, float]:
    """Images per second of running through `batches`, and how many cores this process had meanwhile."""
    began, processor = time.perf_counter(), time.process_time()
    for _ in batches:
        pass
    seconds = time.perf_counter() - began
    return images / seconds, (time.process_time() - processor) / seconds


def pipeline(arguments: argparse.Namespace) -> dict[str, Any]:
    """Images per second of every way, and what a training run waits for its images; or `held`."""
    if arguments.held:
        return held(arguments)
    files = draw_images(arguments.images, HEIGHT, WIDTH)
    keys = tuple(f"{number}.jpg" for number in range(len(files)))
    split = Split(keys, np.zeros(len(files), np.int32), lambda index: files[index])
    batch_size, threads = min(arguments.batch, len(files)), processors()
    used = len(files) // batch_size * batch_size
    options: dict[str, Any] = dict(image_size=SIZE, batch_size=batch_size, seed=1)
    images = Images(split, ImageCache(DEFAULT_CACHE_BYTES))
    rate(train_batches(images, epochs=1, **options), used)  # fills the cache, loads the libraries
    ways: dict[str, Callable[[], tuple[Iterable, int]]] = {
        "plain": lambda: (plain(files, SIZE), len(files)),
        "recipe": lambda: (recipe(files, SIZE), len(files)),
        "pipeline_1_thread": lambda: (train_batches(split, epochs=1, cache_bytes=0, workers=1, **options), used),
        f"pipeline_{threads}_threads": lambda: (train_batches(split, epochs=1, cache_bytes=0, **options), used),
        f"pipeline_{threads}_threads_cached": lambda: (train_batches(images, epochs=1, **options), used),
    }
    for name, way in peers(files, SIZE, batch_size, threads).items():
        ways[name] = lambda way=way: (way(), len(files))  # type: ignore[misc]
    # In turn, several rounds, the best of each: what else runs on the machine then hits all alike.
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            rates[name].append(rate(*way()))
    best = {name: max(found) for name, found in rates.items()}
    by_core = {name: statistics.median(one / cores for one, cores in found) for name, found in rates.items()}
    caches = {"without_cache": 0, "with_cache": DEFAULT_CACHE_BYTES}
    return {
        "name": f"input pipeline, batch {batch_size}",
        "images": len(files),
        "workers": threads,
        "pillow": PIL.__version__,
        "images_per_second": {name: round(value, 1) for name, (value, _) in best.items()},
        "images_per_second_of_a_core": {
            name: round(value, 1) for name, value in by_core.items() if not name.endswith("_workers") or "_0_" in name
        },
        "cores_used": {name: round(cores, 2) for name, (_, cores) in best.items()},
        "training_run": {
            name: training_run(Images(split, ImageCache(budget)), arguments.step_ms, options)
            for name, budget in caches.items()
        },
        "side_by_side": side_by_side(split, arguments.runs, SIZE, batch_size, arguments.step_ms),
    }


def training_run(images: Images, step_ms: float, options: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a run whose steps take `step_ms` on an accelerator, and the share of them spent waiting for images."""
    batches = train_batches(images, epochs=EPOCHS, **options)
    began = time.perf_counter()
    for _ in batches:
        time.sleep(step_ms / 1000)
    seconds = time.perf_counter() - began
    return {
        "seconds": round(seconds, 2),
        "waiting_share": round(batches.seconds_waiting / seconds, 4),
        "cached_images": len(images.cache),
    }
