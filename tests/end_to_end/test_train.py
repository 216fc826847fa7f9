"""What `clipbias train` says at its end."""

from pathlib import Path

from experiments import train
from tests.end_to_end import binaries

SHORT = {"dataset": "demo/digits", "shots": 16, "epochs": 3, "warmup_learning_rate": 1e-7}


def test_a_rate_that_moves_nothing_is_told(model: Path, tmp_path: Path) -> None:
    printed, _ = binaries.succeed_here(train, SHORT | {"model": str(model), "learning_rate": 1e-7}, tmp_path)
    assert (
        "the loss hardly fell in 15 steps, from " in printed and "another --config.learning_rate than 1e-07" in printed
    )


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
