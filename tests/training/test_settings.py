import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.errors import ClipbiasError
from clipbias.tuning.recipe import Recipe
from configs import base
from tests.reference import optimizers
from tests.reference.optimizers import cosine_rates


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


def test_a_cosine_from_step_to_step(recipe: Recipe) -> None:
    """Its first step has the whole rate, and its last is one short of the final rate."""
    recipe = dataclasses.replace(
        recipe, learning_rate=0.1, schedule="steps", final_learning_rate=0.02, epochs=2, batch_size=4, keep_last=True
    )
    rates = recipe.step_rates(10)
    expected = [0.02 + 0.08 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    np.testing.assert_allclose(dataclasses.replace(recipe, final_learning_rate=0).step_rates(10), cosine_rates(0.1, 6))
    assert len(dataclasses.replace(recipe, steps=100).step_rates(10)) == 100


def test_rates_per_epoch_are_repeated_and_steps_cut_an_epoch(recipe: Recipe) -> None:
    recipe = dataclasses.replace(recipe, batch_size=4, epochs=3)
    np.testing.assert_array_equal(recipe.step_rates(9), np.repeat(recipe.learning_rates(), 2))
    cut = dataclasses.replace(recipe, steps=5)
    assert (cut.steps_per_epoch(9), cut.total_steps(9), cut.total_epochs(9)) == (2, 5, 3)
    np.testing.assert_array_equal(cut.step_rates(9), np.repeat(recipe.learning_rates(), 2)[:5])
    longer = dataclasses.replace(recipe, steps=7)
    assert longer.total_epochs(9) == 4
    whole = dataclasses.replace(recipe, epochs=4).learning_rates()
    np.testing.assert_array_equal(longer.step_rates(9), np.repeat(whole, 2)[:7])
    assert dataclasses.replace(recipe, keep_last=True).steps_per_epoch(9) == 3
    assert dataclasses.replace(recipe, batch_size=20).steps_per_epoch(9) == 1


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimisers_are_those_of_torch(recipe: Recipe, name: str) -> None:
    recipe = dataclasses.replace(recipe, optimizer=name, weight_decay=0.1, epsilon=1e-3)
    reference = {
        "sgd": optimizers.SGD(recipe.momentum, 0.1),
        "adam": optimizers.Adam(1e-3, 0.1),
        "adamw": optimizers.AdamW(1e-3, 0.1),
    }[name]
    draw = np.random.default_rng(0)
    expected = {"a": draw.normal(size=(3, 2)), "b": draw.normal(size=4)}
    values = jax.tree.map(jnp.float32, expected)
    optimizer = recipe.transformation()
    state = optimizer.init(values)
    for rate in (0.1, 0.02, 0.05, 0.01):
        gradients = {key: draw.normal(size=value.shape) for key, value in expected.items()}
        expected = reference.step(expected, gradients, rate)
        directions, state = optimizer.update(jax.tree.map(jnp.float32, gradients), state, values)
        values = jax.tree.map(lambda p, v, rate=rate: p - rate * v, values, directions)
        for key, value in values.items():
            np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-6)


def test_what_differs_from_the_common_recipe(recipe: Recipe) -> None:
    own = dataclasses.replace(recipe, optimizer="adam", steps=10)
    assert own.differences(recipe) == {"optimizer": "adam", "steps": 10}
    assert recipe.differences(recipe) == {}
    assert not {"optimizer", "steps", "keep_last"} & recipe.facts().keys()
