"""Relevancy in several ways and batch sizes: time in turn, memory in a process of each way's own, and equal maps."""

import argparse
import contextlib
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from clipbias.errors import ClipbiasError
from tools.benchmarks import measure, model, relevancy_ways
from tools.benchmarks.report import markdown
from tools.benchmarks.worker import Here, Process

WAYS = ("streaming", "recompute=1", "recompute=3", "plain", "forward")
TORCH_WAYS = ("torch", "torch-per-pair", "torch-forward")
# Of a map, relative to the largest number in its row: more than rounding in float32 explains.
TOLERANCE = 1e-3


def relevancy(arguments: argparse.Namespace) -> dict[str, Any]:
    """Relevancy maps of one class per image, a row per batch size and way; with several depths, planned memory alone.

    Raises:
      ClipbiasError: a way does not exist, fails, or has other maps than the first.
    """
    torch = importlib.util.find_spec("torch") is not None
    ways = tuple(arguments.ways or (*WAYS, *(TORCH_WAYS if torch else ())))
    for way in ways:
        if way not in TORCH_WAYS:
            relevancy_ways.options_of(way)
        elif not torch:
            raise ClipbiasError(f"{way} needs PyTorch, which is not installed; leave it out with --ways.")
    if len(arguments.layers) > 1:
        return by_depth(arguments, [way for way in ways if way not in TORCH_WAYS])
    points = []
    with tempfile.TemporaryDirectory() as folder:
        config = model.geometry(arguments.geometry, layers=arguments.layers[0])
        relevancy_ways.write_weights(Path(folder), config)
        for batch in arguments.batches:
            points += measured(arguments, ways, batch, Path(folder))
    print(table(points))
    name = f"relevancy, {arguments.method}, batch {', '.join(map(str, arguments.batches))}"
    return {"name": name, "method": arguments.method, "device": jax.devices()[0].device_kind, "points": points}


def job_of(arguments: argparse.Namespace, batch: int, layers: int) -> dict[str, Any]:
    """What every way of a batch size has in common."""
    names = ("geometry", "method", "option", "dtype")
    return {name: getattr(arguments, name) for name in names} | {"batch": batch, "layers": layers}


def measured(arguments: argparse.Namespace, ways: Sequence[str], batch: int, folder: Path) -> list[dict[str, Any]]:
    """A row per way: medians over rounds in which every way, and a large matrix product, has its turn."""
    job = job_of(arguments, batch, arguments.layers[0]) | {"folder": str(folder)}
    config = model.geometry(job["geometry"], layers=job["layers"])
    task = relevancy_ways.bind(config, relevancy_ways.read_weights(folder, config), job)
    learnables = task.init(0)
    relevancy_ways.write_inputs(job, task, learnables)
    forward, explained = relevancy_ways.needed(task, learnables)
    del task, learnables  # this process needs the weights no more
    product, count = measure.square_product(job["dtype"], measure.SIDE)
    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in (*ways, "matmul")}
    with contextlib.ExitStack() as stack:
        running: dict[str, Here | Process] = {}
        for way in ways:
            module = "tests.reference.relevancy_torch" if way in TORCH_WAYS else "tools.benchmarks.relevancy_ways"
            own = job | {"way": way, "module": module}
            running[way] = Here(own) if arguments.together else Process(own)
            stack.enter_context(running[way])
        differences = compare(folder, [way for way in ways if "forward" not in way], batch, job["dtype"])
        jax.block_until_ready(product())
        for _ in range(arguments.repeats):
            for way in ways:
                turns[way].append(running[way].turn())
            began = time.perf_counter()
            jax.block_until_ready(product())
            turns["matmul"].append({"seconds": time.perf_counter() - began})
        facts = {way: running[way].facts for way in ways}
    seconds = {way: statistics.median(turn["seconds"] for turn in found) for way, found in turns.items()}
    machine = count / seconds["matmul"]
    rows = []
    for way in ways:
        flop, peak = forward if "forward" in way else explained, max(turn["peak_bytes"] for turn in turns[way])
        rows.append(
            {
                "batch": batch,
                "way": way,
                "seconds": seconds[way],
                "seconds_per_pair": seconds[way] / batch,
                "pairs_per_second": batch / seconds[way],
                "peak_bytes": peak,
                "before_bytes": facts[way]["before_bytes"],
                "needed_bytes": peak - facts[way]["before_bytes"],
                "program_bytes": facts[way]["program_bytes"],
                "flop": flop,
                "matmul_flop_per_second": machine,
                "share_of_matmul": flop / seconds[way] / machine,
                "largest_difference": differences.get(way),
            }
        )
    return rows


def compare(folder: Path, ways: Sequence[str], batch: int, dtype: str) -> dict[str, float]:
    """The largest difference of each way's maps from the first way's, relative to the largest number in each row.

    Raises:
      ClipbiasError: in float32 it is more than `TOLERANCE`.
    """
    found = {way: load_file(folder / f"maps-{way}-{batch}.safetensors") for way in ways}
    differences = {}
    for way in ways[1:]:
        differences[way] = max(row_difference(found[way][part], found[ways[0]][part]) for part in ("vision", "text"))
        if dtype == "float32" and not differences[way] <= TOLERANCE:
            raise ClipbiasError(
                f"{way} has other maps than {ways[0]} at batch {batch}: they differ by {differences[way]:.1e} of a "
                f"row's largest number, where rounding explains {TOLERANCE:.0e}; one of the two computes wrongly."
            )
    return differences


def row_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest `|found - expected|` of `[..., N]` relative to the largest expected number of its row."""
    if found.shape != expected.shape:
        return np.inf
    return float((np.abs(found - expected).max(-1) / np.abs(expected).max(-1)).max())


def by_depth(arguments: argparse.Namespace, ways: Sequence[str]) -> dict[str, Any]:
    """What each way's program needs besides weights and inputs, for towers of several depths."""
    points = []
    for layers in arguments.layers:
        config = model.geometry(arguments.geometry, layers=layers)
        for batch in arguments.batches:
            sizes = relevancy_ways.planned_bytes(config, ways, job_of(arguments, batch, layers))
            points += [
                {"batch": batch, "layers": layers, "way": way, "program_bytes": size} for way, size in sizes.items()
            ]
    for batch in arguments.batches:
        lines = [(way, *(f"{_megabytes(p)}" for p in points if (p["way"], p["batch"]) == (way, batch))) for way in ways]
        print(markdown((f"batch {batch}, MB", *(f"{layers} layers" for layers in arguments.layers)), lines))
    return {"name": f"relevancy by depth, {arguments.method}", "method": arguments.method, "points": points}


def _megabytes(point: Mapping[str, Any]) -> str:
    return f"{point['program_bytes'] / 1e6:,.0f}"


def table(points: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    heads = (
        *("batch", "way", "seconds per pair", "pairs per second", "share of matmul", "peak (GB)"),
        *("before (GB)", "needed (GB)", "XLA's plan (GB)", "difference"),
    )
    lines = [
        (
            str(point["batch"]),
            point["way"],
            f"{point['seconds_per_pair']:.3f}",
            f"{point['pairs_per_second']:.2f}",
            f"{100 * point['share_of_matmul']:.0f} %",
            *(f"{point[name] / 1e9:.2f}" for name in ("peak_bytes", "before_bytes", "needed_bytes")),
            "" if point["program_bytes"] is None else f"{point['program_bytes'] / 1e9:.2f}",
            "" if point["largest_difference"] is None else f"{point['largest_difference']:.0e}",
        )
        for point in points
    ]
    return markdown(heads, lines)
