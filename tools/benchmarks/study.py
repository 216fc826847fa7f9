"""A whole study of few images: seconds, seconds of all processors, and what compiling takes."""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipbias import data
from clipbias.clip import Clip, load
from clipbias.constants import ZERO_SHOT
from clipbias.explain.model import Model
from clipbias.explain.results import SECTIONS
from clipbias.explain.run import run_study
from clipbias.explain.study import Study
from clipbias.settings import from_config
from clipbias.tuning import Task
from configs import explain
from tools.benchmarks import model, ways

DATASET = "demo/fashion"
METHODS = ("ivlp", "bias")
# Settings that say how many images a section takes.
IMAGES = ("training_images", "control_images", "explore_images")
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Spent:
    """Seconds, seconds of all processors, and what compiling took, within a `with` block."""

    def __enter__(self) -> "Spent":
        self._compiled, self._programs = 0.0, 0
        self._since = time.perf_counter(), time.process_time()
        jax.monitoring.register_event_duration_secs_listener(self._count)
        return self

    def _count(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            self._compiled, self._programs = self._compiled + duration_secs, self._programs + 1

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._count)
        self.spent = {
            "seconds": round(time.perf_counter() - self._since[0], 3),
            "cpu_seconds": round(time.process_time() - self._since[1], 3),
            "compile_seconds": round(self._compiled, 3),
            "programs": self._programs,
        }


def _clip(arguments: argparse.Namespace) -> Clip:
    """Random weights, and the demo's words, which the tokens of a report are told in."""
    demo, config = load("demo"), model.geometry(arguments.geometry, layers=arguments.layers)
    known = {name: getattr(demo.config.text, name) for name in ("vocabulary_size", "eos_token_id")}
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, **known))
    return dataclasses.replace(model.random_clip(config), tokenizer=demo.tokenizer)


def study(arguments: argparse.Namespace) -> dict[str, Any]:
    """Zero-shot beside IVLP and bias tuning with random numbers, on images of an embedded dataset.

    All images go through every section, half of them through the perturbation test too; with `--quick` the sections and
    images are those of `configs/explain.py:quick`.
    """
    config = explain.get_config("quick" if arguments.quick else "full")
    if not arguments.quick:
        config.update(dict.fromkeys(("image_limit", *IMAGES), arguments.images))
    clip, count, dataset = _clip(arguments), config.image_limit, data.load(DATASET)
    models = [Model(ZERO_SHOT, ZERO_SHOT, ZERO_SHOT, Task(clip, ZERO_SHOT, dataset.class_names), {})]
    for method in METHODS:
        task, rng = Task(clip, method, dataset.class_names, dtype=arguments.dtype), np.random.default_rng(1)
        learned = jax.tree.map(
            lambda leaf, rng=rng: np.asarray(leaf) + 0.02 * rng.standard_normal(leaf.shape, np.float32), task.init(0)
        )
        models.append(Model(method, method, method, task, learned))
    options = dataclasses.replace(
        from_config(explain.ExplainSettings, config).study, faithfulness_images=-(-count // 2)
    )
    split, training = dataset.split("test"), dataset.split("train")
    with tempfile.TemporaryDirectory() as folder, Spent() as measured:
        asked = Study(models, split, options, Path(folder), training=training)
        sections = SECTIONS if config.sections == "all" else config.sections.split(",")
        found = run_study(asked, Path(folder), dataset=DATASET, sections=sections)
    return {
        "name": f"study of {count} images",
        "images": count,
        "predicted": {model.key: [model.correct, model.images] for model in found.models},
        **measured.spent,
        "peak_bytes": ways.device_memory()[1],
        "device": jax.devices()[0].device_kind,
    }
