"""`tools.benchmark_pipeline` prints one JSON line with every way it measured."""

import json

from absl.testing import flagsaver

from tools import benchmark_pipeline


def test_prints_one_json_line(capsys):
    sizes = dict(
        images=12, jpeg_height=40, jpeg_width=50, image_size=16, images_per_batch=4, epochs=3, rounds=1, step_ms=1.0
    )
    with flagsaver.flagsaver(**sizes):
        benchmark_pipeline.main([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    result = json.loads(lines[0])
    assert {"plain", "recipe", "pipeline_1_thread"} < set(result["images_per_second"])
    assert all(rate > 0 for rate in result["images_per_second"].values())
    runs = result["training_run"]
    assert (runs["without_cache"]["cached_images"], runs["with_cache"]["cached_images"]) == (0, 12)
    assert 0 <= runs["with_cache"]["waiting_share"] <= 1
