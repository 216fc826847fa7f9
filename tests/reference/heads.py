"""Heads on CLIP's features in float64, whatever comes in.

Letters: `E` augmented passes, `N` training images, `n = E N` rows, `B` images, `C` classes, `S` templates, `d` joint
width; `f` image features and `g` text features as the towers give them (raw), `x = unit(f)`, `V [N, C]` one-hot labels,
`T_c = unit(mean over templates of unit(g))`, `CE` mean cross-entropy, `s = exp(logit_scale)`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.reference import numpy_clip, optimizers

LABELS = np.array([0, 1, 2] * 3)


def arrays(*, seed: int = 0, labels: Any = LABELS, passes: int = 3, width: int = 8) -> dict[str, np.ndarray]:
    """Raw `features` [E, N, d] of classes that overlap somewhat, and `text_features` [2, C, d] that disagree."""
    rng = np.random.default_rng(seed)
    classes = int(np.max(labels)) + 1
    text = rng.normal(size=(2, classes, width)) + rng.normal(size=(classes, width))
    features = rng.normal(size=(passes, len(labels), width)) + 0.6 * text.mean(0)[np.asarray(labels)]
    return {"features": features, "text_features": text}


def double(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64)


def unit(x: Any) -> np.ndarray:
    return numpy_clip.unit(double(x))


def zero_shot_classifier(text_features: np.ndarray) -> np.ndarray:
    """T [C, d] of raw [S, C, d]."""
    return unit(unit(text_features).mean(0))


def zero_shot_logits(features: np.ndarray, text_features: np.ndarray, scale: float = 100.0) -> np.ndarray:
    """`scale · x Tᵀ`."""
    return scale * unit(features) @ zero_shot_classifier(text_features).T


def rows(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All passes under each other: [E, N, d] and [N] -> [n, d] and [n]."""
    return double(features).reshape(-1, np.shape(features)[-1]), np.tile(labels, len(features))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of rows whose largest logit (the first of equals) is at the label."""
    return float((logits.argmax(-1) == np.asarray(labels)).mean())


def best_of(candidates: Iterator[Any], logits: Callable[[Any], np.ndarray], labels: np.ndarray, few: bool) -> Any:
    """The first candidate that no later one beats, and its accuracy; None if none has any image right.

    With `few` images one of the same accuracy is better if its loss is lower.
    """
    best, highest, lowest = None, 0.0, np.inf
    for candidate in candidates:
        scores = logits(candidate)
        share, loss = accuracy(scores, labels), numpy_clip.cross_entropy(scores, labels)
        if share > highest or (few and share == highest > 0 and loss < lowest):
            best, highest, lowest = candidate, share, loss
    return best, highest


# Tip-Adapter and Tip-Adapter-F (Zhang et al. 2022)


def tip_keys(features: np.ndarray) -> np.ndarray:
    """`unit(mean over passes of f)` [N, d]: the mean is of raw features."""
    return unit(double(features).mean(0))


def tip_logits(
    features: np.ndarray, keys: np.ndarray, values: np.ndarray, text_features: np.ndarray, alpha: float, beta: float
) -> np.ndarray:
    """`100 x Tᵀ + α exp(-β (1 - x keysᵀ)) V`."""
    distance = 1 - unit(features) @ double(keys).T
    return zero_shot_logits(features, text_features) + alpha * np.exp(-beta * distance) @ values


def tip_search(
    features: np.ndarray, labels: np.ndarray, *, beta_max: float, alpha_max: float, few: bool = False, **case: Any
) -> tuple[float, float, float]:
    """α, β and their accuracy: 200 β outside, 20 α inside, neither maximum reached."""
    alphas = [0.1 + j * (alpha_max - 0.1) / 20 for j in range(20)]
    betas = [0.1 + i * (beta_max - 0.1) / 200 for i in range(200)]
    pairs = ((alpha, beta) for beta in betas for alpha in alphas)
    pair, best = best_of(pairs, lambda pair: tip_logits(features, alpha=pair[0], beta=pair[1], **case), labels, few)
    return (*pair, best)


# CLIP-Adapter (Gao et al. 2021)


def adapter_logits(
    features: np.ndarray, text_features: np.ndarray, down: np.ndarray, up: np.ndarray, scale: float
) -> np.ndarray:
    """`s unit(u) Tᵀ` of `u = 0.2 relu(W2 relu(W1 f)) + 0.8 f`, W1 = `down` [d/4, d] and W2 = `up` without bias."""
    f = double(features)
    hidden = np.maximum(f @ double(down).T, 0)
    return zero_shot_logits(0.2 * np.maximum(hidden @ double(up).T, 0) + 0.8 * f, text_features, scale)


# GDA (Wang et al. 2024): W = μ P [C, d] and b_c = log(1/C) - ½ μ_cᵀ P μ_c, with means μ that are not normalised again

GDA_ALPHAS = tuple(10.0**power for power in range(-4, 3))


def pseudo_inverse(matrix: np.ndarray) -> np.ndarray:
    """Singular values below d · eps of the largest count as 0."""
    return np.linalg.pinv(matrix, rcond=len(matrix) * np.finfo(np.float64).eps, hermitian=True)


def shrunk_precision(scatter: np.ndarray, degrees: int) -> np.ndarray:
    """`d · pinv(m S + tr(S) I)` with `S = scatter / m`, m degrees of freedom."""
    return len(scatter) * pseudo_inverse(scatter + np.trace(scatter) / degrees * np.eye(len(scatter)))


def gaussian_classifier(means: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weight = means @ precision
    return weight, np.log(1 / len(means)) - 0.5 * (weight * means).sum(-1)


def gda(features: np.ndarray, labels: np.ndarray, classes: int, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """W and b of raw features [E, N, d]. `rule`:

    - "few_shot": one covariance of all n centred rows, divided by n - 1 and shrunk;
    - "base_classes": `pinv` of the mean of the class covariances, each divided by its own n_c - 1.
    """
    raw, all_labels = rows(features, labels)
    x = unit(raw)
    means = np.stack([x[all_labels == c].mean(0) for c in range(classes)])
    centred = [x[all_labels == c] - means[c] for c in range(classes)]
    if rule == "few_shot":
        return gaussian_classifier(means, shrunk_precision(sum(z.T @ z for z in centred), len(x) - 1))
    return gaussian_classifier(means, pseudo_inverse(np.mean([z.T @ z / (len(z) - 1) for z in centred], axis=0)))


def gda_new_classes(features: np.ndarray, text_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W and b of classes without images, from the base classes' raw features and the new classes' raw text.

    Per class with text w = T_c: Q = the 64 rows of largest x·w; μ = mean of Q and 16 copies of w;
    `S_w = Σ (q - w)(q - w)ᵀ / 63`, centred at w. `P = mean over classes of d · pinv(63 S_w + tr(S_w) I)`.
    """
    x = unit(double(features).reshape(-1, np.shape(features)[-1]))
    means, precisions = [], []
    for w in zero_shot_classifier(text_features):
        nearest = x[np.argsort(-(x @ w), kind="stable")[:64]]
        means.append(np.concatenate([nearest, np.tile(w, (16, 1))]).mean(0))
        precisions.append(shrunk_precision((nearest - w).T @ (nearest - w), 63))
    return gaussian_classifier(np.stack(means), np.mean(precisions, axis=0))


