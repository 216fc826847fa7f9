"""Everything that is measured of a device, one measurement after another, in one JSON file and a page that reads it.

Each measurement is a process of its own; one that fails is noted and the next one runs. What is in the file already is
not measured again, so that the same command continues.
"""

import argparse
import importlib.util
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from clipbias.data.catalog import ENTRIES
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, write_text
from clipbias.settings import from_config
from clipbias.tuning import make_method
from clipbias.tuning.registry import METHODS
from configs import table1
from tools.pages import markdown

# Class counts and batch sizes of training steps, and the methods that are timed in PyTorch too.
CLASSES, BATCHES = (100, 1000), (4, 32)
BESIDE = ("bias", "ivlp", "vpt", "coop", "clip_lora")
DTYPES = {
    "cpu": ("float32",),
    "gpu": ("float32", "tensorfloat32", "bfloat16"),
    "tpu": ("float32", "bfloat16_3x", "bfloat16"),
}
HOURS = 2  # that one measurement may take

_FACTS = """
import json, jax
from importlib.metadata import version
device = jax.devices()[0]
memory = (device.memory_stats() or {}).get("bytes_limit")
about = {"device": device.device_kind, "platform": jax.default_backend(), "devices": jax.device_count()}
print(json.dumps(about | {"memory": memory, "jax": jax.__version__, "clipbias": version("clipbias")}))
"""


def measure_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, writes `arguments.output`.json after each measurement and the page `arguments.output`.md at the end.

    Raises:
      ClipbiasError: the device cannot be used at all, or the file is of another device.
    """
    path = arguments.output.with_name(f"{arguments.output.name}.json")
    about = _facts()
    record: dict[str, Any] = {"about": about, "measured": {}, "failed": {}}
    if path.exists():
        record = read_json(path)
        if record.get("about") != about:
            raise ClipbiasError(f"{path} is of {record.get('about')}, and this is {about}; give another --output.")
    record["failed"] = {}  # they are tried again
    dtypes = arguments.dtypes or DTYPES.get(about["platform"], ("float32",))
    methods = arguments.methods or [name for name in table1.get_config().methods if METHODS[name][0].trains]
    pending = commands(methods, dtypes, arguments)
    for number, command in enumerate(pending, start=1):
        name = " ".join(command)
        if name in record["measured"]:
            continue
        print(f"{number} of {len(pending)}: {name}", flush=True)
        kind, result = _run(command)
        record[kind][name] = result
        write_text(path, json.dumps(record, indent=1) + "\n")
    text = page(record)
    write_text(path.with_suffix(".md"), text)
    print(text)
    facts = {"name": f"all of {about['device']}", "file": str(path)}
    return facts | {"measured": len(record["measured"]), "failed": len(record["failed"])}


def commands(methods: Sequence[str], dtypes: Sequence[str], arguments: argparse.Namespace) -> list[list[str]]:
    """The measurements, those that show most of a device first."""
    shared = [f"--geometry={arguments.geometry}", f"--repeats={arguments.repeats}"]
    lines = [["features", *shared, f"--batch={max(BATCHES)}", f"--dtype={dtype}"] for dtype in dtypes]
    sizes = [
        [f"--classes={classes}", f"--batch={batch}"] for classes, batch in itertools.product(CLASSES, reversed(BATCHES))
    ]
    for size, dtype, method in itertools.product(sizes, reversed(dtypes), methods):
        lines.append(["train", *shared, f"--method={method}", *size, f"--dtype={dtype}"])
    if importlib.util.find_spec("torch"):
        lines += [
            [*words, "--ways", "torch"]
            for words in lines
            if words[0] == "train" and words[3].partition("=")[2] in BESIDE
        ]
    relevancy = ["relevancy", *shared, "--method=ivlp", "--batches", str(min(BATCHES)), str(max(BATCHES))]
    return [*lines, *([*relevancy, f"--dtype={dtype}"] for dtype in dtypes)]


def _facts() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", _FACTS], capture_output=True, text=True)
    if done.returncode:
        raise ClipbiasError(f"the device cannot be used: {_last(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def _run(command: Sequence[str]) -> tuple[str, Any]:
    """What a measurement found, or in one sentence why it failed."""
    called = [sys.executable, "-m", "tools.benchmarks", *command]
    try:
        done = subprocess.run(called, capture_output=True, text=True, timeout=HOURS * 3600)
    except subprocess.TimeoutExpired:
        return "failed", f"it took more than {HOURS} hours"
    if done.returncode:
        return "failed", _last(done.stderr) or f"exit status {done.returncode}"
    return "measured", json.loads(done.stdout.splitlines()[-1])


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


STEP_HEADS = (
    *("method", "classes", "batch", "type", "ms", "share of matmul", "planned (GB)", "used (GB)"),
    *("PyTorch (ms)", "times as fast"),
)


def page(record: Mapping[str, Any]) -> str:
    """All of it as tables in Markdown."""
    about, measured = record["about"], record["measured"]
    facts = ", ".join(f"{name} {value}" for name, value in about.items() if value is not None)
    parts = [f"# {about['device']}\n\nMeasured by `python -m tools.benchmarks all`: {facts}.\n"]
    rows = step_rows(measured)
    parts.append(f"## Training steps\n\n{markdown(STEP_HEADS, map(_step_line, rows))}")
    images = [row for name, row in measured.items() if name.startswith("features ")]
    lines = [(row["dtype"], f"{row['images_per_second']:,.0f}", f"{row['share_of_matmul']:.0%}") for row in images]
    parts.append(f"## Features of images\n\n{markdown(('type', 'images per second', 'share of matmul'), lines)}")
    points = [
        (
            *(row["dtype"], str(point["batch"]), point["way"], f"{1e3 * point['seconds_per_pair']:.2f}"),
            *(f"{point['share_of_matmul']:.0%}", f"{point['needed_bytes'] / 1e9:.2f}"),
        )
        for name, row in measured.items()
        if name.startswith("relevancy ")
        for point in row["points"]
    ]
    heads = ("type", "batch", "way", "ms per pair", "share of matmul", "needed (GB)")
    parts.append(f"## Relevancy\n\n{markdown(heads, points)}")
    parts.append(f"## Table 1\n\n{_table1(rows, images)}")
    if record["failed"]:
        reasons = [(f"`{name}`", why.replace("|", "/")) for name, why in record["failed"].items()]
        parts.append(f"## What failed\n\n{markdown(('measurement', 'why'), reasons)}")
    return "\n".join(parts)


def step_rows(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Training steps, with the seconds of PyTorch's where it was measured."""
    rows = []
    for name, measurement in measured.items():
        if not name.startswith("train ") or name.endswith(" torch"):
            continue
        words = dict(word.lstrip("-").split("=", 1) for word in name.split()[1:])
        sizes = {"method": words["method"], "classes": int(words["classes"]), "batch": int(words["batch"])}
        in_torch = measured.get(f"{name} --ways torch", {"points": [{"seconds": None}]})
        rows.append(
            {
                "dtype": measurement["dtype"],
                **sizes,
                **measurement["points"][0],
                "torch_seconds": in_torch["points"][0]["seconds"],
            }
        )
    return rows


