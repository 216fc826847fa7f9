"""Learning rates chosen on validation images: which, by what, and that no test image is looked at before."""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from clipbias.clip import Clip
from clipbias.data import Dataset, Split
from clipbias.errors import ClipbiasError
from clipbias.hosts import Stopped
from clipbias.io import read_json, read_json_lines
from clipbias.training import mesh as meshes
from clipbias.training.account import pack_programs
from clipbias.training.choosing import ChoosingGrid
from clipbias.training.dealing import Part, planned_cost
from clipbias.training.forecast import forecast
from clipbias.training.grid import Grid
from clipbias.training.packs import Pack, make_packs
from clipbias.training.rates import Choice, Rates, Tried, choose
from clipbias.training.settings import GridSettings
from clipbias.training.trainer import VOLATILE
from clipbias.training.trials import TrialTrainer
from clipbias.tuning.adapter import load_adapter
from clipbias.tuning.recipe import Recipe
from experiments import table1
from tests.end_to_end import binaries
from tests.training.test_grid import SETTINGS, stop_at

RATES = (0.4, 0.05)
UNSEEN = dataclasses.replace(SETTINGS, check_images="none")


def a_grid(
    clip: Clip,
    load: Callable[[str], Dataset],
    recipe: Recipe,
    folder: Path,
    *,
    scope: str = "method",
    settings: GridSettings = UNSEEN,
    part: Part | None = None,
) -> ChoosingGrid:
    if part is not None:
        part.folder(folder).mkdir(parents=True, exist_ok=True)
    mesh = meshes.single_device()
    return ChoosingGrid(clip, recipe, settings, load, folder, mesh=mesh, part=part, scope=scope)


def lasting(rows: Sequence[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in VOLATILE} for row in rows]


def trial(rate: float, accuracy: float, loss: float, status: str = "ok") -> dict:
    facts = {"validation_accuracy": accuracy, "validation_loss": loss} if status == "ok" else {"error": "x"}
    return {"learning_rate": rate, "status": status} | facts


def test_the_highest_mean_is_chosen_then_the_lower_loss_then_the_lower_rate() -> None:
    """Against NumPy, on cells and seeds whose accuracies are often equal."""
    rng, winners = np.random.default_rng(3), set()
    for _ in range(60):
        accuracy, loss = rng.integers(0, 3, (4, 3, 2)) * 10.0, rng.integers(1, 3, (4, 3, 2)) / 4  # rate, cell, seed
        rates = rng.permutation([0.1, 0.2, 0.3, 0.4])
        told = {
            ("bias", f"d{cell}", 4): [
                trial(rates[r], accuracy[r, cell, seed], loss[r, cell, seed]) for r in range(4) for seed in range(2)
            ]
            for cell in range(3)
        }
        means = np.round(accuracy.mean((1, 2)), 6), np.round(loss.mean((1, 2)), 6)
        expected = rates[np.lexsort((rates, means[1], -means[0]))[0]]
        found = choose(told, "method")
        assert found.learning_rate == expected and found.cells == 3
        by_rate = {one.learning_rate: one.accuracy for one in found.tried}
        assert by_rate == pytest.approx(dict(zip(rates, accuracy.mean((1, 2)), strict=True)))
        winners.add(expected)
    assert len(winners) == 4


def test_a_rate_that_failed_anywhere_is_not_chosen_and_a_cell_that_failed_everywhere_says_nothing() -> None:
    good = [trial(0.1, 50.0, 1.0), trial(0.2, 90.0, 1.0)]
    lost = [trial(0.1, 0, 0, "failed"), trial(0.2, 0, 0, "failed")]
    half = [trial(0.1, 50.0, 1.0), trial(0.2, 0, 0, "failed")]
    names = [("bias", "a", 4), ("bias", "b", 4)]
    found = choose(dict(zip(names, [good, lost], strict=True)), "method")
    assert (found.learning_rate, found.cells) == (0.2, 1)
    found = choose(dict(zip(names, [good, half], strict=True)), "method")
    assert found == Choice(0.1, "method", 2, (Tried(0.1, 50.0, 1.0), Tried(0.2, None, None)))
    assert choose(dict(zip(names, [lost, lost], strict=True)), "method") is None
    assert Choice.of(found.learning_rate, json.loads(json.dumps(found.facts()))) == found


