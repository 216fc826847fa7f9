"""Ways to compute the same thing, each in a process of its own, timed in turn.

A process's peak memory is then its own, and other work on the machine slows all ways alike. A way is a module with
`load(job)`. It returns a function that computes once, and a function that makes the first, uncounted call and returns
facts about it. The fact `answer`, a list of arrays `[..., N]`, must be the same for all ways.
"""

import contextlib
import ctypes
import importlib
import multiprocessing
import re
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipbias.errors import ClipbiasError
from tools.benchmarks import measure
from tools.pages import markdown

Job = Mapping[str, Any]
Loaded = tuple[Callable[[], Any], Callable[[], dict[str, Any]]]
TOLERANCE = 1e-3  # of answers in float32, relative to the largest number of a row
HALF_TOLERANCE = 3e-2  # of answers in half precision, where every way rounds


def process_memory() -> tuple[int, int]:
    """Bytes of this process in memory: now, and at most since `forget_peak`."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
        now, most = (int(re.findall(rf"{name}:\s+(\d+) kB", text)[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    except (OSError, IndexError):  # not Linux: only the peak since the process began is known
        most = now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return now, most


def device_memory() -> tuple[int, int]:
    """Bytes in use, now and at most: of JAX's accelerator if it reports them, else of this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["bytes_in_use"]), int(stats["peak_bytes_in_use"])
    return process_memory()


def forget_peak() -> None:
    """Starts a new peak and returns freed memory, so that reading the weights does not count. Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _serve(pipe: Connection, job: Job) -> None:
    """Sends the facts of the first call, then computes once for every request until the pipe closes."""
    try:
        module = importlib.import_module(job["module"])
        memory = getattr(module, "memory", process_memory)
        compute, first = module.load(job)
        forget_peak()
        before = memory()[0]
        pipe.send(first() | {"before_bytes": before})
        while pipe.recv():
            began = time.perf_counter()
            began_cpu = time.process_time()
            compute()
            seconds = time.perf_counter() - began
            cpu_seconds = time.process_time() - began_cpu
            pipe.send({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": memory()[1]})
    except EOFError:
        pass
    except Exception as error:
        pipe.send(str(error) if isinstance(error, ClipbiasError) else f"{type(error).__name__}: {error}")


class _Way:
    """A way that waits for its turns; with `together` in a thread of this process."""

    def __init__(self, job: Job, *, together: bool) -> None:
        self._name = job["way"]
        self._pipe, other = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        make: Callable[..., Any] = threading.Thread if together else spawn.Process
        self._worker = make(target=_serve, args=(other, job), daemon=True)
        self._worker.start()
        if not together:
            other.close()  # reading then ends with the process
        self.facts: dict[str, Any] = self._read()

    def turn(self) -> dict[str, Any]:
        self._pipe.send(True)
        return self._read()

    def close(self) -> None:
        self._pipe.close()
        self._worker.join(20)

    def _read(self) -> dict[str, Any]:
        try:
            message = self._pipe.recv()
        except EOFError:
            message = "its process was killed, probably for lack of memory; leave it out with --ways"
        if isinstance(message, str):
            self.close()
            raise ClipbiasError(f"{self._name} failed: {message}")
        return message


def measured(jobs: Sequence[Job], repeats: int, *, together: bool, check: bool = True) -> list[dict[str, Any]]:
    """A row for each job: medians over rounds in which every way and a large matrix product have their turn.

    Args:
      jobs: with the same `dtype`, and a `way` and a `module` for each.
      repeats: rounds.
      together: all ways share this process, its memory and its compiled programs.
      check: whether all ways must give the same answer.

    Raises:
      ClipbiasError: a way fails, or its answer differs from that of the first way.
    """
    dtype = jobs[0]["dtype"]
    multiply, count = measure.square_product(dtype, measure.SIDE)
    turns: list[list[dict[str, Any]]] = [[] for _ in jobs]
    products = []
    with contextlib.ExitStack() as stack:
        ways = []
        for job in jobs:
            ways.append(_Way(job, together=together))
            stack.callback(ways[-1].close)
        answers = [way.facts.pop("answer") for way in ways]
        jax.block_until_ready(multiply())
        for _ in range(repeats):
            for way, way_turns in zip(ways, turns, strict=True):
                way_turns.append(way.turn())
            began = time.perf_counter()
            jax.block_until_ready(multiply())
            products.append(time.perf_counter() - began)
    machine = count / statistics.median(products)
    rows = []
    for job, way, way_turns, answer in zip(jobs, ways, turns, answers, strict=True):
        row: dict[str, Any] = {"way": job["way"]}
        row |= {name: statistics.median(turn[name] for turn in way_turns) for name in ("seconds", "cpu_seconds")}
        row["peak_bytes"] = max(turn["peak_bytes"] for turn in way_turns)
        row |= way.facts | {"needed_bytes": row["peak_bytes"] - way.facts["before_bytes"]}
        if "flop" in row:
            row["share_of_matmul"] = row["flop"] / row["seconds"] / machine
        row["difference"] = difference(answer, answers[0])
        if check and not row["difference"] <= (HALF_TOLERANCE if dtype == "bfloat16" else TOLERANCE):
            raise ClipbiasError(
                f"{job['way']} and {jobs[0]['way']} differ by {row['difference']:.1e} of a row's largest number, more "
                "than rounding explains; one of them computes wrongly."
            )
        rows.append(row)
    return rows


def difference(actual: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest `|found - expected|` of arrays `[..., N]`, relative to the largest expected number of its row."""
    pairs = [(np.asarray(array), np.asarray(other)) for array, other in zip(actual, expected, strict=True)]
    if any(array.shape != other.shape for array, other in pairs):
        return np.inf
    return float(np.max([(np.abs(array - other).max(-1) / np.abs(other).max(-1)).max() for array, other in pairs]))


HEADS = (
    "way",
    "seconds",
    "CPU seconds",
    "share of matmul",
    "peak (GB)",
    "needed (GB)",
    "XLA's plan (GB)",
    "difference",
)


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""

    def size(row: Mapping[str, Any], name: str) -> str:
        return f"{row[name] / 1e9:.2f}" if name in row else ""

    lines = [
        (
            *(row["way"], f"{row['seconds']:.3f}", f"{row['cpu_seconds']:.3f}"),
            f"{row['share_of_matmul']:.0%}" if "flop" in row else "",
            *(size(row, name) for name in ("peak_bytes", "needed_bytes", "program_bytes")),
            f"{row['difference']:.0e}",
        )
        for row in rows
    ]
    return markdown(HEADS, lines)
