"""Start of a run: from nothing to the end of a few training steps, in a process of its own."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
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
