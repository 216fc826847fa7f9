"""How methods are trained by their authors' recipes, or by the common one."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from clipbias.tuning import make_method
from clipbias.tuning.recipe import MOST, Recipe
from tests.tuning.weights_common import SGD

AUTHORS = {"recipe": "authors"}
COMMON = {"recipe": "common"}
LORA = dict(learning_rate=2e-4, optimizer="adamw", weight_decay=1e-2, schedule="steps", final_learning_rate=1e-6)
LORA |= dict(batch_size=32, keep_last=True, crop=0.08)
ADAM = dict(learning_rate=1e-5, epochs=300, batch_size=MOST, weight_decay=0.0, optimizer="adam", epsilon=1e-4)
ADAM |= dict(schedule="steps", crop=0.5)
MMRL = dict(optimizer="adamw", crop=0.5)


def warmed(learning_rate: float, epochs: int, batch_size: int) -> dict[str, Any]:
    """As CoOp's."""
    named = dict(learning_rate=learning_rate, epochs=epochs, batch_size=batch_size)
    return named | dict(warmup_epochs=1, warmup_learning_rate=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "shots", "changes"),
    [
        *((name, {}, 4, {}) for name in ("bitfit", "layer_norm", "clip_adapter", "mma", "tcp")),
        *((name, COMMON, 4, {}) for name in ("clip_lora", "prolip", "clap", "zs_lp", "tip_adapter_f", "two_stage")),
        *((name, {}, 16, {}) for name in ("kgcoop", "prograd", "promptsrc", "promptsrc_base_to_new")),
        *((name, AUTHORS, 4, LORA | {"steps": 1200}) for name in ("bitfit", "layer_norm")),
        ("bitfit", AUTHORS, None, LORA | {"steps": 4800}),
        *(("clip_lora", {}, shots, LORA | {"steps": 8000}) for shots in (16, None)),
        ("prolip", {}, 4, ADAM),
        *((name, {}, 4, warmed(0.1, 300, 256) | {"weight_decay": 0.0}) for name in ("clap", "zs_lp")),
        ("clip_adapter", AUTHORS, 16, warmed(0.002, 200, 32)),
        ("mma", AUTHORS, 16, warmed(0.0015, 5, 16) | {"warmup_epochs": 0}),
        ("mmrl", {}, 16, warmed(0.001, 50, 32) | MMRL),
        ("mmrl_base_to_new", {}, 16, warmed(0.001, 10, 4) | MMRL),
        ("mmrl", {"epochs": 1}, 16, warmed(0.001, 1, 32) | MMRL | {"warmup_epochs": 0}),
        ("kgcoop", AUTHORS, 16, warmed(0.002, 100, 128)),
        *(
            ("prograd", AUTHORS, shots, warmed(0.002, epochs, 32))
            for shots, epochs in ((1, 50), (2, 100), (4, 100), (8, 200), (16, 200), (None, 200))
        ),
        ("promptsrc", AUTHORS, 16, warmed(0.0025, 50, 4)),
        ("promptsrc_base_to_new", AUTHORS, 16, warmed(0.0025, 20, 4)),
        ("promptsrc_cross_dataset", AUTHORS, 16, warmed(0.0025, 20, 4)),
        ("tcp", AUTHORS, 16, warmed(0.002, 50, 32) | {"optimizer": "adam", "epsilon": 1e-3}),
    ],
)
def test_recipes(name, options, shots, changes):
    assert make_method(name, **options).recipe_for(SGD, shots) == dataclasses.replace(SGD, **changes)


def test_candidates_are_the_recipes_rate_and_larger_ones():
    assert Recipe().candidates() == (0.0025, 0.02, 0.16, 1.28)
    lora = make_method("clip_lora").recipe_for(Recipe(), 4)
    assert lora.candidates() == pytest.approx((2e-4, 8e-4, 3.2e-3, 1.28e-2))


def test_a_third_of_the_steps():
    """Of ten images in batches of 4: two steps an epoch."""
    short = Recipe(epochs=9, batch_size=4, warmup_epochs=4).shortened(10)
    assert (short.total_steps(10), short.total_steps(6), short.warmup_epochs) == (6, 6, 1)
    rates = 0.0025 * (1 + np.cos(np.pi * (np.arange(3) - 1) / 3)) / 2
    np.testing.assert_allclose(short.step_rates(10), np.repeat([1e-5, *rates[1:]], 2))
    assert Recipe(epochs=1, batch_size=4).shortened(3).total_steps(3) == 1
    assert Recipe().shortened(24).total_steps(18) == 100  # of the 300 steps that a small set makes
    lora = make_method("clip_lora").recipe_for(Recipe(), 4)
    assert lora.shortened(12).total_steps(9) == 2000 // 3


def test_a_warm_up_is_never_the_whole_training():
    """It would train at 1e-5 alone. Where another epoch follows the rates stay what they were."""
    np.testing.assert_allclose(Recipe(epochs=1).learning_rates(), [0.0025])
    np.testing.assert_allclose(
        Recipe(epochs=3, warmup_epochs=3).step_rates(32), Recipe(epochs=3, warmup_epochs=0).step_rates(32)
    )
    np.testing.assert_allclose(Recipe(epochs=2).learning_rates(), [1e-5, 0.0025])
