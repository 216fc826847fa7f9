"""Ways to compute the same, each in a process of its own that computes when it is its turn.

A process of its own makes its peak memory its own, and taking turns lets what else runs on the machine hit all alike.
Nothing here imports jax or torch: a process holds the libraries of its own way alone.
"""

import contextlib
import ctypes
import importlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from clipbias.errors import ClipbiasError

Job = Mapping[str, Any]
# Reads weights and inputs; returns what computes once, and a function that returns facts of its first, uncounted call.
Load = Callable[[Job], tuple[Callable[[], Any], Callable[[], dict[str, Any]]]]


def process_memory() -> tuple[int, int]:
    """Bytes of this process in memory, now and at most since `forget_peak`."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
        now, most = (int(re.findall(rf"{name}:\s+(\d+) kB", text)[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    except (OSError, IndexError):  # not Linux: only the most since the process began is known
        most = now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return now, most


def forget_peak() -> None:
    """Lets the peak begin anew, so that reading the weights does not count as computing. Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def return_memory() -> None:
    """Gives what is freed back to the system, so that waiting processes hold their weights alone. glibc only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Here:
    """A way in this process."""

    def __init__(self, job: Job) -> None:
        module = importlib.import_module(job["module"])
        memory = getattr(module, "memory", process_memory)
        self._compute, first = module.load(job)
        return_memory()
        before = memory()[0]
        forget_peak()
        self._memory = memory
        self.facts = first() | {"before_bytes": before}

    def turn(self) -> dict[str, Any]:
        """Computes once: seconds, those of all cores together, and the peak in bytes so far."""
        began, began_cpu = time.perf_counter(), time.process_time()
        self._compute()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        peak = self._memory()[1]
        return_memory()
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._compute = None


class Process:
    """A way in a process of its own, which lives as long as the `with` block."""

    def __init__(self, job: Job) -> None:
        self._name = f"{job['way']} at batch {job['batch']}"
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.benchmarks.worker", json.dumps(dict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # processes share an accelerator
        )
        assert self._process.stdin is not None and self._process.stdout is not None  # pipes, as asked for
        self._input, self._output = self._process.stdin, self._process.stdout
        try:
            self.facts = self._read()
        except BaseException:
            self.__exit__()
            raise

    def turn(self) -> dict[str, Any]:
        """Lets the process compute once: seconds, and its peak in bytes so far."""
        with contextlib.suppress(BrokenPipeError):  # the process is gone, and reading says why
            self._input.write("\n")
            self._input.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._output.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._errors.seek(0)
        reason = (self._errors.read().strip().splitlines() or [f"exit status {status}"])[-1]
        if status == -9:
            reason = "it was killed, probably because the machine has too little memory; leave it out with --ways"
        raise ClipbiasError(f"{self._name} failed: {reason}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        self._errors.close()


def main() -> None:
    """Answers every line of the standard input with one turn, after a first line of facts."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints goes with the errors
    way = Here(json.loads(sys.argv[1]))
    print(json.dumps(way.facts), file=answers)
    for _ in sys.stdin:
        print(json.dumps(way.turn()), file=answers)


if __name__ == "__main__":
    main()
