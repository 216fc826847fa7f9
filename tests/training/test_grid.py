import dataclasses
import itertools
import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.training import loop, trainer
from clipbias.training import mesh as meshes
from clipbias.training.evaluate import evaluate
from clipbias.training.forecast import forecast
from clipbias.training.grid import Grid
from clipbias.training.packs import Pack, make_packs
from clipbias.training.predictions import KnownPredictions
from clipbias.training.settings import GridSettings
from clipbias.tuning.adapter import load_adapter
from clipbias.tuning.recipe import Recipe

SETTINGS = GridSettings(
    method_options={}, dtype="float32", eval_batch_size=8, checkpoint_seconds=60.0, on_image_error="raise"
)


def make_grid(
    clip: Clip, colours: Dataset, recipe: Recipe, folder: Path, *, mesh: Mesh | None = None, protocol: str = "few_shot"
) -> Grid:
    def load(name: str) -> Dataset:
        if name != "colours":
            raise LookupError(f"no {name!r}")
        return colours

    settings = dataclasses.replace(SETTINGS, protocol=protocol)
    return Grid(clip, recipe, settings, load, folder, mesh=mesh or meshes.single_device())


def test_every_cell_once_and_a_failing_one_costs_no_other(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    packs = make_packs(["zero_shot", "taskres"], ["nowhere", "colours"], [2], [1, 2])
    rows = make_grid(clip, colours, recipe, tmp_path).run(packs)
    assert [row["status"] for row in rows] == ["failed"] * 3 + ["ok"] * 3
    assert rows[0]["error"] == "LookupError: no 'nowhere'"  # a defect: a dataset that is not there is told before
    assert rows[-1]["parameters"] == 3 * clip.config.projection_width
    # Seeds side by side have equal shares of what they ran together; nothing is trained for zero-shot.
    costs = [[row[name] for row in rows[3:]] for name in ("training_seconds", "seconds_per_image")]
    assert costs[0][0] == 0 < costs[0][1] == costs[0][2] and costs[1][1] == costs[1][2] > 0 < costs[1][0]
    again = make_grid(clip, colours, recipe, tmp_path)
    again.trainer.cache._load = lambda name: 1 / 0  # not even the images of finished cells can be looked at
    repeated = again.run(packs)
    assert repeated[3:] == rows[3:]
    assert repeated[0]["error"] == "ZeroDivisionError: division by zero"
    assert not list((tmp_path / "checkpoints").iterdir())


def test_an_adapter_of_the_grid_gives_the_grids_accuracy(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    grid = make_grid(clip, colours, recipe, tmp_path)
    packs = make_packs(["bias"], ["colours"], [2], [1, 2])
    rows = grid.run(packs)
    for row, seed in zip(rows, (1, 2), strict=True):
        adapter = load_adapter(grid.trainer.adapter_path(packs[0], None, seed))
        assert adapter.notes["accuracy"] == row["accuracy"]
        assert np.any(adapter.learnables["vision_bias"])
        with np.load(tmp_path / "predictions" / f"bias-colours-2shots-seed{seed}-test.npz") as stored:
            predicted, labels = stored["predicted"], stored["labels"]
        assert 100 * np.mean(predicted == labels) == pytest.approx(row["accuracy"])
        known = KnownPredictions([tmp_path])
        found = known.find(adapter.task(clip), adapter.learnables, "bias", colours.split("test"))
        np.testing.assert_array_equal(found, predicted)
        score = evaluate(
            adapter.task(clip),
            adapter.learnables,
            colours.split("test"),
            mesh=meshes.single_device(),
            eval_batch_size=8,
            on_image_error="raise",
            validation=colours.split("val"),  # as many of each class as shots
        )
        assert score["correct"] == row["correct"]
        assert len(score["calibration"]) == 5
        assert row["calibration"] == pytest.approx(score["calibration"], rel=1e-3)


def test_seeds_split_over_devices_give_the_cells_of_one_device(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    """Three seeds, which do not divide by two. Two are split with methods of one's own (`test_own_methods`)."""
    protocol, seeds = "base_to_new", (1, 2, 3)
    packs = make_packs(["bias"], ["colours"], [2], seeds)
    cells, numbers, learnables = [], [], []
    for name, mesh in (("one", meshes.single_device()), ("four", meshes.make_mesh(run=2, data=2))):
        grid = make_grid(clip, colours, recipe, tmp_path / name, mesh=mesh, protocol=protocol)
        rows = grid.run(packs)
        assert [row["status"] for row in rows] == ["ok"] * len(seeds)
        cells.append([row["accuracies"] for row in rows])
        # Which tells runs of equal accuracy apart.
        numbers.append([[row["loss"], *(one["ece"] for one in row["calibrations"].values())] for row in rows])
        learnables.append([load_adapter(grid.trainer.adapter_path(packs[0], None, seed)).learnables for seed in seeds])
    assert cells[0] == cells[1]
    np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), *learnables)


def test_what_a_killed_run_no_longer_needs_is_removed(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    """Killed after its result was written and before its checkpoints were removed."""
    packs = make_packs(["zero_shot"], ["colours"], [2], [1])
    grid = make_grid(clip, colours, recipe, tmp_path)
    rows = grid.run(packs)
    (grid.trainer.checkpoints(packs[0]) / "3" / "state").mkdir(parents=True)
    other = tmp_path / "checkpoints" / "another" / "3"  # of a run that is not finished, or not this one
    other.mkdir(parents=True)
    assert make_grid(clip, colours, recipe, tmp_path).run(packs) == rows
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["another"]
    assert other.exists()


def test_a_number_belongs_to_its_template_and_to_its_program(clip: Clip, recipe: Recipe, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("from clipbias.tuning.methods.bias import BiasTuning\n\n\nclass Own(BiasTuning):\n    pass\n")

    def hashes(**inputs: str) -> list[str]:
        settings = dataclasses.replace(SETTINGS, inputs=inputs)
        grid = Grid(clip, recipe, settings, lambda name: None, tmp_path, mesh=meshes.single_device())
        packs = [Pack(method, "colours", 2, (1,)) for method in ("bias", str(own))]
        return [grid.trainer.row(pack, None, 1)["config_hash"] for pack in packs]

    plain = hashes()
    assert hashes() == plain
    assert not {*hashes(template="a {}.")} & {*plain}
    own.write_text("# changed\n" + own.read_text())
    assert [a == b for a, b in zip(hashes(), plain, strict=True)] == [True, False]


@pytest.mark.parametrize(
    ("learning_rates", "hashes"),
    [((), ["e0fe57c3812e"] * 2), ((0.05, 0.01), ["e0fe57c3812e"] * 2 + ["719730bcde7e"] * 2)],
)
def test_cells_keep_the_names_that_earlier_versions_gave_them(
    clip: Clip, recipe: Recipe, tmp_path: Path, learning_rates: tuple[float, ...], hashes: list[str]
) -> None:
    grid = Grid(clip, recipe, SETTINGS, lambda name: None, tmp_path, mesh=meshes.single_device())
    packs = make_packs(["bias"], ["colours"], [2], [1, 2], learning_rates=learning_rates)
    assert [grid.trainer.row(pack, *cell)["config_hash"] for pack in packs for cell in pack.cells] == hashes


def with_images(colours: Dataset, split: str) -> Dataset:
    """The dataset with the first image of a split under another name."""
    old = colours.split(split)
    renamed = dataclasses.replace(old, keys=("new.png", *old.keys[1:]))
    return dataclasses.replace(colours, splits={**colours.splits, split: renamed})


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_result_holds_for_its_images_alone(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, split: str
) -> None:
    packs = make_packs(["zero_shot", "bias"], ["colours"], [6], [1])  # with six shots all images are drawn
    rows = make_grid(clip, colours, recipe, tmp_path).run(packs)
    changed = make_grid(clip, with_images(colours, split), recipe, tmp_path).run(packs)
    assert [a["config_hash"] == b["config_hash"] for a, b in zip(rows, changed, strict=True)] == [True, True]
    # Zero-shot trains on none.
    assert [a == b for a, b in zip(rows, changed, strict=True)] == [split == "train", False]
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(lines) == (3 if split == "train" else 4)
    # What an earlier version wrote says nothing of images, and is not done again.
    old = [json.dumps({k: v for k, v in row.items() if k != "image_hash"}) + "\n" for row in rows]
    (tmp_path / "results.jsonl").write_text("".join(old))
    again = make_grid(clip, colours, recipe, tmp_path).run(packs)
    assert [row["seconds"] for row in again] == [row["seconds"] for row in rows]


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = loop.train_step, itertools.count(1)

    def step_and_signal(*arguments, **options):
        if next(calls) == step:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", step_and_signal)


def test_learning_rates_train_side_by_side_and_fail_one_by_one(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(recipe, warmup_epochs=0)
    sizes = []

    def counted(task, params, runs, *arguments, **options):
        sizes.append(len(runs))
        return loop.train(task, params, runs, *arguments, **options)

    monkeypatch.setattr(trainer, "train", counted)

    def run(folder: str, *rates: float) -> list[dict]:
        (tmp_path / folder).mkdir()
        packs = make_packs(["bias"], ["colours"], [2], [1, 2], learning_rates=rates)
        return make_grid(clip, colours, recipe, tmp_path / folder).run(packs)

    together, alone = run("a", 0.05, 0.01), [*run("b", 0.05), *run("c", 0.01)]
    assert sizes == [4, 2, 2]
    assert [(row["learning_rate"], row["seed"]) for row in together] == [(0.05, 1), (0.05, 2), (0.01, 1), (0.01, 2)]
    for one, other in zip(together, alone, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-5, abs=1e-6)
        assert [one[name] for name in ("correct", "config_hash")] == [
            other[name] for name in ("correct", "config_hash")
        ]
    sizes.clear()
    broken = run("d", 1e38, 0.01)
    assert sizes == [4, 2, 2]
    assert [row["status"] for row in broken] == ["failed", "failed", "ok", "ok"]
    assert [row["learning_rate"] for row in broken] == [1e38, 1e38, 0.01, 0.01]
    assert [row["loss"] for row in broken[2:]] == [row["loss"] for row in alone[2:]]
    assert len(list((tmp_path / "a" / "adapters").iterdir())) == 4 and not list(
        (tmp_path / "d" / "checkpoints").glob("*/*/state")
    )


def test_options_of_one_dataset_are_its_own_even_where_classes_are_the_same(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    options = {"taskres": {"alpha": 0.5}, "taskres@again": {"alpha": 1.0}}
    settings = dataclasses.replace(SETTINGS, method_options=options)
    grid = Grid(clip, recipe, settings, lambda name: colours, tmp_path, mesh=meshes.single_device())
    packs = make_packs(["taskres"], ["colours", "again"], [2], [1])
    assert [grid.trainer.cache.task(pack, colours).method.alpha for pack in packs] == [0.5, 1.0]


def test_a_forecast_runs_and_writes_nothing(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    grid = make_grid(clip, colours, recipe, tmp_path)
    zero_shot, bias = make_packs(["zero_shot", "bias"], ["colours"], [4], [1, 2])
    text, seconds = forecast(grid.trainer, bias, 1e9)
    # 12 training images in batches of 8, the rest left out: one step in each of three epochs.
    for part in (
        "2 runs side by side, 12 training images, 3 steps",
        "3 classes",
        "15 test images",
        "vision_bias [",
        "memory: about",
    ):
        assert part in text
    assert seconds == pytest.approx(2 * forecast(grid.trainer, bias, 2e9)[1]) and seconds > 0
    text, less = forecast(grid.trainer, zero_shot, 1e9)
    assert "nothing to train" in text and less < seconds
    assert not list(tmp_path.iterdir())


def test_a_methods_own_file_is_run_once(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    """However many cells and datasets ask for the method: what a file does when it is run is not done again."""
    runs, own = tmp_path / "runs", tmp_path / "own.py"
    own.write_text(
        f"with open({str(runs)!r}, 'a') as file:\n    file.write('.')\n"
        "from clipbias import Adaptation\n"
        "def init(rng, clip, class_names):\n    return {}\n"
        "def adapt(learnables):\n    return Adaptation()\n"
    )
    grid = make_grid(clip, colours, recipe, tmp_path)
    packs = [Pack(str(own), dataset, 2, (1, 2)) for dataset in ("colours", "others")]
    made = {id(grid.trainer.cache.method(pack)) for pack in packs}
    for pack in packs:
        for cell in pack.cells:
            grid.trainer.row(pack, *cell)
    assert len(made) == 1 and runs.read_text() == "."
