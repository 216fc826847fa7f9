"""What `tools.benchmark scaling` prints for people, in Markdown."""

import argparse
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tools.benchmarks.cost_model import FEATURES, Fit
from tools.benchmarks.hardware import H100, V5E
from tools.benchmarks.plan import THREADS, Assumptions, Cells


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, ["---"] * len(columns), *rows))


def paragraph(text: str) -> str:
    """A paragraph of at most 120 columns."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False) + "\n\n"


def measured(points: Sequence[Mapping[str, Any]], fitted: Fit) -> str:
    """The measured steps, what the model makes of them, and what that tells."""
    rows = []
    for point, residual in zip(points, fitted.residuals, strict=True):
        kinds = point["collectives"].values()
        count, size = (sum(kind[key] for kind in kinds) for key in ("count", "bytes"))
        rows.append(
            [f"{point[key]}" for key in ("devices", "batch", "classes")]
            + [f"{point['work']['all_flop'] / 1e9:.1f}", f"{count}", f"{size / 1e3:.1f}"]
            + [f"{1e3 * point['seconds']:.1f}", f"{100 * residual:+.0f} %"]
        )
    columns = ("devices", "batch", "classes", "GFLOP of all", "all-reduces", "kB each", "ms", "model")
    costs = dict(zip(FEATURES, fitted.coefficients, strict=True))
    visible = costs["exchanged bytes"] * max(p["devices"] * p["work"]["exchanged_bytes"] for p in points)
    copied = (
        f"{1e-9 / costs['exchanged bytes']:.2g} GB/s for exchanged bytes"
        if visible > 0.01 * min(point["seconds"] for point in points)
        else "no visible cost of exchanged bytes"
    )
    return (
        table(columns, rows)
        + "\n"
        + paragraph(
            f"""Least squares: {1e3 * costs["fixed"]:.1f} ms fixed, {1e3 * costs["each further device"]:.1f} ms for each
        further device, {fitted.flop_per_second / 1e9:.0f} GFLOP/s, {copied}. Simulated devices share this machine's
        cores and memory. They show the program that each device runs: how much arithmetic is done more than once, how
        often devices exchange something and how many bytes. They cannot show a gain in speed, the speed of a link, or
        exchanges that overlap with arithmetic."""
        )
    )


def planned(steps: Sequence[Mapping[str, Any]], given: Assumptions, arguments: argparse.Namespace) -> str:
    """The plan of steps; times in milliseconds."""
    columns = ("hardware", "classes", "devices", "layout", "compute", "collectives", "input", "step (ms)")
    rows = (
        [line["hardware"], f"{line['classes']}", f"{line['devices']}", line["layout"]]
        + [f"{1e3 * line[part]:.2f}" for part in ("compute", "collectives", "input", "seconds")]
        + [f"{line['images_per_second']:,.0f}", line["limit"]]
        for line in steps
    )
    return (
        paragraph(
            f"""A plan, not a measurement: {arguments.geometry}, {arguments.method}, batches of {arguments.plan_batch},
            arithmetic at {100 * given.share:.0f} % of the peak, {1e6 * given.hop_seconds:.1f} µs for a message (both
            assumed), {1e3 * given.dispatch_seconds:.2f} ms to start a step (as measured here with next to nothing to
            compute), {THREADS} decoding threads per host at {given.cached:,.0f} images/s each from kept pixels.
            "One run" splits images and classes over all devices, "a run each" trains as many seeds at once. Exchanges
            are taken to wait for arithmetic, images to be decoded meanwhile."""
        )
        + table((*columns, "images/s", "limit"), rows)
        + "\n"
        + "".join(paragraph(f"{machine.name}: {machine.source}.") for machine in (H100, V5E))
    )


def projected(cells: Mapping[str, Cells], hours: Mapping[str, Sequence[float]], given: Assumptions, fitted: Fit) -> str:
    """What the paper's Table 1 takes, by method."""
    total, both = sum(cells.values(), Cells()), np.sum(list(hours.values()), axis=0)
    rows = (
        [name, f"{one.steps:,}"]
        + [f"{flop / 1e15:,.1f}" for flop in (one.training, one.evaluation)]
        + [f"{one.decoded:,}", f"{there:.2f}", f"{here / 24:,.1f}"]
        for name, one, (there, here) in [*((n, cells[n], hours[n]) for n in cells), ("all", total, both)]
    )
    columns = ("method", "steps", "training (PFLOP)", "evaluation (PFLOP)", "images decoded")
    return paragraph(
        f"""All of `configs/table1.py`, arithmetic only, not measured: training and evaluation of eleven
        datasets, class names as long as ImageNet's; a step trains the three seeds of a cell, and no other cell beside
        them. One H100 at {100 * given.share:.0f} % of its peak beside {THREADS} decoding threads
        ({given.decoded:,.0f} test images/s each); this machine at {fitted.flop_per_second / 1e9:.0f} GFLOP/s, as fitted
        above."""
    ) + table((*columns, "one H100 (hours)", "this machine (days)"), rows)
