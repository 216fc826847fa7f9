"""A method's training step in this package and as its authors compute it in PyTorch: time in turn, and memory.

Of a method that is trained on each test image, such as TPT, that is the test of an image, from its views to its logits.
"""

import argparse
import contextlib
import importlib.util
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.io import write_tensors
from clipbias.tuning import Task
from clipbias.tuning.registry import METHODS
from clipbias.tuning.test_time_method import crops_of
from tools.benchmarks import model, relevancy_ways, steps
from tools.benchmarks.report import markdown
from tools.benchmarks.worker import Here, Process

MODULES = {"clipbias": "tools.benchmarks.training_ways", "torch": "tests.reference.training_torch"}
# Of the first loss, relative, or of logits beside the largest of them: more than rounding in float32 explains.
TOLERANCE = 1e-3
# In half precision, where both ways round.
HALF_TOLERANCE = 3e-2
# Methods whose learnables both ways start from.
OWN_LEARNABLES = ("ivlp", "cocoop", "tpt", "coop", "vpt", "bias")


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Training steps of one method, a row per way.

    Raises:
      ClipbiasError: a way does not exist or fails, or the first losses of one computation differ.
    """
    ways = ways_of(arguments)
    with tempfile.TemporaryDirectory() as folder:
        config = model.geometry(arguments.geometry, layers=arguments.layers)
        relevancy_ways.write_weights(Path(folder), config)
        names = ("geometry", "method", "option", "dtype", "classes", "batch", "layers")
        job = {name: getattr(arguments, name) for name in names} | {"folder": folder}
        clip = relevancy_ways.clip_of(config, relevancy_ways.read_weights(Path(folder), config))
        write_inputs(clip, job)
        del clip  # this process needs the weights no more
        points = measured(job, ways, arguments.repeats, together=arguments.together)
    if "logits" in points[0]:
        check_logits(arguments.method, {way: point.pop("logits") for way, point in zip(ways, points, strict=True)})
    else:
        losses = {way: point["loss"] for way, point in zip(ways, points, strict=True)}
        check_losses(arguments.method, losses, HALF_TOLERANCE if arguments.dtype == "bfloat16" else TOLERANCE)
    print(table(points))
    name = f"{arguments.method}, {arguments.classes} classes, batch {arguments.batch}, beside PyTorch"
    return {"name": name, "method": arguments.method, "device": jax.devices()[0].device_kind, "points": points}


def check_losses(method: str, losses: Mapping[str, float], tolerance: float = TOLERANCE) -> None:
    """Raises `ClipbiasError` where the ways' first losses are not those of one computation."""
    # PromptSRC's depends on its teacher's texts, which the PyTorch step has of one template alone. CLIP-LoRA's does not
    # depend on its dropout: what the branches add is zero at first.
    if method != "promptsrc" and not np.ptp([*losses.values()]) <= tolerance * max(losses.values()):
        found = " and ".join(f"{loss:.6f} ({way})" for way, loss in losses.items())
        raise ClipbiasError(f"the first losses of {method} differ: {found}; one of them is computed wrongly.")


def check_logits(method: str, logits: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Raises `ClipbiasError` where the ways' logits `[B, C]` are not those of one computation."""
    found = np.array([*logits.values()])
    apart, largest = np.ptp(found, axis=0).max(), np.abs(found).max()
    if not apart <= TOLERANCE * largest:
        names = " and ".join(logits)
        raise ClipbiasError(
            f"the logits of {method} under {names} differ by up to {apart:.6f}, the largest being {largest:.6f}; one "
            "of them is computed wrongly."
        )


def ways_of(arguments: argparse.Namespace) -> Sequence[str]:
    """The ways asked for, or all that there are for the method."""
    torch = importlib.util.find_spec("torch") is not None
    there = {"clipbias": arguments.method in METHODS, "torch": torch}
    ways = tuple(arguments.ways or (way for way, exists in there.items() if exists))
    for way in ways:
        if way not in MODULES:
            raise ClipbiasError(f"there is no way {way!r}; choose from {', '.join(MODULES)}.")
        if way == "torch" and not torch:
            raise ClipbiasError("torch needs PyTorch, which is not installed; leave it out with --ways.")
    if not ways:
        raise ClipbiasError(f"this package has no method {arguments.method!r}, and PyTorch is not installed.")
    return ways


def write_inputs(clip: Clip, job: Mapping[str, Any]) -> None:
    """Images or views of images, labels, padded tokens, prompts and a teacher's text features, for PyTorch.

    The teacher's features are those of one template.
    """
    names, count = model.class_names(job["classes"]), job["batch"]
    plain = Task(clip, "zero_shot", names)
    # PromptSRC's prompts are IVLP's, of nine layers.
    own = job["method"] in OWN_LEARNABLES
    options = steps.options(job["option"]) if own else {"depth": 9}
    prompted = Task(clip, job["method"] if own else "ivlp", names, **options)
    tokens = steps.padded(prompted.tokens, clip.config.text.context_length)
    crops = crops_of(prompted.method)
    pixels = model.random_views(clip.config, count, crops) if crops else model.random_images(clip.config, count)
    teacher = np.asarray(plain.fixed_text(clip.params, plain.init(0)))
    arrays = {
        "images": clip.preprocessing.normalize(pixels),
        "labels": labels(job),
        "ids": tokens.ids,
        "eos": tokens.eos,
        "teacher": teacher / np.linalg.norm(teacher, axis=-1, keepdims=True),
        **prompted.init(0),
    }
    path = Path(job["folder"]) / relevancy_ways.INPUTS.format(batch=count)
    write_tensors(path, {name: np.array(value, order="C") for name, value in arrays.items()}, {})


def labels(job: Mapping[str, Any]) -> np.ndarray:
    """`[B]`."""
    return np.arange(job["batch"], dtype=np.int32) % job["classes"]


def measured(job: Mapping[str, Any], ways: Sequence[str], repeats: int, *, together: bool) -> list[dict[str, Any]]:
    """A row per way: medians over rounds in which every way has its turn."""
    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with contextlib.ExitStack() as stack:
        running: dict[str, Here | Process] = {}
        for way in ways:
            own = {**job, "way": way, "module": MODULES[way]}
            running[way] = Here(own) if together else Process(own)
            stack.enter_context(running[way])
        for _ in range(repeats):
            for way in ways:
                turns[way].append(running[way].turn())
        facts = {way: running[way].facts for way in ways}
    rows = []
    for way in ways:
        seconds = {name: statistics.median(turn[name] for turn in turns[way]) for name in ("seconds", "cpu_seconds")}
        peak = max(turn["peak_bytes"] for turn in turns[way])
        needed = peak - facts[way]["before_bytes"]
        rows.append({"way": way, **seconds, "peak_bytes": peak, "needed_bytes": needed, **facts[way]})
    return rows


def table(points: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    sizes = ("peak (GB)", "before (GB)", "needed (GB)", "XLA's plan (GB)")
    heads = ("way", "seconds", "CPU seconds", *sizes, "first loss")
    lines = [
        (
            point["way"],
            *(f"{point[name]:.3f}" for name in ("seconds", "cpu_seconds")),
            *(f"{point[name] / 1e9:.2f}" for name in ("peak_bytes", "before_bytes", "needed_bytes")),
            "" if point["program_bytes"] is None else f"{point['program_bytes'] / 1e9:.2f}",
            f"{point['loss']:.5f}" if "loss" in point else "",
        )
        for point in points
    ]
    return markdown(heads, lines)
