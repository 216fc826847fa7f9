"""What needs a process of its own: start-up, the input pipeline, and simulated devices."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import Any

from clipbias.data.pipeline import default_workers
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


_SCALING = """
import json
import jax
jax.config.update("jax_num_cpu_devices", DEVICES)
from tools.benchmarks import scaling
result = {"points": scaling.sharded_steps(DEVICES, **ARGUMENTS)}
if DEVICES == 1:
    result["dispatch_seconds"] = scaling.dispatch_seconds(ARGUMENTS["repeats"])
print(json.dumps(result))
"""

_INPUT = """
import json
from tools import benchmark_pipeline
print(json.dumps(benchmark_pipeline.images_per_thread(256, rounds=ROUNDS)))
"""


def scaling(arguments: argparse.Namespace) -> dict[str, Any]:
    """Training steps on simulated devices that share this machine, a model fitted to them, and a plan from it."""
    from clipbias.training.forecast import OTHER_SHARE
    from tools.benchmarks import cost_model, hardware, plan, scaling_text

    names = ("geometry", "layers", "method", "option", "dtype", "repeats")
    settings = {name: getattr(arguments, name) for name in names}
    batch, classes = arguments.batch, arguments.classes
    settings["sizes"] = [(batch, classes), (2 * batch, classes), (batch, 2 * classes)]
    points, dispatch = [], 0.0
    for devices in sorted({1, *arguments.devices}):
        code = _SCALING.replace("DEVICES", str(devices)).replace("ARGUMENTS", repr(settings))
        result = json.loads(child(code, JAX_PLATFORMS="cpu").splitlines()[-1])
        points += result["points"]
        dispatch = result.get("dispatch_seconds", dispatch)
    fitted = cost_model.fit([(p["devices"], cost_model.Work(**p["work"]), p["seconds"]) for p in points])
    if arguments.images_per_second:
        decoding = dict.fromkeys(("cached", "decoded"), arguments.images_per_second)
    else:
        decoding = json.loads(child(_INPUT.replace("ROUNDS", str(arguments.repeats))).splitlines()[-1])
    share = arguments.share or OTHER_SHARE
    given = plan.Assumptions(share, arguments.hop_microseconds / 1e6, dispatch, **decoding)
    clip = plan.bare_clip(arguments.geometry)
    steps = [
        line
        for machine in (hardware.H100, hardware.V5E)
        for count in arguments.plan_classes
        for line in plan.steps(clip, machine, arguments.method, count, arguments.plan_batch, given)
    ]
    cells = plan.table1_cells(clip)
    rates = ((hardware.H100.peak * given.share, plan.THREADS, True), (fitted.flop_per_second, default_workers(), False))
    hours = {
        name: [plan.hours(one, rate, given, threads, apart=apart) for rate, threads, apart in rates]
        for name, one in cells.items()
    }
    print(scaling_text.measured(points, fitted))
    print(scaling_text.planned(steps, given, arguments))
    print(scaling_text.projected(cells, hours, given, fitted))
    return {
        "name": f"scaling, {arguments.method}, {arguments.classes} classes",
        "points": points,
        "fit": dict(zip(cost_model.FEATURES, fitted.coefficients, strict=True)),
        "residuals": fitted.residuals,
        "assumptions": dataclasses.asdict(given),
        "plan": steps,
        "table1_hours": hours,
    }
