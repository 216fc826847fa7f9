"""GDA, a Gaussian classifier beside zero-shot CLIP (Wang et al. 2024). Letters: see `heads`; x = unit(f).

    W = μ P [C, d];  b_c = log(1/C) - ½ μ_cᵀ P μ_c
    logits = 100 x Tᵀ + α (x Wᵀ + b)

μ_c is the mean of a class's rows, not normalised again. The precision P has three rules: few-shot, base classes and
new classes.
"""

import numpy as np

from tests.reference import heads

ALPHAS = tuple(10.0**power for power in range(-4, 3))
NEIGHBOURS = 64
COPIES = 16


def pseudo_inverse(matrix: np.ndarray) -> np.ndarray:
    """`pinv` of a symmetric matrix; singular values below d · eps of the largest count as 0."""
    return np.linalg.pinv(matrix, rcond=len(matrix) * np.finfo(np.float64).eps, hermitian=True)


def class_means(x: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """μ [C, d] of rows [n, d] and their labels [n]."""
    return np.stack([x[labels == c].mean(0) for c in range(classes)])


def shrunk_precision(scatter: np.ndarray, degrees: int) -> np.ndarray:
    """`d · pinv(m S + tr(S) I)` with `S = scatter / m`, m degrees of freedom; scatter [d, d] is a sum of squares."""
    width = len(scatter)
    return width * pseudo_inverse(scatter + np.trace(scatter) / degrees * np.eye(width))


def classifier(means: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W [C, d] and b [C] of the class means [C, d] and the precision [d, d]."""
    weight = means @ precision
    return weight, np.log(1 / len(means)) - 0.5 * (weight * means).sum(-1)


def few_shot(*, features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """W and b of raw features [E, N, d] and labels [N]: one covariance for all classes, shrunk.

    `Z = x - μ_y; S = ZᵀZ / (n - 1); P = d · pinv((n - 1) S + tr(S) I)`, where n = E N counts augmented rows.
    """
    raw, all_labels = heads.rows(features, labels)
    x = heads.unit(raw)
    means = class_means(x, all_labels, classes)
    centred = x - means[all_labels]
    return classifier(means, shrunk_precision(centred.T @ centred, len(x) - 1))


def base_classes(*, features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """W and b of the base classes: `P = pinv(mean over classes of the class covariances)`, not shrunk.

    Each covariance is divided by its own n_c - 1.
    """
    raw, all_labels = heads.rows(features, labels)
    x = heads.unit(raw)
    means = class_means(x, all_labels, classes)
    covariances = []
    for c in range(classes):
        centred = x[all_labels == c] - means[c]
        covariances.append(centred.T @ centred / (len(centred) - 1))
    return classifier(means, pseudo_inverse(np.mean(covariances, axis=0)))


def new_classes(
    *,
    features: np.ndarray,
    new_text_features: np.ndarray,
    neighbours: int = NEIGHBOURS,
    copies: int = COPIES,
) -> tuple[np.ndarray, np.ndarray]:
    """W and b of classes without images, from the base classes' raw features [E, N, d] and raw text [S, C, d].

    Per class with text w = T_c: Q = the 64 rows of largest x·w; μ = mean of Q and 16 copies of w (80 rows);
    `S_w = Σ (q - w)(q - w)ᵀ / 63`, centred at w. `P = mean over classes of d · pinv(63 S_w + tr(S_w) I)`.
    """
    x = heads.unit(heads.double(features).reshape(-1, np.shape(features)[-1]))
    means = []
    precisions = []
    for w in heads.zero_shot_classifier(new_text_features):
        nearest = x[np.argsort(-(x @ w), kind="stable")[:neighbours]]
        means.append(np.concatenate([nearest, np.tile(w, (copies, 1))]).mean(0))
        away = nearest - w
        precisions.append(shrunk_precision(away.T @ away, neighbours - 1))
    return classifier(np.stack(means), np.mean(precisions, axis=0))


def logits(
    *, features: np.ndarray, text_features: np.ndarray, weight: np.ndarray, bias: np.ndarray, alpha: float
) -> np.ndarray:
    """[B, C] of raw features [B, d] and the raw text features [S, C, d] of the same classes."""
    plain = heads.zero_shot_logits(features, text_features)
    return plain + alpha * (heads.unit(features) @ heads.double(weight).T + bias)


def search(
    *,
    features: np.ndarray,
    labels: np.ndarray,
    text_features: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    few: bool = False,
) -> tuple[float, float]:
    """α and accuracy: seven decades upwards, only strictly better ones replace; 0.1 if none beats 0.

    With `few` images one of the same accuracy is better if its loss is lower.
    """
    alpha = 0.1
    best = 0.0
    lowest = np.inf
    for candidate in ALPHAS:
        scores = logits(features=features, text_features=text_features, weight=weight, bias=bias, alpha=candidate)
        accuracy = heads.accuracy(scores, labels)
        loss = heads.mean_loss(scores, labels)
        if accuracy > best or (few and accuracy == best > 0 and loss < lowest):
            alpha = candidate
            best = accuracy
            lowest = loss
    return alpha, best
