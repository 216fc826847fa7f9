"""The reference's heads: gradients against finite differences, and cases that can be done by hand."""

import numpy as np
import pytest

from tests.reference import heads, heads_clip_adapter, heads_probe, heads_tip
from tests.reference.heads_cases import LABELS, C, D, E, N, arrays, close_to_slopes
from tests.reference.numpy_clip import softmax


def axes(*rows: tuple[int, float], width: int = 4) -> np.ndarray:
    """Rows along the axes: (axis, length)."""
    result = np.zeros((len(rows), width))
    for row, (axis, length) in enumerate(rows):
        result[row, axis] = length
    return result


def test_the_classifier_normalises_every_template_and_then_their_mean():
    text = np.array([[[3.0, 0.0]], [[0.0, 1.0]]])
    np.testing.assert_allclose(heads.zero_shot_classifier(text), [[np.sqrt(0.5), np.sqrt(0.5)]], rtol=1e-15)


# Tip-Adapter


def test_tip_keys_are_means_of_raw_features():
    keys, values = heads_tip.cache(features=np.array([[[3.0, 0.0]], [[0.0, 1.0]]]), labels=[1], classes=2)
    np.testing.assert_allclose(keys, np.array([[3, 1]]) / np.sqrt(10), rtol=1e-15)
    np.testing.assert_array_equal(values, [[0, 1]])


def test_tip_of_a_sharp_and_heavy_cache_gives_the_nearest_neighbours_label():
    data = arrays()
    labels = np.random.default_rng(1).integers(0, C, N)
    keys, values = heads_tip.cache(features=data["features"], labels=labels, classes=C)
    queries = np.random.default_rng(2).normal(size=(20, D))
    logits = heads_tip.logits(
        features=queries, keys=keys, values=values, text_features=data["text_features"], alpha=1e250, beta=400
    )
    distances = [[np.linalg.norm(query / np.linalg.norm(query) - key) for key in keys] for query in queries]
    np.testing.assert_array_equal(logits.argmax(1), labels[np.argmin(distances, axis=1)])


def test_tip_logits_of_one_image_by_hand():
    logits = heads_tip.logits(
        features=axes((0, 7.0)),
        keys=axes((0, 1.0), (1, 1.0), (2, 1.0)),
        values=heads.one_hot([1, 0, 0], 2),
        text_features=axes((0, 5.0), (3, 2.0))[None],
        alpha=3.0,
        beta=2.0,
    )
    np.testing.assert_allclose(logits, [[100 + 6 * np.exp(-2), 3.0]], rtol=1e-15)


def test_tip_search_keeps_the_first_best_and_never_reaches_the_maxima():
    points = list(heads_tip.grid(7.0, 3.0))
    assert len(points) == 4000 and points[0] == (0.1, 0.1)
    np.testing.assert_allclose(points[1], (0.245, 0.1), rtol=1e-15)
    np.testing.assert_allclose(points[-1], (2.855, 6.9655), rtol=1e-15)
    # Zero-shot prefers the wrong class a little; a key at a right angle must add more than that: α exp(-β).
    text = axes((0, 1.0), (1, 1.0))[None]
    image = np.array([[np.sqrt(0.5), np.sqrt(0.5) - 0.02, 0.0, 0.0]])
    lead = heads.zero_shot_logits(image, text)[0] @ [1, -1]
    case = {"labels": [1], "keys": axes((2, 1.0)), "values": heads.one_hot([1], 2), "text_features": text}
    best = heads_tip.search(features=image, beta_max=7.0, alpha_max=6.0, **case)
    alphas = [0.1 + j * 5.9 / 20 for j in range(20)]
    first = next(alpha for alpha in alphas if alpha * np.exp(-0.1) > lead)
    assert first > 0.1 and best == (first, 0.1, 1.0)
    assert heads_tip.search(features=image, beta_max=7, alpha_max=0.5, start=(4, 5), **case) == (4, 5, 0.0)


# CLIP-Adapter


