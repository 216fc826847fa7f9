"""A grid of the methods that tune CLIP's own weights: their adapters give what the grid measured."""

import dataclasses
from pathlib import Path

from clipbias.training.grid import Grid
from clipbias.training.packs import make_packs
from clipbias.training.settings import GridSettings

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.training import mesh as meshes
from clipbias.training.evaluate import evaluate
from clipbias.tuning import Recipe
from clipbias.tuning.adapter import load_adapter

OPTIONS = {
    "clip_lora": {"recipe": "common", "first_block": 2, "rank": 3},
    "prolip": {"recipe": "common", "passes": 2, "strength": 0.0},
    "layer_norm": {"towers": ("vision",)},
}


def test_every_method_is_tuned_saved_and_loaded(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    settings = GridSettings(
        method_options=OPTIONS,
        dtype="float32",
        eval_batch_size=8,
        checkpoint_seconds=60.0,
        on_image_error="raise",
        protocol="few_shot",
    )
    mesh = meshes.single_device()
    packs = make_packs(list(OPTIONS), ["colours"], [2], [1])
    recipe = dataclasses.replace(recipe, epochs=6)
    grid = Grid(clip, recipe, settings, lambda name: colours, tmp_path, mesh=mesh)
    rows = grid.run(packs)
    vision, text = clip.config.vision, clip.config.text
    assert {row["method"]: row.get("parameters") for row in rows} == {
        "clip_lora": sum(2 * 3 * 2 * 3 * tower.width for tower in (vision, text)),
        "prolip": vision.width * clip.config.projection_width,
        "layer_norm": 4 * vision.layers * vision.width,
    }
    for pack, row in zip(packs, rows, strict=True):
        adapter = load_adapter(grid.trainer.adapter_path(pack, None, row["seed"]))
        score = evaluate(
            adapter.task(clip),
            adapter.learnables,
            colours.split("test"),
            mesh=mesh,
            eval_batch_size=8,
            on_image_error="raise",
        )
        assert score["correct"] == row["correct"], row["method"]
        assert row["steps"] == 6
        assert row["accuracy"] > 50, row["method"]  # three colours that are easily told apart