def gda_logits(
    features: np.ndarray, text_features: np.ndarray, weight: np.ndarray, bias: np.ndarray, alpha: float
) -> np.ndarray:
    """`100 x Tᵀ + α (x Wᵀ + b)`."""
    return zero_shot_logits(features, text_features) + alpha * (unit(features) @ double(weight).T + bias)


def gda_search(features: np.ndarray, labels: np.ndarray, *, few: bool = False, **case: Any) -> tuple[float, float]:
    """α and its accuracy, seven decades upwards."""
    return best_of(iter(GDA_ALPHAS), lambda alpha: gda_logits(features, alpha=alpha, **case), labels, few)


# Linear probe (Radford et al. 2021) with CoOp's search of c


def probe_objective(point: np.ndarray, features: np.ndarray, labels: np.ndarray, inverse: float) -> float:
    """`½ ‖W‖² + c Σ_n CE_n` of `f Wᵀ + b` on raw features; `point` is [W, b], [C, d + 1] or flat."""
    point = point.reshape(-1, np.shape(features)[-1] + 1)
    scores = double(features) @ point[:, :-1].T + point[:, -1]
    return float(0.5 * (point[:, :-1] ** 2).sum()) + inverse * len(labels) * numpy_clip.cross_entropy(scores, labels)


def probe_search(accuracy_of: Callable[[float], float]) -> float:
    """The kept c: the first best of seven decades; `lo, hi = c/10, 10 c`; then eight times:

    if acc(lo) < acc(hi) hi is kept and lo moves to the geometric middle, else lo is kept and hi moves there.
    """
    sweep = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
    kept = sweep[int(np.argmax([accuracy_of(inverse) for inverse in sweep]))]
    low, high = kept / 10, kept * 10
    for _ in range(8):
        middle = 10 ** (0.5 * (np.log10(low) + np.log10(high)))
        if accuracy_of(low) < accuracy_of(high):
            kept, low = high, middle
        else:
            kept, high = low, middle
    return float(kept)


# LP++ (Huang et al. 2024)


def lp_logits(
    features: np.ndarray, text_features: np.ndarray, weight: np.ndarray, bias: np.ndarray, alpha: np.ndarray
) -> np.ndarray:
    """`x Wᵀ + b + α ⊙ (x Tᵀ)` without temperature; W [C, d], b [C], α [C]."""
    x = unit(features)
    return x @ double(weight).T + bias + alpha * (x @ zero_shot_classifier(text_features).T)


