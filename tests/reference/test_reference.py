"""Gradients of the references that are written by hand, against finite differences of what they are gradients of."""

import numpy as np

from tests import helpers
from tests.reference import differences, heads, methods, relevancy, weights
from tests.reference.cases import CLASS_NAMES
from tests.reference.differences import along_directions, in_full


def test_differences_tell_a_wrong_gradient_from_a_right_one():
    point = {"x": np.array([[1.0, -2.0], [0.5, 3.0]])}
    right = {"x": 2 * point["x"]}
    squares = lambda learnables: (learnables["x"] ** 2).sum()  # noqa: E731
    assert along_directions(squares, point, right)["x"] < 1e-8
    assert along_directions(squares, point, {"x": right["x"] * [[1, 1], [1, 1.01]]})["x"] > 1e-3
    slopes = in_full(lambda x: np.array([squares(x), 3 * squares(x)]), point)
    np.testing.assert_allclose([slope["x"] for slope in slopes], [right["x"], 3 * right["x"]], rtol=1e-8)


def test_attention_gradients_equal_finite_differences_through_taps(tiny):
    _, clip = tiny(vision=(16, 2, 2), image_size=8)
    learnables = methods.random_learnables(clip.config, "ivlp", 5, text=2, vision=2)
    inputs = methods.prepare(clip, "ivlp", CLASS_NAMES, learnables)
    image = helpers.random_images(clip.config, 1)
    pair = relevancy.pair(clip, inputs, image[0], 1)
    alone = relevancy.only(inputs, 1)
    for tower, gradients in (("vision", pair.vision_gradient), ("text", pair.text_gradient)):
        for layer, gradient in enumerate(gradients):
            direction = weights.deterministic_uniform(8, layer, gradient.shape)

            def score(distance, tower=tower, layer=layer, gradients=gradients, direction=direction):
                taps = [np.zeros(1)] * len(gradients)
                taps[layer] = distance * direction[None]
                return methods.forward(clip, alone, image, **{f"{tower}_taps": taps}).logits[0, 0]

            slope = differences.central(score)
            assert abs(slope - (gradient * direction).sum()) < 1e-6 * np.linalg.norm(gradient)


def test_gradients_of_lp_plus_plus_equal_finite_differences():
    data = heads.arrays()
    rng = np.random.default_rng(8)
    values = {"weight": rng.normal(size=(3, 8)), "bias": np.array([0.2, -0.1, 0.05]), "alpha": rng.normal(size=3)}
    case = data["features"][0] + 2.0, heads.LABELS, 1.0 + 0.01 * data["text_features"]
    _, gradients = heads.lp_loss_and_gradients(*case, **values)
    (slopes,) = in_full(lambda moved: np.array([heads.lp_loss_and_gradients(*case, **moved)[0]]), values)
    for name, slope in slopes.items():
        np.testing.assert_allclose(gradients[name], slope, atol=2e-7 * np.abs(slope).max())
