"""What `clipbias train` says at its end."""

import json
from pathlib import Path

import pytest

from experiments import train
from tests.end_to_end import binaries
from tests.end_to_end.binaries import SHORT_RUN


@pytest.mark.long
def test_a_rate_that_moves_nothing_is_told(model: Path, trained: tuple[Path, str, str], tmp_path: Path) -> None:
    short, (_, of_trained, _) = SHORT_RUN | {"model": str(model)}, trained
    still = {"learning_rate": 1e-7, "warmup_learning_rate": 1e-7}
    printed, _ = binaries.succeed_here(train, short | still, tmp_path)
    assert (
        "the loss hardly fell in 5 steps, from " in printed and "another --config.learning_rate than 1e-07" in printed
    )
    # What it advises works in the same folder; what has learned is kept.
    printed, _ = binaries.succeed_here(train, short, tmp_path)
    row = json.loads((tmp_path / "result.json").read_text())
    assert "hardly" not in printed + of_trained and row["learning_rate"] == 0.5
    assert f"zero_shot on demo/digits: {row['zero_shot_accuracy']:.2f} %" in printed
    refusal = binaries.refusal_here(train, short | {"learning_rate": 0.4}, tmp_path)
    assert "holds the adapter of a run with other settings (recipe, learning_rate" in refusal


def test_zero_shot_is_that_of_a_run_of_its_own(
    model: Path, trained: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = SHORT_RUN | {"model": str(model)}
    binaries.succeed_here(train, short | {"method": "zero_shot", "method_options": {}}, tmp_path)
    tuned, plain = (json.loads((folder / "result.json").read_text()) for folder in (trained[0], tmp_path))
    assert tuned["zero_shot_accuracy"] == plain["accuracy"] and "zero_shot_accuracy" not in plain
    # A finished run knows it.
    monkeypatch.setattr(train, "zero_shot", lambda *_: pytest.fail("evaluated again"))
    printed, _ = binaries.succeed_here(train, short, trained[0])
    assert f"zero_shot on demo/digits: {plain['accuracy']:.2f} %" in printed


@pytest.mark.long
def test_a_small_set_is_trained_for_enough_steps(model: Path, tmp_path: Path) -> None:
    binaries.succeed_here(train, {"model": str(model), "dataset": "demo/digits", "shots": 1, "epochs": None}, tmp_path)
    row = json.loads((tmp_path / "result.json").read_text())
    assert row["steps"] == 300  # of ten images each


def test_what_fell_or_has_a_recipe_of_its_own_is_no_reason_to_speak() -> None:
    row = {"learning_rate": 0.1}

    def lines(*losses: float) -> list[dict]:
        return [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]

    assert train.hardly_learned(lines(2.0, 1.5, 1.0), row) == ""
    assert "from 2 to 1.95" in train.hardly_learned(lines(2.0, 0.1, 1.95), row)
    # Of nine steps the first and the last three count, whatever one batch says.
    assert train.hardly_learned(lines(1.0, 2.0, 3.0, 9.0, 9.0, 9.0, 0.5, 0.5, 2.0), row) == ""
    assert train.hardly_learned(lines(2.0, 2.0), row | {"own_recipe": {"epochs": 2}}) == ""
    assert train.hardly_learned(lines(2.0), row) == train.hardly_learned([], row) == ""
