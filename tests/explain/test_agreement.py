"""How far two models decide alike, against formulas written out and against coverage in simulated tables."""

import numpy as np
import pytest
from scipy.special import log_softmax

from clipbias.explain.agreement import accuracy_difference, agreement, divergences, mean_divergence, proven_margin

NORMAL = 1.959963984540054


def test_divergences_and_their_mean() -> None:
    teacher, student = np.random.default_rng(0).normal(0, 30, (2, 40, 5)).astype(np.float32)
    log_p, log_q = log_softmax(teacher.astype(np.float64), -1), log_softmax(student.astype(np.float64), -1)
    expected = np.einsum("nc,nc->n", np.exp(log_p), log_p - log_q)
    np.testing.assert_allclose(divergences(teacher, student), expected, rtol=1e-9)
    mean = mean_divergence(teacher, student)
    half = 2.022690920 * expected.std(ddof=1) / np.sqrt(40)  # Student's quantile for 39 degrees of freedom
    np.testing.assert_allclose(
        (mean.value, mean.low, mean.high), expected.mean() + half * np.array([0, -1, 1]), rtol=1e-6
    )
    assert mean_divergence(teacher, teacher).value == 0
    few = mean_divergence(np.array([[0.0, 0.0], [0.0, 9.0]]), np.zeros((2, 2)))
    assert few.low == 0 < few.value  # a divergence is not negative


@pytest.mark.parametrize(("same", "of"), [(7, 10), (50, 50), (0, 8)])
def test_agreement_has_wilsons_interval(same: int, of: int) -> None:
    share = agreement(np.arange(of) < same)
    p, z = same / of, NORMAL
    middle = (p + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z / (1 + z**2 / of) * np.sqrt(p * (1 - p) / of + z**2 / (4 * of**2))
    assert share is not None and share.value == p
    np.testing.assert_allclose((share.low, share.high), (middle - half, middle + half), atol=1e-9)
    assert agreement(np.zeros(0, bool)) is None


def test_a_paired_difference_by_hand() -> None:
    """Of 100 images 12 only the student has right, and 20 only the teacher."""
    student = np.zeros(100, bool)
    teacher = np.zeros(100, bool)
    student[:12] = teacher[12:32] = student[32:60] = teacher[32:60] = True
    found = accuracy_difference(student, teacher)
    b, c, n = 12.5, 20.5, 102
    error = np.sqrt(b + c - (b - c) ** 2 / n) / n
    expected = (b - c) / n + NORMAL * error * np.array([-1, 1])
    assert found.value == pytest.approx(-0.08)
    np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-9)
    assert proven_margin(found) == pytest.approx(-expected[0])
    assert proven_margin(accuracy_difference(teacher | True, student & False)) == 0


def test_equal_decisions_prove_a_margin_that_shrinks_with_the_images() -> None:
    margins = [proven_margin(accuracy_difference(np.ones(n, bool), np.ones(n, bool))) for n in (20, 200, 2000)]
    np.testing.assert_allclose(margins, [NORMAL / (n + 2) * np.sqrt(1) for n in (20, 200, 2000)], rtol=1e-9)


def test_the_interval_covers() -> None:
    rng = np.random.default_rng(2)
    chances = (0.02, 0.06, 0.5, 0.42)  # only the student, only the teacher, both, none
    covered = []
    for _ in range(2000):
        cells = rng.choice(4, 120, p=chances)
        found = accuracy_difference(np.isin(cells, (0, 2)), np.isin(cells, (1, 2)))
        covered.append(found.low <= -0.04 <= found.high)
    assert 0.935 < np.mean(covered) < 0.985