def test_the_most_particular_rate_is_a_packs(tmp_path: Path) -> None:
    entries = [{"method": "bias", "learning_rate": 0.1}, {"method": "bias", "dataset": "a", "learning_rate": 0.2}]
    entries.append({"method": "bias", "dataset": "a", "shots": 4, "learning_rate": 0.3})
    Rates(entries).write(tmp_path / "rates.json", {"model": "x"})
    found = Rates.read(tmp_path / "rates.json")
    cells = [("b", 4), ("a", 16), ("a", 4)]
    assert [found.of(Pack("bias", dataset, shots, (1,))) for dataset, shots in cells] == [0.1, 0.2, 0.3]
    assert found.of(Pack("vpt", "a", 4, (1,))) is None
    with pytest.raises(ClipbiasError, match="no file of learning rates"):
        Rates.read(tmp_path / "none.json")
    (tmp_path / "rates.json").write_text('{"rates": [{"method": "bias", "learning_rate": "high"}]}')
    with pytest.raises(ClipbiasError, match="is damaged"):
        Rates.read(tmp_path / "rates.json")


def guarded(dataset: Dataset, folder: Path) -> Dataset:
    """The dataset whose test images cannot be read before a choice is written."""
    test = dataset.split("test")

    def read(index: int) -> bytes:
        assert (folder / "rates.json").exists(), "a test image was read before the choice"
        return test.read(index)

    own = Split(test.keys, test.labels, read)
    return dataclasses.replace(dataset, splits={**dataset.splits, "test": own})


def test_rates_are_chosen_before_a_test_image_is_read_and_what_was_tried_is_tested(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    packs = make_packs(["zero_shot", "taskres"], ["colours"], [2, 4], [1, 2], learning_rates=RATES)[1:]
    grid = a_grid(clip, lambda name: guarded(colours, tmp_path), recipe, tmp_path)
    rows = grid.run(packs)
    assert [(row["status"], row["shots"], row["seed"]) for row in rows] == [
        ("ok", shots, seed) for shots in (2, 4) for seed in (1, 2)
    ]
    trials = read_json_lines(tmp_path / "trials.jsonl")
    assert sorted((row["shots"], row["seed"], row["learning_rate"]) for row in trials) == sorted(
        itertools.product((2, 4), (1, 2), RATES)
    )
    assert not any("accuracy" in row for row in trials)
    means = {
        name: {rate: np.mean([row[name] for row in trials if row["learning_rate"] == rate]) for rate in RATES}
        for name in ("validation_accuracy", "validation_loss")
    }
    best = min(RATES, key=lambda rate: (-means["validation_accuracy"][rate], means["validation_loss"][rate], rate))
    assert {row["learning_rate"] for row in rows} == {best}
    content = read_json(tmp_path / "rates.json")
    (entry,) = content["rates"]
    assert (entry["method"], entry["learning_rate"], "dataset" in entry) == ("taskres", best, False)
    assert rows[0]["choice"] == {name: entry[name] for name in ("for", "cells", "tried")}
    assert [one["accuracy"] for one in entry["tried"]] == pytest.approx(
        [means["validation_accuracy"][rate] for rate in sorted(RATES)]
    )
    assert content["chosen"]["seeds"] == [1, 2] and content["chosen"]["images"] == "validation"
    assert not (tmp_path / "trials").exists() and not [*(tmp_path / "checkpoints").iterdir()]
    # Plain runs at that rate are the same runs: by the file that says so, and by their numbers.
    (tmp_path / "plain").mkdir()
    settings = dataclasses.replace(SETTINGS, rates=Rates.read(tmp_path / "rates.json"))
    plain = Grid(clip, recipe, settings, lambda name: colours, tmp_path / "plain", mesh=meshes.single_device())
    again = plain.run(make_packs(["taskres"], ["colours"], [2, 4], [1, 2]))
    for name in ("config_hash", "correct", "image_hash", "learning_rate", "parameters", "steps"):
        assert [row[name] for row in again] == [row[name] for row in rows], name
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in rows], rel=1e-4)
    assert "recipe" not in rows[0] and "recipe" not in again[0]
    # What is told of validation images, from the adapters' own logits.
    val = colours.split("val")
    images = np.stack([clip.preprocess(Image.fromarray(val.picture(index))) for index in range(len(val))])
    for row, test in ((rows[0], grid.tests(packs)[0]), (rows[3], grid.tests(packs)[1])):
        adapter = load_adapter(grid.trainer.adapter_path(test, None, row["seed"]))
        compute = jax.jit(adapter.task(clip).logits)
        logits = np.asarray(compute(clip.params, adapter.learnables, images), np.float64)
        own = logits[np.arange(len(val)), val.labels]
        loss = np.log(np.exp(logits - own[:, None]).sum(1)).mean()
        assert row["validation_loss"] == pytest.approx(loss, rel=1e-4)
        assert row["validation_correct"] == (logits.argmax(1) == val.labels).sum()
        assert adapter.notes["choice"] == row["choice"]


