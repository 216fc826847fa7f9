"""PCA against a singular value decomposition, silhouettes by hand."""

import numpy as np
import pytest

from clipbias.explain.projection import project, separation, silhouette


def groups(count: int, apart: float, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Three groups of `count` points in twenty dimensions."""
    rng = np.random.default_rng(seed)
    centres = apart * rng.normal(size=(3, 1, 20))
    return (centres + rng.normal(size=(3, count, 20))).reshape(-1, 20), [name for name in "abc" for _ in range(count)]


def test_pca_is_the_singular_value_decomposition() -> None:
    vectors, _ = groups(4, 3.0)
    centred = vectors - vectors.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    found = project(vectors)
    for axis in range(2):
        expected = left[:, axis] * values[axis]
        sign = np.sign(expected @ found.pca[:, axis])
        np.testing.assert_allclose(found.pca[:, axis], sign * expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.explained, values[:2] ** 2 / (values**2).sum(), rtol=1e-9)


def test_what_cannot_be_projected() -> None:
    assert project(np.ones((1, 5))) is None
    assert project(np.ones((6, 5))) is None
    line = project(np.arange(3.0)[:, None])  # one number each
    np.testing.assert_allclose(np.abs(line.pca), [[1, 0], [0, 0], [1, 0]])
    assert line.explained == (1, 0)


def test_silhouette_by_hand() -> None:
    vectors, labels = np.array([[0.0], [1.0], [10.0], [12.0]]), ["a", "a", "b", "b"]
    within, between = [1, 1, 2, 2], [11, 10, 9.5, 11.5]
    expected = np.mean([(b - a) / max(a, b) for a, b in zip(within, between, strict=True)])
    assert silhouette(vectors, labels) == pytest.approx(expected)


def test_separation_in_words() -> None:
    vectors, names = groups(3, 20.0)
    values, sentence = separation(vectors, {"dataset": names, "method": ["bias"] * 9, "seed": [1, 2, 3] * 3})
    assert values["dataset"] > 0.8 > 0 > values["seed"]
    assert values["method"] is None
    assert sentence.startswith(
        f"9 points in 20 dimensions have a mean silhouette of {values['dataset']:.2f} by dataset"
    )
    assert "method" not in sentence
    assert "too few" in separation(vectors[:2], {"dataset": ["a", "b"]})[1]
