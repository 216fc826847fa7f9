"""The reference's optimisers and schedules, against steps done by hand."""

import numpy as np

from tests.reference import optimizers

VALUE, FIRST, SECOND = np.array([2.0, -3.0]), np.array([0.5, -0.25]), np.array([-1.0, 0.125])


def two_steps(optimizer, rates=(0.1, 0.2)):
    """The value after each of two steps."""
    once = optimizer.step({"p": VALUE}, {"p": FIRST}, rates[0])
    return once["p"], optimizer.step(once, {"p": SECOND}, rates[1])["p"]


def test_sgd_by_hand():
    once, twice = two_steps(optimizers.SGD(momentum=0.9, weight_decay=0.01))
    velocity = FIRST + 0.01 * VALUE
    np.testing.assert_allclose(once, VALUE - 0.1 * velocity, rtol=1e-15)
    velocity = 0.9 * velocity + SECOND + 0.01 * once
    np.testing.assert_allclose(twice, once - 0.2 * velocity, rtol=1e-15)


def test_adam_by_hand_has_its_epsilon_outside_of_the_root():
    once, twice = two_steps(optimizers.Adam(epsilon=0.5))
    np.testing.assert_allclose(once, VALUE - 0.1 * FIRST / (np.abs(FIRST) + 0.5), rtol=1e-14)
    mean = (0.09 * FIRST + 0.1 * SECOND) / 0.19
    size = np.sqrt((0.000999 * FIRST**2 + 0.001 * SECOND**2) / 0.001999)
    np.testing.assert_allclose(twice, once - 0.2 * mean / (size + 0.5), rtol=1e-12)


def test_adam_decays_through_its_gradient_and_adamw_beside_it():
    coupled = optimizers.Adam(weight_decay=0.01, epsilon=1e-4).step({"p": VALUE}, {"p": FIRST}, 0.1)["p"]
    gradient = FIRST + 0.01 * VALUE
    np.testing.assert_allclose(coupled, VALUE - 0.1 * gradient / (np.abs(gradient) + 1e-4), rtol=1e-14)
    decayed = optimizers.AdamW(epsilon=1e-4).step({"p": VALUE}, {"p": FIRST}, 0.1)["p"]
    np.testing.assert_allclose(decayed, 0.999 * VALUE - 0.1 * FIRST / (np.abs(FIRST) + 1e-4), rtol=1e-14)


def test_schedules():
    rates = optimizers.cosine_rates(2.0, 4, final=1.0)
    np.testing.assert_allclose(rates, [2.0, 1.5 + np.sqrt(0.125), 1.5, 1.5 - np.sqrt(0.125)], rtol=1e-15)
    epochs = optimizers.warmed_cosine_rates(0.0025, 10)
    np.testing.assert_allclose(epochs[[0, 1, 2, 3, 9]], [1e-5, 0.0025, 0.0024388, 0.0022613, 0.00023873], rtol=2e-5)
    assert len(epochs) == 10
