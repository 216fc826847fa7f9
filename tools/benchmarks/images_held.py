"""What memory the images of training need, in a process of its own; prints one JSON object.

    python -P tools/benchmarks/images_held.py '{"folder": FOLDER, "runs": 32, "seeds": 3, ...}'

It uses nothing of `tools`, so that another checkout's `clipbias`, named by PYTHONPATH, can be measured by it too.
"""

import gc
import json
import os
import re
import sys
import threading
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np


def memory() -> tuple[int, int]:
    """Bytes of this process in memory, now and at most since `forget_peak`. Linux only."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    now, most = (int(re.findall(rf"{name}:\s+(\d+) kB", text)[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def forget_peak() -> None:
    """Lets the peak begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def side_by_side(images: Any, runs: int, seeds: int, size: int, batch: int, steps: int) -> dict[str, Any]:
    """The batches of so many runs with so many seeds in turn: bytes beyond what was there before, threads, and time.

    Time is what the main thread computes between two steps, in milliseconds.

    A step is a pause in which the threads make all that they make ahead, as with an accelerator that takes longer than
    they do. Images are kept decoded before.
    """
    import jax

    from clipbias.data.workers import Workers
    from clipbias.training import mesh as meshes
    from clipbias.training.batches import RunBatches
    from clipbias.tuning.recipe import Recipe

    for index in range(len(images)):
        images.decoded(index)
    epochs = -(-steps // max(1, len(images) // batch))
    recipe = Recipe(0.1, epochs, 0, 0.1, batch, 0.9, 0.0)
    mesh, own = meshes.single_device(), [1 + run % seeds for run in range(runs)]
    # A training has placed and compiled something before, and what the compiler takes does not grow with runs.
    placed = meshes.place(mesh, np.zeros(2, np.float32))
    jax.block_until_ready(jax.jit(lambda values: values[np.asarray([1, 0])])(placed))
    gc.collect()
    before, threads = memory()[0], set(threading.enumerate())
    forget_peak()
    batches = RunBatches([images] * runs, own, recipe, mesh, image_size=size, start_step=0, workers=Workers())
    bytes_of_a_step, most, spent = 0, 0, list[float]()
    for _ in range(steps):
        began = time.thread_time()
        made = next(batches)
        jax.block_until_ready(made)
        spent.append(time.thread_time() - began)
        bytes_of_a_step = made["images"].nbytes
        most = max(most, len(set(threading.enumerate()) - threads))
        wait([element for element, _ in list(batches._ahead._elements)])
        del made
    batches.close()
    found = {"more_bytes": memory()[1] - before, "bytes_of_a_step": bytes_of_a_step, "threads": most}
    return found | {"main_thread_ms": 1e3 * float(np.median(spent[1:]))}


def kept(split: Any, reads: list[int], cache_bytes: int, size: int, batch: int, epochs: int) -> dict[str, Any]:
    """Training epochs of one run, with so much memory for images: what is read in each, and how fast they are."""
    from clipbias.data.pipeline import train_batches

    options: dict[str, Any] = dict(image_size=size, batch_size=batch, seed=1)
    batches = train_batches(split, epochs=epochs, cache_bytes=cache_bytes, **options)
    found: list[dict[str, float]] = []
    for _ in range(epochs):
        reads.clear()
        began, began_cpu = time.perf_counter(), time.process_time()
        for _ in range(len(split) // batch):
            next(batches)
        spent = time.perf_counter() - began, time.process_time() - began_cpu
        found.append({"read": len(reads), "seconds": spent[0], "cpu_seconds": spent[1]})
    return {"images": len(split), "epochs": found}


def main(given: dict[str, Any]) -> dict[str, Any]:
    from clipbias.data.dataset import Split
    from clipbias.data.images import Images

    paths, reads = sorted(Path(given.pop("folder")).iterdir()), list[int]()
    latency = given.pop("latency_ms", 0.0) / 1000

    def read(index: int) -> bytes:
        reads.append(index)
        time.sleep(latency)
        return paths[index].read_bytes()

    split = Split([path.name for path in paths], np.zeros(len(paths), np.int32), read)
    if "runs" in given:
        return side_by_side(Images.of(split, 1 << 40), **given)
    return kept(split, reads, **given)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1])) | {"load": os.getloadavg()[0]}))