def test_a_stop_anywhere_a_lost_trial_and_a_rate_that_fails(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = make_packs(["taskres"], ["colours"], [2], [1, 2], learning_rates=(1e38, *RATES))
    recipe = dataclasses.replace(recipe, warmup_epochs=0)

    def run(folder: str) -> list[dict]:
        (tmp_path / folder).mkdir(exist_ok=True)
        return a_grid(clip, lambda name: colours, recipe, tmp_path / folder, scope="cell").run(packs)

    rows = run("whole")
    assert [row["status"] for row in rows] == ["ok", "ok"]
    tried = rows[0]["choice"]["tried"]
    assert [one["learning_rate"] for one in tried] == [*sorted(RATES), 1e38] and tried[-1]["accuracy"] is None
    (entry,) = read_json(tmp_path / "whole" / "rates.json")["rates"]
    assert (entry["dataset"], entry["shots"], entry["for"]) == ("colours", 2, "cell")
    # A rate that fails is tried again whenever the grid is run; nothing else is done again.
    results = (tmp_path / "whole" / "results.jsonl").read_text()
    assert lasting(run("whole")) == lasting(rows)
    assert (tmp_path / "whole" / "results.jsonl").read_text() == results

    packs = make_packs(["taskres"], ["colours"], [2], [1, 2], learning_rates=RATES)
    rows = run("other")
    stop_at(2, monkeypatch)
    with pytest.raises(Stopped):
        run("stopped")
    monkeypatch.undo()
    original = TrialTrainer.test_trials
    monkeypatch.setattr(TrialTrainer, "test_trials", lambda *_: 1 / 0)  # as one that is killed before it tests
    run("stopped")
    assert [row["status"] for row in read_json_lines(tmp_path / "stopped" / "results.jsonl")] == ["failed"] * 2
    monkeypatch.setattr(TrialTrainer, "test_trials", original)
    trained = []
    monkeypatch.setattr(TrialTrainer, "learn", counted(TrialTrainer.learn, trained))
    assert lasting(run("stopped")) == lasting(rows)
    assert trained == []
    # Without what a trial learned it is trained again, and then as before.
    (tmp_path / "stopped" / "results.jsonl").unlink()
    assert not (tmp_path / "stopped" / "trials").exists()
    assert lasting(run("stopped")) == lasting(rows)
    assert [len(pack.cells) for pack in trained] == [4]


def counted(learn: Callable, calls: list[Pack]) -> Callable:
    def run(self: TrialTrainer, pack: Pack, draws: Sequence) -> object:
        calls.append(pack)
        return learn(self, pack, draws)

    return run


@pytest.mark.parametrize("scope", ["method", "cell"])
def test_parts_choose_what_one_job_does(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    """Training played: a number for each rate, so that both shots decide together and disagree apart."""
    packs = make_packs(["zero_shot", "taskres"], ["colours"], [2, 4], [1], learning_rates=RATES)
    says = {(2, 0.4): 60.0, (2, 0.05): 50.0, (4, 0.4): 50.0, (4, 0.05): 90.0}
    tested = []

    def train(self: TrialTrainer, pack: Pack) -> list[dict]:
        rows = []
        for rate, seed in pack.cells:
            told = {"accuracy": 1.0}
            if pack.tries:
                told = {"validation_accuracy": says[pack.shots, rate], "validation_loss": 1.0}
            own = self.row(pack, rate, seed) | {"status": "ok", "image_hash": self.cache.image_hash(pack)}
            rows.append(own | self.rate(pack, rate) | told)
        return rows

    def test_trials(self: TrialTrainer, pack: Pack, trials: Sequence[dict], facts: dict) -> list[dict]:
        tested.append((self.own_folder.name, pack.shots))
        rates = {row["learning_rate"] for row in trials}
        assert rates == {self.rates.of(pack)}
        return [row | facts for row in train(self, pack)]

    monkeypatch.setattr(TrialTrainer, "train", train)
    monkeypatch.setattr(TrialTrainer, "test_trials", test_trials)

    def run(folder: str, part: Part | None = None) -> list[dict]:
        (tmp_path / folder).mkdir(exist_ok=True)
        grid = a_grid(clip, lambda name: colours, recipe, tmp_path / folder, scope=scope, part=part)
        grid.run(packs)
        return lasting(grid.rows(packs))

    whole = run("whole")
    assert [row["learning_rate"] for row in whole] == ([None, 0.05, 0.05] if scope == "method" else [None, 0.4, 0.05])
    tested.clear()
    first = run("parts", Part(1, 2))
    assert len(first) < 3 and len(tested) == (scope == "cell")
    assert run("parts", Part(2, 2)) == whole
    assert sorted(shots for _, shots in tested) == [2, 4]
    assert read_json(tmp_path / "parts" / "rates.json") == read_json(tmp_path / "whole" / "rates.json")
    assert read_json(tmp_path / "parts" / "cells.json", list) == read_json(tmp_path / "whole" / "cells.json", list)


def test_a_forecast_counts_validation_images_at_each_rate_and_test_images_at_one(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    grid = a_grid(clip, lambda name: colours, recipe, tmp_path)
    planned = grid.planned(make_packs(["zero_shot", "bias"], ["colours"], [4], [1], learning_rates=RATES))
    names = [(pack.method, len(pack.cells), pack.tries, learned) for pack, learned in planned]
    assert names == [("bias", 2, True, False), ("zero_shot", 1, False, False), ("bias", 1, False, True)]
    (trial, _), _, (test, _) = planned
    told, _ = forecast(grid.trainer, trial, 1e9)
    validation = len(colours.split("val"))
    assert f"{validation} validation images" in told and "test" not in told and "steps" in told
    told, tested = forecast(grid.trainer, test, 1e9, learned=True)
    assert "what the trials learned" in told and "15 test images" in told and "steps" not in told
    # At one rate a trial differs from a plain run in the images that it is evaluated on alone.
    _, tried = forecast(grid.trainer, trial.by_rate[0], 1e9)
    _, plain = forecast(grid.trainer, dataclasses.replace(trial.by_rate[0], tries=False), 1e9)
    assert 0 < validation < 15 and plain - tried == pytest.approx(tested * (15 - validation) / 15, rel=0.01)
    programs = pack_programs(grid.trainer, trial, grid.trainer.cache.plans(trial))
    assert [one.name for one in programs] == ["train_step", "image_features", "text_features", "verdicts"]
    cost = [
        planned_cost(grid.trainer, one)
        for one in (trial.by_rate[0], dataclasses.replace(trial.by_rate[0], tries=False))
    ]
    assert cost[0] < cost[1]


def test_a_dry_run_tells_trials_and_what_is_tested_of_them(model: Path, tmp_path: Path) -> None:
    changes = {"model": str(model), "methods": ("taskres",), "datasets": ("demo/digits",), "shots": (1,), "seeds": (1,)}
    changes |= {"learning_rates": RATES, "dry_run": True}
    printed, _ = binaries.succeed_here(table1, changes, tmp_path)
    (val,), (test,) = (re.findall(rf", (\d+) {kind} images", printed) for kind in ("validation", "test"))
    assert (int(val), int(test)) == (120, 1120) and "2 trials and 1 cells: about" in printed


def test_without_validation_images_nothing_is_begun(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, protocol="pseudo_labels")
    packs = make_packs(["taskres"], ["colours"], [2], [1], learning_rates=RATES)
    with pytest.raises(ClipbiasError, match="no validation images under the protocol pseudo_labels; a learning rate"):
        a_grid(clip, lambda name: colours, recipe, tmp_path, settings=settings).run(packs)
