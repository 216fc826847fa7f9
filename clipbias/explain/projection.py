"""Learned vectors of many runs in the plane, and how well they fall into groups."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Projection:
    """`n` vectors in two dimensions.

    Attributes:
      pca: `[n, 2]` along the two directions of the largest variance, the mean taken off.
      explained: the share of the variance along each.
    """

    pca: np.ndarray
    explained: tuple[float, float]


def project(vectors: np.ndarray) -> Projection | None:
    """PCA of vectors `[n, D]`; `None` for fewer than two different ones."""
    from sklearn.decomposition import PCA

    vectors = np.asarray(vectors, np.float64)
    if len(vectors) < 2 or not np.ptp(vectors, axis=0).any():
        return None
    model = PCA(n_components=min(2, *vectors.shape), svd_solver="full")
    plane = np.zeros((len(vectors), 2))
    plane[:, : model.n_components] = model.fit_transform(vectors)
    first, second = (*model.explained_variance_ratio_.tolist(), 0.0)[:2]
    return Projection(plane, (first, second))


def silhouette(vectors: np.ndarray, labels: Sequence[Any]) -> float | None:
    """Mean silhouette (Rousseeuw 1987) of groups in the vectors' own space, Euclidean: from -1 to 1.

    `None` where it is not defined: a single group, or as many groups as vectors.
    """
    from sklearn.metrics import silhouette_score

    names = [str(label) for label in labels]
    if not 2 <= len(set(names)) <= len(names) - 1:
        return None
    return float(silhouette_score(np.asarray(vectors, np.float64), names))


def separation(vectors: np.ndarray, labels: Mapping[str, Sequence[Any]]) -> tuple[dict[str, float | None], str]:
    """Silhouettes by several labellings (`{"dataset": […], "seed": […]}`) and a sentence that tells them."""
    values = {name: silhouette(vectors, of) for name, of in labels.items()}
    count = len(vectors)
    told = [
        f"{value:.2f} by {name} ({len({str(label) for label in labels[name]})} groups)"
        for name, value in values.items()
        if value is not None
    ]
    if not told:
        return values, f"{count} points: too few in a group to tell whether groups separate."
    meaning = "1: compact groups far apart; 0: none; below 0: mixed up"
    return values, (
        f"{count} points in {vectors.shape[1]:,} dimensions have a mean silhouette of {', '.join(told)} ({meaning})."
    )