def lp_loss_and_gradients(
    features: np.ndarray, labels: np.ndarray, text_features: np.ndarray, **values: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """CE, and its gradients with respect to `weight`, `bias` and `alpha`."""
    x = unit(features)
    scores = lp_logits(features, text_features, **values)
    through = (numpy_clip.softmax(scores) - np.eye(scores.shape[1])[labels]) / len(x)
    alpha = (through * (x @ zero_shot_classifier(text_features).T)).sum(0)
    return numpy_clip.cross_entropy(scores, labels), {"weight": through.T @ x, "bias": through.sum(0), "alpha": alpha}


def lp_train(
    features: np.ndarray,
    labels: np.ndarray,
    text_features: np.ndarray,
    bias: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray],
    steps: int,
) -> tuple[list[dict[str, np.ndarray]], list[float]]:
    """The values and the validation accuracy after each step, from a random `bias`.

    Start: `W_c = Σ of x over class c`, `α_c = 250 · mean over classes k of (mean over class k of x·T_k)`. W and b: SGD
    of momentum 0.9 without decay at `4 N / λmax(XᵀX)`. After steps 10, 20, …: `α -= lr_α · G`, where G is the sum of
    α's gradients over all steps since the first and `lr_α = N / (4 · max_c Σ_n (x_n·T_c)²)`.
    """
    x, text = unit(features), zero_shot_classifier(text_features)
    rate = 4 * len(x) / np.linalg.eigvalsh(x.T @ x)[-1]
    alpha_rate = len(x) / (4 * ((x @ text.T) ** 2).sum(0).max())
    alpha = np.full(len(text), 250 * np.mean([(x[labels == c] @ text[c]).mean() for c in range(len(text))]))
    values = {"weight": np.stack([x[labels == c].sum(0) for c in range(len(text))]), "bias": double(bias)}
    optimizer = optimizers.SGD(weight_decay=0.0)
    gathered = np.zeros_like(alpha)
    history, accuracies = [], []
    for step in range(1, steps + 1):
        _, gradients = lp_loss_and_gradients(features, labels, text_features, alpha=alpha, **values)
        values = optimizer.step(values, gradients, rate)
        gathered = gathered + gradients["alpha"]
        if step % 10 == 0:
            alpha = alpha - alpha_rate * gathered
        history.append({**values, "alpha": alpha})
        accuracies.append(accuracy(lp_logits(validation[0], text_features, **history[-1]), validation[1]))
    return history, accuracies


# CLAP (Silva-Rodríguez et al. 2024), and ZS-LP, which is CLAP without the penalty: prototypes w [C, d] start at
# t = mean over templates of raw g


def clap_logits(features: np.ndarray, prototypes: np.ndarray, scale: float) -> np.ndarray:
    """`s x unit(w)ᵀ`."""
    return scale * unit(features) @ unit(prototypes).T


def clap_penalties(features: np.ndarray, labels: np.ndarray, text_features: np.ndarray, scale: float) -> np.ndarray:
    """λ [C]: the mean over a class's rows of all passes of its own probability by the prototypes' start values."""
    raw, all_labels = rows(features, labels)
    zero_shot = numpy_clip.softmax(clap_logits(raw, double(text_features).mean(0), scale))
    return np.array([zero_shot[all_labels == c, c].mean() for c in range(zero_shot.shape[1])])


def clap_losses(
    features: np.ndarray,
    labels: np.ndarray,
    prototypes: np.ndarray,
    text_features: np.ndarray,
    scale: float,
    strengths: np.ndarray | None,
) -> dict[str, float]:
    """`CE + (1/C) Σ_c λ_c ‖w_c - t_c‖²`; ZS-LP has no `strengths` λ."""
    terms = {"cross_entropy": numpy_clip.cross_entropy(clap_logits(features, prototypes, scale), labels)}
    if strengths is not None:
        away = double(prototypes) - double(text_features).mean(0)
        terms["penalty"] = float((double(strengths) * (away**2).sum(-1)).mean())
    return terms


# ProLIP (Fahes et al. 2024): the vision projection W [Dv, d] alone is tuned, on rows z [N, Dv] before it


def prolip_losses(
    hidden: np.ndarray,
    labels: np.ndarray,
    projection: np.ndarray,
    original: np.ndarray,
    text_features: np.ndarray,
    strength: float,
) -> tuple[dict[str, float], np.ndarray]:
    """`CE(100 unit(z W) Tᵀ)` and `λ Σ (W - W⁰)²`, a sum over all entries; and the logits."""
    scores = zero_shot_logits(double(hidden) @ double(projection), text_features)
    penalty = strength * float(((double(projection) - double(original)) ** 2).sum())
    return {"cross_entropy": numpy_clip.cross_entropy(scores, labels), "penalty": penalty}, scores
