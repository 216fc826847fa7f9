"""The reference's GDA against the Gaussian densities that it stands for, and cases done by hand."""

import numpy as np
import pytest

from tests.reference import heads, heads_gda
from tests.reference.heads_cases import D, arrays


def log_densities(x: np.ndarray, means: list[np.ndarray], covariance: np.ndarray) -> np.ndarray:
    """Log densities of Gaussians with one covariance at rows x, [B, C], from the definition."""
    precision = np.linalg.inv(covariance)
    _, logarithm = np.linalg.slogdet(2 * np.pi * covariance)
    return np.array([[-0.5 * (row - mean) @ precision @ (row - mean) - 0.5 * logarithm for mean in means] for row in x])


@pytest.mark.parametrize("rule", ["few_shot", "base_classes"])
def test_gda_tells_classes_apart_as_gaussians_of_one_covariance_do(rule):
    labels = np.array([0, 1, 1, 0, 1, 0, 1])
    features = arrays(labels=labels, passes=6)["features"]
    weight, bias = getattr(heads_gda, rule)(features=features, labels=labels, classes=2)

    x = [[], []]
    for one_pass in features:
        for row, label in zip(one_pass, labels, strict=True):
            x[label].append(row / np.linalg.norm(row))
    if rule == "base_classes":
        covariance = (np.cov(x[0], rowvar=False) + np.cov(x[1], rowvar=False)) / 2
    else:
        scatter = sum(np.cov(rows, rowvar=False, bias=True) * len(rows) for rows in x)
        covariance = (scatter + np.trace(scatter) / (len(features) * len(labels) - 1) * np.eye(D)) / D
    queries = heads.unit(np.random.default_rng(6).normal(size=(10, D)))
    means = [np.mean(rows, axis=0) for rows in x]
    expected = np.diff(log_densities(queries, means, covariance))[:, 0]
    np.testing.assert_allclose(np.diff(queries @ weight.T + bias)[:, 0], expected, rtol=1e-8)
    # The constant that both classes share: log(1/C), without the densities' own.
    plain = queries @ np.transpose(weight) + np.log(0.5)
    half = [0.5 * mean @ np.linalg.inv(covariance) @ mean for mean in means]
    np.testing.assert_allclose(queries @ weight.T + bias, plain - half, rtol=1e-8)


def test_gda_of_a_class_without_images_is_made_of_its_text_and_neighbours():
    data = arrays(labels=[0, 1, 2, 3] * 3, passes=2)
    weights = heads_gda.new_classes(
        features=data["features"], new_text_features=data["text_features"][:, :2], neighbours=5, copies=3
    )
    rows = [row / np.linalg.norm(row) for row in data["features"].reshape(-1, D)]
    means = []
    precisions = []
    for c in range(2):
        w = sum(g / np.linalg.norm(g) for g in data["text_features"][:, c])
        w /= np.linalg.norm(w)
        nearest = sorted(rows, key=lambda row, w=w: np.linalg.norm(row - w))[:5]
        means.append((sum(nearest) + 3 * w) / 8)
        covariance = sum(np.outer(q - w, q - w) for q in nearest) / 4
        precisions.append(D * np.linalg.inv(4 * covariance + np.trace(covariance) * np.eye(D)))
    precision = (precisions[0] + precisions[1]) / 2
    np.testing.assert_allclose(weights[0], np.stack(means) @ precision, rtol=1e-10)
    np.testing.assert_allclose(weights[1], [np.log(1 / 2) - mean @ precision @ mean / 2 for mean in means], rtol=1e-10)


def test_gda_of_new_classes_takes_64_neighbours_and_16_copies():
    data = arrays(labels=[0, 1, 2] * 30, passes=1)
    case = {"features": data["features"], "new_text_features": data["text_features"]}
    named = heads_gda.new_classes(**case, neighbours=64, copies=16)
    for weight, expected in zip(heads_gda.new_classes(**case), named, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_gda_search_takes_the_smallest_of_equals_and_a_tenth_where_nothing_is_right():
    # x = (1, 0): zero-shot gives class 0 100 · 0.3 more; the Gaussian part gives class 1 α · 5 more.
    text = np.array([[[1.0, 0.0], [0.7, np.sqrt(0.51)]]])
    case = {"features": [[2.0, 0.0]], "text_features": text, "weight": np.array([[0.0, 0.0], [4.0, 0.0]])}
    case["bias"] = np.array([0.0, 1.0])
    scores = heads_gda.logits(alpha=2.0, **case)
    np.testing.assert_allclose(scores, [[100, 80]], rtol=1e-12)
    assert heads_gda.search(labels=[1], **case) == (10.0, 1.0)
    assert heads_gda.search(labels=[0], **case) == (1e-4, 1.0)
    assert heads_gda.search(labels=[1], **(case | {"weight": np.zeros((2, 2))})) == (100.0, 1.0)
    assert heads_gda.search(labels=[1], **(case | {"weight": np.zeros((2, 2)), "bias": np.zeros(2)})) == (0.1, 0.0)