def test_clip_adapter_by_hand():
    features = np.array([[2.0, 1.0, 0.0, 0.0]])
    text = axes((0, 3.0), (1, 1.0))[None]
    down, up = np.array([[1.0, 1.0, 0.0, 0.0]]), np.array([[-1.0], [2.0], [0.0], [0.0]])
    u = np.array([1.6, 0.2 * 6 + 0.8, 0, 0])
    logits = heads_clip_adapter.logits(features=features, text_features=text, down=down, up=up, scale=10.0)
    np.testing.assert_allclose(logits, [10 * u[:2] / np.linalg.norm(u)], rtol=1e-15)


# Linear probe


@pytest.mark.parametrize("inverse", heads_probe.SWEEP)
@pytest.mark.parametrize("passes", [E, 1])
def test_the_probe_is_at_the_minimum(inverse, passes):
    # Nine images in eight dimensions can be told apart without an error, whatever their labels.
    features = 10 * arrays()["features"][:passes].reshape(-1, D)
    labels = np.tile(LABELS, passes)
    weight, bias = heads_probe.fit(features=features, labels=labels, classes=C, inverse=inverse)
    value, gradient, _ = heads_probe.objective(
        features=features, labels=labels, weight=weight, bias=bias, inverse=inverse
    )
    assert np.linalg.norm(gradient) < 1e-6 and abs(bias.sum()) < 1e-6
    plain = 0.5 * (weight**2).sum()
    for row, label in zip(features @ weight.T + bias, labels, strict=True):
        plain -= inverse * np.log(softmax(row)[label])
    assert abs(value - plain) < 1e-9 * max(1, plain)


def test_the_probes_gradient_is_that_of_its_objective():
    features = arrays()["features"][0]
    rng = np.random.default_rng(5)
    point = rng.normal(size=(C, D + 1))

    def at(point):
        return heads_probe.objective(
            features=features, labels=LABELS, weight=point[:, :-1], bias=point[:, -1], inverse=0.7
        )

    _, gradient, probabilities = at(point)
    close_to_slopes(gradient, lambda moved: at(moved)[0], point)
    direction = rng.normal(size=point.shape)
    turned = (at(point + 1e-6 * direction)[1] - at(point - 1e-6 * direction)[1]) / 2e-6
    curved = heads_probe.hessian(features, probabilities, 0.7) @ direction.ravel()
    np.testing.assert_allclose(curved, turned.ravel(), atol=1e-7 * np.abs(curved).max())


def test_the_probe_of_two_images_by_hand():
    weight, bias = heads_probe.fit(features=[[-1.0], [1.0]], labels=[0, 1], classes=2, inverse=3.0)
    w = weight[1, 0]
    # d/dw of w² + 2 · 3 log(1 + exp(-2 w)).
    assert abs(2 * w - 12 / (1 + np.exp(2 * w))) < 1e-10
    np.testing.assert_allclose([weight[0, 0], *bias], [-w, 0, 0], atol=1e-12)


def test_the_search_of_the_probe_gives_ties_to_the_smaller_end():
    strength, sweep, ends, accuracies = heads_probe.search_inverse(lambda inverse: 0.5)
    assert strength == 1e5 and sweep == [0.5] * 7 and accuracies == [(0.5, 0.5)] * 8
    np.testing.assert_allclose(ends[0] + ends[1] + ends[2], (1e5, 1e7, 1e5, 1e6, 1e5, 10**5.5))
    rising = heads_probe.search_inverse(lambda inverse: np.log10(inverse))
    assert rising[0] == 1e7
    # Exponents of the ends on the way to a peak at 0.3: (-1, 1), (0, 1), (0, 0.5), (0.25, 0.5), (0.25, 0.375),
    # (0.25, 0.3125), (0.28125, 0.3125), (0.296875, 0.3125).
    peaked = heads_probe.search_inverse(lambda inverse: -abs(np.log10(inverse) - 0.3))
    np.testing.assert_allclose(np.log10(peaked[0]), 0.296875, rtol=1e-12)


def test_the_probe_keeps_the_fit_of_the_c_it_found():
    data = arrays()["features"]
    probe = heads_probe.search(
        features=data[0], labels=LABELS, validation_features=data[1], validation_labels=LABELS, classes=C
    )
    weight, _ = heads_probe.fit(features=data[0], labels=LABELS, classes=C, inverse=probe.inverse)
    np.testing.assert_array_equal(weight, probe.weight)
    assert probe.inverse in probe.ends[-1] and max(probe.sweep) > 1 / C
