"""`tools.benchmark`: what the commands measure and print, on a tiny model."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import encode_image
from tools import benchmark

SMALL = ["--geometry=tiny", "--repeats=1", "--classes=6", "--batch=2"]


def rows_of(capsys: pytest.CaptureFixture, *arguments: str) -> list[dict[str, Any]]:
    """The rows of the last line, which stand in a table before it."""
    assert benchmark.main([*arguments, *SMALL]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["rows"]
    assert len([line for line in shown if line.startswith("| ")]) == 2 + len(rows)
    return rows


def test_class_names_are_distinct_and_as_long_as_imagenets():
    names = benchmark.class_names(1000)
    assert len(set(names)) == 1000
    tokenizer = benchmark.random_clip(benchmark.geometry("tiny")).tokenizer
    lengths = np.bincount([len(ids) for ids in tokenizer(names)["input_ids"]])
    assert {n: int(count) for n, count in enumerate(lengths) if count} == benchmark.NAME_LENGTHS


@pytest.mark.ci
def test_steps_features_and_relevancy_are_measured(capsys):
    steps = rows_of(capsys, "train", "--methods", "promptsrc", "clip_adapter")
    assert [row["method"] for row in steps] == ["promptsrc", "clip_adapter"] and all(row["loss"] > 0 for row in steps)
    (features,) = rows_of(capsys, "features", "--dtype=bfloat16")
    assert features["images_per_second"] == 2 / features["seconds"]
    (maps,) = rows_of(capsys, "relevancy", "--chunk=1")
    assert maps["seconds_per_pair"] == maps["seconds"] / 2 and maps["chunk"] == 1
    for row in (*steps, features, maps):
        assert row["flop"] > 0 and row["share_of_matmul"] > 0 and row["peak_bytes"] > 0
        assert row["planned_bytes"] > row["program_bytes"] > 0


def test_the_pipeline_is_measured(capsys, monkeypatch):
    for name, value in dict(HEIGHT=40, WIDTH=50, SIZE=16).items():
        monkeypatch.setattr(benchmark, name, value)
    rows = rows_of(capsys, "pipeline", "--images=5")
    assert len(rows) == 3 and all(row["images_per_second"] > 0 and row["of_a_core"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("dtype", "held", "formed"),
    [("float32", "f32", "HIGHEST"), ("tensorfloat32", "f32", "HIGH"), ("bfloat16", "bf16", "HIGH")],
)
def test_a_rate_is_that_of_products_of_its_type(dtype, held, formed):
    multiply, count = benchmark.square_product(dtype, 8)
    (product,) = [line for line in jax.jit(multiply).lower().as_text().splitlines() if "dot_general" in line]
    assert f"(tensor<8x8x{held}>, tensor<8x8x{held}>)" in product and f"precision = [{formed}, {formed}]" in product
    assert count == 8 * 8 * (8 + 8)


def test_traced_products_are_those_counted_by_hand():
    """17 tokens of width 64 through a whole block and one that is read at one row; 16 patches of 192 numbers."""
    clip = benchmark.random_clip(benchmark.geometry("tiny"))
    block = 2 * 17 * (4 * 64 * 64 + 2 * 64 * 256) + 4 * 17 * 17 * 64
    last = 2 * 17 * 2 * 64 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 256) + 4 * 17 * 64
    encode = jax.jit(lambda params, image: encode_image(params, clip.config, image)[0])
    found = benchmark.traced(encode, clip.params, jnp.zeros((1, 32, 32, 3)))
    assert found == 2 * 16 * 192 * 64 + block + last + 2 * 64 * 32