def _step_line(row: Mapping[str, Any]) -> tuple[str, ...]:
    torch = row["torch_seconds"]
    return (
        *(row["method"], str(row["classes"]), str(row["batch"]), row["dtype"], f"{1e3 * row['seconds']:.1f}"),
        *(f"{row['share_of_matmul']:.0%}", f"{row['planned_bytes'] / 1e9:.2f}", f"{row['peak_bytes'] / 1e9:.2f}"),
        *(("", "") if torch is None else (f"{1e3 * torch:.1f}", f"{torch / row['seconds']:.2f}")),
    )


def _table1(rows: Sequence[Mapping[str, Any]], features: Sequence[Mapping[str, Any]]) -> str:
    """The whole time of Table 1 on one such device, of measured steps, runs one after another."""
    lines = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        rate = next(
            (feature_row["images_per_second"] for feature_row in features if feature_row["dtype"] == dtype), None
        )
        of_type = [row for row in rows if row["dtype"] == dtype and row["batch"] == max(BATCHES)]
        for method in dict.fromkeys(row["method"] for row in of_type):
            points = {row["classes"]: row["seconds"] for row in of_type if row["method"] == method}
            if len(points) > 1 and rate:
                seconds = table1_seconds(method, points, rate)
                lines.append((method, dtype, *(f"{part / 3600:.2f}" for part in seconds)))
    note = "Hours on one device, without reading and compiling, of steps with numbers of classes between those measured"
    heads = ("method", "type", "training (h)", "evaluation (h)")
    return f"{note} in proportion.\n\n{markdown(heads, lines)}"


def table1_seconds(method: str, points: Mapping[int, float], images_per_second: float) -> tuple[float, float]:
    """Seconds of training and of evaluating all cells of a method.

    Args:
      method: its name.
      points: seconds of a step by the number of classes, of which the least and the most count.
      images_per_second: through the vision tower.
    """
    config = table1.get_config()
    recipe = from_config(table1.Table1Settings, config).recipe
    low = min(points)
    high = max(points)
    slope = (points[high] - points[low]) / (high - low)
    training = evaluation = 0.0
    for dataset in config.datasets:
        entry = ENTRIES[dataset]
        step = max(points[low] + slope * (entry.classes - low), 0.0)
        for shots in config.shots:
            method_recipe = make_method(method).recipe_for(recipe, shots)
            training += len(config.seeds) * method_recipe.total_steps(shots * entry.classes) * step
            evaluation += len(config.seeds) * entry.sizes["test"] / images_per_second
    return training, evaluation
