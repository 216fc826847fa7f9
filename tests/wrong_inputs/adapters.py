"""Damaged files of adapters, values that are not written into them, and models and classes that do not fit."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

import clipbias
from clipbias.tuning.adapter import read_adapter, save_adapter
from tests.bad_files import NO_OBJECT, cut
from tests.wrong_inputs.place import Case, Place, case

OPEN_CLIP = Path(__file__).parents[1] / "data_files" / "formats" / "open_clip"


@case
def header(place: Place, text: str | None) -> None:
    """A file with this header."""
    save_file({"a": np.zeros(1)}, place.tmp_path / "a", metadata=None if text is None else {"clipbias": text})
    read_adapter(place.tmp_path / "a")


@case
def arrays(place: Place, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    """An adapter's file with other arrays."""
    path = place.adapter()
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    save_file(change(load_file(path)), path, metadata=metadata)
    read_adapter(path).task(place.clip)


@case
def damaged(place: Place, how: str) -> None:
    path = place.adapter("ivlp")
    path.write_bytes(cut(path.read_bytes())[how])
    read_adapter(path)


@case
def unsaved(place: Place, learnables: Any = 0.0, **notes: Any) -> None:
    """An earlier file stays where these are not written; a number fills arrays of the right shape."""
    task = place.task()
    path = place.tmp_path / "a.safetensors"
    if not isinstance(learnables, dict):
        learnables = {name: np.full(leaf.shape, learnables, type(learnables)) for name, leaf in task.shapes.items()}
    path.write_text("earlier")
    try:
        save_adapter(path, task, learnables, **notes)
    finally:
        assert path.read_text() == "earlier"


@case
def calibrated(place: Place, name: str, value: float) -> None:
    """A file with scores of three calibration images, of which one kind is replaced."""
    scores = {score: np.full(3, 0.5) for score in ("nonconformity", "max_logit", "mcm", "energy")}
    scores |= {"scale": np.asarray(14.0)}
    scores[name] = np.full_like(scores[name], value)
    whole = {f"calibration/{score}": array for score, array in scores.items()}
    arrays("", lambda tensors: tensors | whole)[1](place)


SIZES: dict[str, Any] = {"nonconformity": 3, "max_logit": 2, "mcm": 2, "energy": 2, "scale": ()}
CASES: list[Case] = [
    ("no adapter file", lambda place: read_adapter(place.tmp_path / "none")),
    *(header("is not a clipbias adapter", text) for text in (None, *NO_OBJECT)),
    header("a is damaged: the adapter's method is None; it must be a text", '{"format": 1, "class_names": ["a"]}'),
    header("has format 99; this clipbias reads format 1", '{"format": 99}'),
    arrays("are not those of method 'bias'", lambda tensors: {"vision_bias": np.zeros((1, 24), np.float32)}),
    arrays(
        r"is damaged: the scores of calibration images have shapes \[\(3,\), \(2,\)",
        lambda tensors: tensors | {f"calibration/{name}": np.zeros(size) for name, size in SIZES.items()},
    ),
    *(
        calibrated(
            rf"is damaged: the {name} of calibration images .*{re.escape(f'{value:g}')}; .*; calibrate the model again",
            name,
            value,
        )
        for name, value in (
            *(("nonconformity", -0.5), ("nonconformity", 3.0), ("mcm", -0.1), ("mcm", 1.5)),
            *(("scale", 0.0), ("scale", -1.0), ("scale", 1e300), ("max_logit", np.inf), ("energy", np.nan)),
        )
    ),
    *(damaged(r"a\.safetensors is damaged or incomplete", how) for how in cut(b"")),
    unsaved("are not those of method 'bias'", {"vision_bias": np.zeros((1, 24), np.float32)}),
    unsaved("'(text|vision)_bias' holds what are not finite numbers", np.float32(np.nan)),
    unsaved("'(text|vision)_bias' holds int64 and not float32, as method 'bias' has it", np.int64(1)),
    unsaved(r"must be JSON values \(Object of type float32 .*\); convert them", notes={"mine": np.float32(3)}),
    *(
        (
            rf"{name} is no name of an adapter's file; give a path that ends with \.safetensors",
            lambda place, name=name: place.tuned().save(place.tmp_path / name),
        )
        for name in ("x.pt", "x", "x.safetensors.gz")
    ),
    unsaved("accuracy is 'good'; it must be a finite number", notes={"accuracy": "good"}),
    (
        "learned something for each class and cannot be used with other classes",
        lambda place: read_adapter(place.adapter("taskres")).bind(place.clip, ("a dog.",), free_text=True),
    ),
    (
        "was trained on .* and does not fit .*open_clip.*; load its own base model",
        lambda place: read_adapter(place.adapter()).task(clipbias.load(OPEN_CLIP)),
    ),
]
