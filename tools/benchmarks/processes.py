"""What needs a process of its own: start-up, the input pipeline, and simulated devices."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import numpy as np

from clipbias.errors import ClipbiasError

_FIRST_STEP = """
import time
began = time.perf_counter()
import argparse, os
import jax
cache = os.environ.get("CLIPBIAS_BENCHMARK_CACHE")
if cache:
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
from tools.benchmarks import steps
imported = time.perf_counter()
steps.train(argparse.Namespace(**ARGUMENTS))
print('seconds', imported - began, time.perf_counter() - began)
"""

_COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_SHAPE = re.compile(r"(f32|bf16|s32|u8|pred)\[([\d,]*)\]")
_BYTES = {"f32": 4, "s32": 4, "bf16": 2, "u8": 1, "pred": 1}


def child(code: str, **environment: str) -> str:
    """Runs Python code in a process of its own; returns what it printed.

    Raises:
      ClipbiasError: it failed; the message ends with its last line.
    """
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ClipbiasError(f"a benchmark process failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout


def startup(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the start of Python to the end of a few training steps, without and with a compilation cache."""
    import tempfile

    settings = vars(arguments) | {"repeats": 1, "baseline": False, "append": None, "output": None, "files": []}
    code = _FIRST_STEP.replace("ARGUMENTS", repr(settings))
    result: dict[str, Any] = {"name": f"start-up, {arguments.method}, {arguments.classes} classes"}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("empty_cache", "full_cache"):
            began = time.perf_counter()
            printed = child(code, CLIPBIAS_BENCHMARK_CACHE=cache)
            imported, _ = map(float, printed.split("seconds")[-1].split())
            result |= {f"{name}_seconds": time.perf_counter() - began, f"{name}_import_seconds": imported}
    return result


def pipeline(arguments: argparse.Namespace) -> dict[str, Any]:
    """Images per second of the input pipeline: what `tools.benchmark_pipeline` prints."""
    command = [sys.executable, "-m", "tools.benchmark_pipeline", f"--rounds={arguments.repeats}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClipbiasError(f"the pipeline benchmark failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return {"name": "input pipeline", **json.loads(done.stdout.splitlines()[-1])}


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """How often each kind of collective stands in a compiled program, and the bytes of its results on one device."""
    counts, sizes = Counter(), Counter()
    for shapes, kind in _COLLECTIVE.findall(hlo):
        counts[kind] += 1
        for dtype, dimensions in _SHAPE.findall(shapes):
            sizes[kind] += _BYTES[dtype] * int(np.prod([int(n) for n in dimensions.split(",") if n], dtype=np.int64))
    return {kind: {"count": counts[kind], "bytes": sizes[kind]} for kind in counts}


_SCALING = """
import json, time
import jax
jax.config.update("jax_num_cpu_devices", DEVICES)
from tools.benchmarks import scaling
print(json.dumps(scaling.sharded_step(DEVICES, **ARGUMENTS)))
"""


def scaling(arguments: argparse.Namespace) -> dict[str, Any]:
    """One training step on simulated devices that share this machine: its collectives, its loss, its seconds.

    Simulated devices share the cores, so seconds tell what sharding costs, not what it gains.
    """
    names = ("geometry", "layers", "method", "option", "classes", "batch", "dtype", "repeats")
    settings = {name: getattr(arguments, name) for name in names}
    points = []
    for devices in arguments.devices:
        code = _SCALING.replace("DEVICES", str(devices)).replace("ARGUMENTS", repr(settings))
        points.append(json.loads(child(code, JAX_PLATFORMS="cpu").splitlines()[-1]))
    return {"name": f"scaling, {arguments.method}, {arguments.classes} classes", "points": points}
