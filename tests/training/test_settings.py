import dataclasses
import math

import numpy as np
import pytest

from clipbias.errors import ClipbiasError
from clipbias.tuning.recipe import Recipe
from configs import base


def test_schedule_of_the_paper() -> None:
    rates = Recipe.from_config(base.get_config()).learning_rates()
    assert len(rates) == 10
    assert rates[0] == 1e-5
    expected = [0.0025 * (1 + math.cos(math.pi * (epoch - 1) / 10)) / 2 for epoch in range(1, 10)]
    np.testing.assert_allclose(rates[1:], expected, rtol=1e-12)
    np.testing.assert_allclose(rates[[1, 2, 3, 9]], [0.0025, 0.0024388, 0.0022613, 0.00023873], rtol=2e-5)


def test_no_warm_up(recipe: Recipe) -> None:
    rates = dataclasses.replace(recipe, warmup_epochs=0).learning_rates()
    assert rates[0] == recipe.learning_rate
    assert np.all(np.diff(rates) < 0)


@pytest.mark.parametrize("field", ["epochs", "batch_size"])
def test_refuses_nothing_to_do(recipe: Recipe, field: str) -> None:
    with pytest.raises(ClipbiasError, match=f"{field} is 0"):
        dataclasses.replace(recipe, **{field: 0})


def test_refuses_a_negative_rate(recipe: Recipe) -> None:
    with pytest.raises(ClipbiasError, match="learning_rate is -1"):
        dataclasses.replace(recipe, learning_rate=-1.0)
