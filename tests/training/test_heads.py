"""Sweeps of the methods that learn from features of a frozen CLIP: their adapters, their steps, other classes."""

from pathlib import Path

import numpy as np
import pytest

from clipbias.clip import Clip, encode_image
from clipbias.data import Dataset
from clipbias.training import mesh as meshes
from clipbias.training.evaluate import evaluate
from clipbias.training.programs import training_program
from clipbias.tuning import Recipe, Task, make_method
from tests.training.sweeps import TinySweep
from tools.benchmarks import measure

STEPS = ("clip_adapter", "tip_adapter_f", "clap")
AT_ONCE = ("linear_probe", "tip_adapter", "gda", "lp_plus_plus")
# Short ones of what takes hundreds of epochs or steps.
OPTIONS = {
    "tip_adapter_f": {"epochs": 2},
    "clap": {"recipe": "common"},
    "lp_plus_plus": {"steps": 20},
    "gda": {"covariance": "classes", "keep_rows": True},
}


def test_every_head_is_tuned_saved_and_loaded(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    tiny = TinySweep(clip, colours, recipe, tmp_path, options=OPTIONS)
    specs = tiny.specs(*STEPS, *AT_ONCE)
    rows = tiny.run(specs)
    assert [row.get("error") for row in rows] == [None] * 14
    width, classes, images = clip.config.projection_width, 3, 6
    parameters = {row["method"]: row["parameters"] for row in rows}
    assert parameters == {
        "clip_adapter": 2 * width * (width // 4),
        "tip_adapter_f": images * width,
        "clap": classes * width,
        "linear_probe": classes * (width + 1),
        "tip_adapter": 0,
        "gda": 0,
        "lp_plus_plus": classes * (width + 2),
    }
    for spec, row in zip(specs, rows, strict=True):
        assert ("steps" in row) == (row["learning_rate"] is not None) == (row["method"] in STEPS)
        if row["seed"] > 1:
            continue
        adapter = tiny.adapter(spec)
        score = evaluate(
            adapter.task(clip),
            adapter.learnables,
            colours.split("test"),
            mesh=meshes.single_device(),
            eval_batch_size=8,
            on_image_error="raise",
        )
        assert score["correct"] == row["correct"], row["method"]
    # Colours are easily told apart, by whatever looks at images.
    assert all(row["accuracy"] > 90 for row in rows if row["method"] in ("linear_probe", "gda", "clap", "lp_plus_plus"))


@pytest.mark.parametrize("name", STEPS)
def test_no_tower_runs_in_a_step(clip: Clip, colours: Dataset, recipe: Recipe, name: str) -> None:
    task = Task(clip, make_method(name), colours.class_names)
    step = training_program(task, recipe, rows=8, runs=1, mesh=meshes.single_device(), images=12)
    image = np.zeros((1, 16, 16, 3), np.float32)
    # All products of a step on eight images are fewer than those of a tower on one.
    found = measure.traced(step.function, *step.arguments, **step.options)
    assert 0 < found < measure.traced(encode_image_of(clip), clip.params, image)


def encode_image_of(clip: Clip):
    import jax

    return jax.jit(lambda params, images: encode_image(params, clip.config, images)[0])


@pytest.mark.long
def test_classes_that_training_did_not_see(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    tiny = TinySweep(clip, colours, recipe, tmp_path, protocol="base_to_new", options=OPTIONS)
    rows = tiny.rows("zero_shot", "tip_adapter", "gda", "linear_probe")
    told = {row["method"]: row.get("error") for row in rows}
    sentence = (
        "LinearProbe learned something for each class and cannot be used with other classes such as 'blue'; tune it on"
    )
    assert told.pop("linear_probe").startswith(sentence) and set(told.values()) == {None}
    new = {row["method"]: row["accuracies"]["new"] for row in rows if row["status"] == "ok"}
    assert new["tip_adapter"] == new["zero_shot"]
