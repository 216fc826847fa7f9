"""`tools.benchmarks` of what a run reads: data sets, images and weights."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from clipbias.clip import convert
from clipbias.clip.tokenizer_files import CLIP_VOCABULARY
from clipbias.clip.weights import open_weights
from clipbias.data.workers import processors
from tools.benchmarks import __main__ as benchmark
from tools.benchmarks import endurance, load, model, pipeline

CONFIG = model.geometry("tiny")


def test_pipeline_measures_every_way(capsys, monkeypatch):
    for name, value in dict(HEIGHT=40, WIDTH=50, SIZE=16, EPOCHS=3).items():
        monkeypatch.setattr(pipeline, name, value)
    arguments = ["--images=12", "--batch=4", "--repeats=1", "--step-ms=1", "--runs", "1", "4"]
    assert benchmark.main(["pipeline", *arguments]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"plain", "recipe", "pipeline_1_thread"} < set(result["images_per_second"])
    assert all(rate > 0 for rate in result["images_per_second"].values())
    assert {"plain", "recipe", "pipeline_1_thread"} < set(result["images_per_second_of_a_core"])
    runs = result["training_run"]
    assert (runs["without_cache"]["cached_images"], runs["with_cache"]["cached_images"]) == (0, 12)
    assert 0 <= runs["with_cache"]["waiting_share"] <= 1
    beside = result["side_by_side"]
    assert set(beside) == {"1", "4"} and beside["1"]["shared"]["threads"] == processors() + 1  # stacks
    assert beside["4"]["shared"]["threads"] == processors() + 1 < beside["4"]["loaders"]["threads"]


def test_pipeline_measures_what_images_take_of_memory(capsys, monkeypatch):
    changed = dict(HEIGHT=40, WIDTH=50, SIZE=64, RUNS_AND_SEEDS=((8, 2),), LATENCY_MS=0.0, STEPS=3)
    for name, value in changed.items():
        monkeypatch.setattr(pipeline, name, value)
    assert benchmark.main(["pipeline", "--held", "--images=12", "--batch=4"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    runs = result["side_by_side"]["8 runs, 2 seeds"]["here"]
    assert runs["more_bytes"] > runs["bytes_of_a_step"] == 8 * 4 * 64 * 64 * 3
    first, *later = (one["read"] for one in result["cache"]["here"]["epochs"])
    assert first >= 12 and later == [0, 0] and result["pixel_bytes"] > 2 * result["file_bytes"]


def test_endurance_looks_at_the_process(capsys, monkeypatch):
    """What is kept on purpose is seen: here another file is left open at every look, and memory at every training."""
    monkeypatch.setattr(endurance, "SIDE_BY_SIDE", (2,))
    look, left = endurance.Moments.look, list[int]()

    def leave_open(moments):
        left.append(os.open(__file__, os.O_RDONLY))
        look(moments)

    monkeypatch.setattr(endurance.Moments, "look", leave_open)
    assert benchmark.main(["endurance", "--steps=20", "--groups=2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for file in left:
        os.close(file)
    steps, groups = result["steps"], result["groups"]
    assert steps["count"] >= 20 and groups["count"] == len(groups["megabytes"]) == 2
    assert len(steps["settled_files"]) == len(steps["megabytes"]) * 3 // 4 + 1
    assert steps["threads"] > 0 and min(steps["megabytes"]) > 50 and set(result["runs"]) == {"2"}


def test_what_grows_is_told():
    moments = endurance.Moments()
    moments.found = [{"bytes": 10**8 + 10**6 * step, "threads": 5, "files": 3} for step in range(16)]
    found = moments.summary()
    assert found["grows_megabytes"] == pytest.approx(11) and found["settled_threads"] == [5]


def test_what_loading_is_measured_with_is_one_model_in_every_format(tmp_path):
    found = []
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, vocabulary_size=CLIP_VOCABULARY))
    for path in load.write(tmp_path, CONFIG):
        with open_weights(path) as weights:
            assert weights.configuration == path / "config.json"
            found.append(convert.from_tensors(config, weights.tensors, weights.table, where="a test"))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert found[0]["text"]["token_embedding"].std() == pytest.approx(0.02, rel=0.1)


def test_loading_is_measured_without_the_first_process(monkeypatch):
    lines = iter([9, 2, 4, 3])

    def child(code):
        assert "clipbias.load('somewhere/model.pt'" in code
        seconds = next(lines)
        facts = {"seconds": seconds, "cpu_seconds": 1, "extra_bytes": 100 * seconds, "weights_bytes": 200}
        return f"a warning\n{json.dumps(facts)}\n"

    monkeypatch.setattr(load, "child", child)
    found = load.load(benchmark.parse(["load", "somewhere/model.pt", "--repeats=3"]))
    expected = {"seconds": 3, "cpu_seconds": 1, "peak_bytes": 400, "peak_over_weights": 2.0}
    assert found["sources"] == {"model.pt": expected}
