"""LP++ (Huang et al. 2024). Letters: see `heads`; x = unit(f) of one augmented pass, `X [N, d]` all of them.

    logits = x Wᵀ + b + α ⊙ (x Tᵀ)                  no temperature; W [C, d], b [C], α [C]

Loss CE over all training images. W and b take SGD steps; α moves every tenth step by the sum of all its gradients.
"""

import dataclasses

import numpy as np

from tests.reference import heads, numpy_clip, optimizers


def logits(
    *, features: np.ndarray, text_features: np.ndarray, weight: np.ndarray, bias: np.ndarray, alpha: np.ndarray
) -> np.ndarray:
    """[B, C] of raw features [B, d] and raw text features [S, C, d]."""
    x = heads.unit(features)
    return x @ heads.double(weight).T + bias + alpha * (x @ heads.zero_shot_classifier(text_features).T)


def start(*, features: np.ndarray, labels: np.ndarray, text_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W [C, d] and α [C] before training, of raw features [N, d]; b is random.

    `W_c = Σ of x over class c` (a sum); `α_c = 250 · mean over classes k of (mean over class k of x·T_k)`.
    """
    labels = np.asarray(labels)
    x = heads.unit(features)
    text = heads.zero_shot_classifier(text_features)
    weight = np.stack([x[labels == c].sum(0) for c in range(len(text))])
    similarities = [(x[labels == c] @ text[c]).mean() for c in range(len(text))]
    return weight, np.full(len(text), 250 * np.mean(similarities))


def learning_rates(*, features: np.ndarray, text_features: np.ndarray) -> tuple[float, float]:
    """`lr_W = 4 N / λmax(XᵀX)` and `lr_α = N / (4 · max_c Σ_n (x_n·T_c)²)`."""
    x = heads.unit(features)
    text = heads.zero_shot_classifier(text_features)
    largest = np.linalg.eigvalsh(x.T @ x)[-1]
    return 4 * len(x) / largest, len(x) / (4 * ((x @ text.T) ** 2).sum(0).max())


def loss_and_gradients(
    *,
    features: np.ndarray,
    labels: np.ndarray,
    text_features: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    alpha: np.ndarray,
) -> tuple[float, dict[str, np.ndarray]]:
    """CE, and its gradients with respect to `weight`, `bias` and `alpha`."""
    x = heads.unit(features)
    scores = logits(features=features, text_features=text_features, weight=weight, bias=bias, alpha=alpha)
    through = heads.cross_entropy_gradient(scores, labels)
    gradients = {
        "weight": through.T @ x,
        "bias": through.sum(0),
        "alpha": (through * (x @ heads.zero_shot_classifier(text_features).T)).sum(0),
    }
    return numpy_clip.cross_entropy(scores, labels), gradients


@dataclasses.dataclass
class Trained:
    """What training gave, and on the way."""

    best: dict[str, np.ndarray]  # weight, bias, alpha of the step that validation keeps
    best_step: int  # counted from 1
    last: dict[str, np.ndarray]
    losses: list[float]  # before each step
    accuracies: list[float]  # on validation, after each step


def train(
    *,
    features: np.ndarray,
    labels: np.ndarray,
    text_features: np.ndarray,
    bias: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    steps: int = 300,
) -> Trained:
    """All steps from the start values and the given random `bias` [C], on raw features [N, d] and [Nval, d].

    W and b: SGD of momentum 0.9 without decay at lr_W. After steps 10, 20, 30, …: `α -= lr_α · G`, where G is the
    sum of α's gradients over all steps since the first; it is never cleared. The step of best validation accuracy
    is kept; a tie replaces it.
    """
    rate, alpha_rate = learning_rates(features=features, text_features=text_features)
    weight, alpha = start(features=features, labels=labels, text_features=text_features)
    optimizer = optimizers.SGD(weight_decay=0.0)
    values = {"weight": weight, "bias": heads.double(bias)}
    gathered = np.zeros_like(alpha)
    trained = Trained({}, 0, {}, [], [])
    highest = 0.0
    for step in range(1, steps + 1):
        loss, gradients = loss_and_gradients(
            features=features, labels=labels, text_features=text_features, alpha=alpha, **values
        )
        values = optimizer.step(values, gradients, rate)
        gathered = gathered + gradients["alpha"]
        if step % 10 == 0:
            alpha = alpha - alpha_rate * gathered
        trained.losses.append(loss)
        trained.last = {**values, "alpha": alpha}
        scores = logits(features=validation_features, text_features=text_features, **trained.last)
        trained.accuracies.append(heads.accuracy(scores, validation_labels))
        if trained.accuracies[-1] >= highest:
            highest = trained.accuracies[-1]
            trained.best = trained.last
            trained.best_step = step
    return trained
