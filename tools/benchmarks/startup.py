"""Start of a run: from nothing to the end of a few training steps, and loading a checkpoint, in fresh processes."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clipbias.errors import ClipbiasError

_FIRST_STEPS = """
import json, time
began = time.perf_counter()
import argparse
from tools.benchmarks import training
imported = time.perf_counter() - began
training.train(argparse.Namespace(**ARGUMENTS))
print(json.dumps({"import_seconds": imported}))
"""

_LOAD = """
import json, time
import jax
import clipbias, transformers.models.clip
from tools.benchmarks.ways import process_memory
before = process_memory()[0]
began, began_cpu = time.perf_counter(), time.process_time()
clip = clipbias.load(SOURCE, activation="quick_gelu")
spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
weights = sum(leaf.nbytes for leaf in jax.tree.leaves(clip.params))
print(json.dumps(spent | {"peak_bytes": process_memory()[1] - before, "weights_bytes": weights}))
"""


def startup(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the start of Python to the end of a few steps, without and with programs in JAX's cache."""
    settings = vars(arguments) | {"command": "train", "repeats": 1, "append": None, "output": None, "ways": None}
    code = _FIRST_STEPS.replace("ARGUMENTS", repr(settings | {"together": True}))
    result: dict[str, Any] = {"name": f"start-up, {arguments.method}, {arguments.classes} classes"}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("empty_cache", "full_cache"):
            began = time.perf_counter()
            found = child(code, JAX_COMPILATION_CACHE_DIR=cache, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.3")
            result |= {
                f"{name}_seconds": time.perf_counter() - began,
                f"{name}_import_seconds": found["import_seconds"],
            }
    return result


def load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak memory of loading each of `arguments.files`, which are then in the page cache.

    The peak is what loading takes beyond the imported libraries.
    """
    sources = {}
    for source in arguments.files:
        code = _LOAD.replace("SOURCE", repr(source))
        runs = [child(code) for _ in range(arguments.repeats + 1)][1:]
        sources[Path(source).name] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {"name": "loading", "sources": sources}


def child(code: str, **environment: str) -> dict[str, Any]:
    """Runs Python code in a process of its own; returns its last line, which is JSON.

    Raises:
      ClipbiasError: it failed; the message ends with its last line.
    """
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ClipbiasError(f"a benchmark process failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
