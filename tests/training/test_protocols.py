"""Every protocol through a sweep, on drawn data."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.tuning import Task
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.transfer import transfer
from tests.training.sweeps import TinySweep

PROBE = "tests.own_methods:Probe"
CACHE = "tests.own_methods:Cache"


def test_base_to_new(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    """A method makes something of other classes; what one that refuses them says is in its row."""
    tiny = TinySweep(clip, colours, recipe, tmp_path, protocol="base_to_new")
    probe, cache = tiny.rows(PROBE, CACHE, seeds=(1,))
    assert probe["status"] == "ok" and set(probe["accuracies"]) == {"base", "new"}
    assert probe["accuracies"]["new"] == 100.0  # one new class is left to choose from
    assert cache["status"] == "failed"
    assert cache["error"].startswith("the cache holds images of the classes of training")


@pytest.mark.long
def test_heads_on_classes_that_training_did_not_see(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    options = {"gda": {"covariance": "classes", "keep_rows": True}}
    tiny = TinySweep(clip, colours, recipe, tmp_path, protocol="base_to_new", options=options)
    rows = tiny.rows("zero_shot", "tip_adapter", "gda", "linear_probe")
    errors = {row["method"]: row.get("error") for row in rows}
    sentence = (
        "LinearProbe learned something for each class and cannot be used with other classes such as 'blue'; tune it on"
    )
    assert errors.pop("linear_probe").startswith(sentence) and set(errors.values()) == {None}
    new = {row["method"]: row["accuracies"]["new"] for row in rows if row["status"] == "ok"}
    assert new["tip_adapter"] == new["zero_shot"]


@pytest.mark.parametrize(
    ("protocol", "method", "target"),
    [("domain_generalization", "taskres", "part"), ("cross_dataset", "bias", "other")],
)
def test_targets(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, protocol: str, method: str, target: str
) -> None:
    names = ("dark red", "dark green", "dark blue")
    others = {
        "other": dataclasses.replace(colours, name="other", class_names=names),
        "part": dataclasses.replace(colours.with_classes([2, 0]), name="part"),
    }
    datasets = {"colours": colours, target: others[target]}
    tiny = TinySweep(clip, datasets, recipe, tmp_path, protocol=protocol, targets=(target,))
    assert [set(row["accuracies"]) for row in tiny.rows(method)] == [{"colours", target}] * 2


def test_transfer_takes_the_rows_of_the_classes(clip: Clip) -> None:
    source, target = Task(clip, "taskres", ("a", "b", "c")), Task(clip, "taskres", ("c", "a"))
    learnables = {"text_residual": np.arange(3.0)[:, None] + np.zeros(clip.config.projection_width)}
    moved = transfer(source, target, learnables, (2, 0))
    np.testing.assert_array_equal(moved["text_residual"][:, 0], [2, 0])


def test_transfer_leaves_a_bias_alone_even_where_layers_and_classes_are_equally_many(clip: Clip) -> None:
    layers = clip.config.vision.layers
    source, target = (Task(clip, "bias", [f"{name}{i}" for i in range(layers)]) for name in "ab")
    learnables = source.init()
    assert transfer(source, target, learnables) is not None
    assert transfer(source, target, learnables)["vision_bias"] is learnables["vision_bias"]
