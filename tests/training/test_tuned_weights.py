"""A sweep of the methods that tune CLIP's own weights: their adapters give what the sweep measured."""

import dataclasses
from pathlib import Path

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.training import mesh as meshes
from clipbias.training.evaluate import evaluate
from clipbias.tuning import Recipe
from tests.training.sweeps import TinySweep

OPTIONS = {
    "clip_lora": {"recipe": "common", "first_block": 2, "rank": 3},
    "prolip": {"recipe": "common", "passes": 2, "strength": 0.0},
    "layer_norm": {"towers": ("vision",)},
}


def test_every_method_is_tuned_saved_and_loaded(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    tiny = TinySweep(clip, colours, dataclasses.replace(recipe, epochs=6), tmp_path, options=OPTIONS)
    specs = tiny.specs(*OPTIONS, seeds=(1,))
    rows = tiny.run(specs)
    vision, text = clip.config.vision, clip.config.text
    assert {row["method"]: row.get("parameters") for row in rows} == {
        "clip_lora": sum(2 * 3 * 2 * 3 * tower.width for tower in (vision, text)),
        "prolip": vision.width * clip.config.projection_width,
        "layer_norm": 4 * vision.layers * vision.width,
    }
    for spec, row in zip(specs, rows, strict=True):
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
        assert row["steps"] == 6
        assert row["accuracy"] > 50, row["method"]  # three colours that are easily told apart
