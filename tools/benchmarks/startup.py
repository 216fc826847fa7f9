"""Start-up: from nothing to the end of a few training steps, in a process of its own."""

import argparse
import os
import subprocess
import sys
import time
from typing import Any

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
