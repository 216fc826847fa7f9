"""The reference's LP++ and CLAP: gradients against finite differences, and cases done by hand."""

import numpy as np

from tests.reference import heads, heads_clap, heads_lp_plus_plus
from tests.reference.heads_cases import LABELS, C, D, arrays, close_to_slopes
from tests.reference.numpy_clip import softmax

# LP++


def test_lp_plus_plus_start_and_steps_by_hand():
    features = np.array([[3.0, 0, 0], [0, 2, 0], [0, 0.6, 0.8]])
    text = np.array([[[5.0, 0, 0], [0, 3.0, 4.0]]])
    case = {"features": features, "text_features": text}
    weight, alpha = heads_lp_plus_plus.start(labels=[0, 1, 1], **case)
    np.testing.assert_allclose(weight, [[1, 0, 0], [0, 1.6, 0.8]], rtol=1e-15)
    np.testing.assert_allclose(alpha, np.full(2, 250 * (1 + (0.6 + 1) / 2) / 2), rtol=1e-14)
    # XᵀX has the eigenvalues 1 and 1 ± 0.6 (two unit rows with cosine 0.6).
    rates = heads_lp_plus_plus.learning_rates(**case)
    np.testing.assert_allclose(rates, [4 * 3 / 1.6, 3 / (4 * (0.6**2 + 0.36**2 + 0.64**2 + 2 * 0.36 * 0.64))])


def lp_plus_plus_case() -> dict[str, np.ndarray]:
    """Texts that differ little, as CLIP's do: with α near 200 others would leave no gradient."""
    data = arrays()
    return {
        "features": data["features"][0] + 2.0,
        "labels": LABELS,
        "text_features": 1.0 + 0.01 * data["text_features"],
        "bias": np.array([0.2, -0.1, 0.05]),
    }


def test_lp_plus_plus_gradients():
    case = lp_plus_plus_case()
    rng = np.random.default_rng(8)
    values = {"weight": rng.normal(size=(C, D)), "bias": case.pop("bias"), "alpha": rng.normal(size=C)}
    _, gradients = heads_lp_plus_plus.loss_and_gradients(**case, **values)
    for name in values:
        close_to_slopes(
            gradients[name],
            lambda at, name=name: heads_lp_plus_plus.loss_and_gradients(**case, **(values | {name: at}))[0],
            values[name],
        )


def test_lp_plus_plus_alpha_moves_every_tenth_step_by_all_gradients_so_far():
    case = lp_plus_plus_case()
    validation = {"validation_features": case["features"], "validation_labels": LABELS}
    x = np.stack([row / np.linalg.norm(row) for row in case["features"]])
    text = x @ heads.zero_shot_classifier(case["text_features"]).T
    n = len(x)
    rate = 4 * n / np.linalg.norm(x, 2) ** 2
    alpha_rate = n / 4 / max((column**2).sum() for column in text.T)
    weight = np.stack([x[c == LABELS].sum(0) for c in range(C)])
    bias = case["bias"]
    alpha = np.full(C, 250 * np.mean([text[c == LABELS, c].mean() for c in range(C)]))
    first = alpha
    moves = np.zeros((C, D + 1))
    total = np.zeros(C)
    for step in range(1, 21):
        errors = softmax(x @ weight.T + bias + alpha * text) - np.eye(C)[LABELS]
        total = total + (errors * text).mean(0)
        moves = 0.9 * moves + errors.T @ np.concatenate([x, np.ones((n, 1))], 1) / n
        weight, bias = weight - rate * moves[:, :-1], bias - rate * moves[:, -1]
        if step in (10, 20):
            alpha = alpha - alpha_rate * total
        if step in (9, 10, 19, 20):
            fitted = heads_lp_plus_plus.train(**case, **validation, steps=step)
            for name, expected in (("weight", weight), ("bias", bias), ("alpha", alpha)):
                np.testing.assert_allclose(fitted.last[name], expected, rtol=1e-9, atol=1e-12)
            assert len(fitted.losses) == len(fitted.accuracies) == step
    assert np.abs(alpha - first).max() > 1e-3


def test_lp_plus_plus_a_tie_on_validation_replaces_the_best():
    case = lp_plus_plus_case()
    features = arrays(seed=2)["features"][0] + 2.0
    fitted = heads_lp_plus_plus.train(**case, validation_features=features, validation_labels=LABELS, steps=12)
    best = max(fitted.accuracies)
    tied = [step for step, value in enumerate(fitted.accuracies, start=1) if value == best]
    assert min(fitted.accuracies) < best and len(tied) > 1 and fitted.best_step == tied[-1] < 12
    scores = heads_lp_plus_plus.logits(features=features, text_features=case["text_features"], **fitted.best)
    assert heads.accuracy(scores, LABELS) == best


# CLAP


def test_clap_strengths_by_hand():
    features = np.array([[[2.0, 0.0], [0.0, 3.0]], [[1.0, 1.0], [0.0, 1.0]]])
    text = np.array([[[1.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 3.0]]])
    np.testing.assert_array_equal(heads_clap.start(text_features=text), [[2, 0], [0, 2]])
    strengths = heads_clap.penalties(features=features, labels=[0, 1], text_features=text, scale=2.0)
    sure = 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(strengths, [(sure + 0.5) / 2, sure], rtol=1e-14)
