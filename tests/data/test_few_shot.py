"""The few-shot draw against a plain rendering that works on (path, label) pairs and the global generator."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from clipbias.data.dataset import Split
from clipbias.data.few_shot import few_shot, imbalanced_counts


def make_split(labels, prefix) -> Split:
    return Split(tuple(f"{prefix}/{index}" for index in range(len(labels))), labels, lambda index: b"")


def plain_draw(lists, shots, seed):
    """Seeds the global generator once and draws from the lists one after the other."""
    state = random.getstate()
    random.seed(seed)
    drawn = []
    for items, count in zip(lists, (shots, min(shots, 4)), strict=True):
        groups = {}
        for path, label in items:
            groups.setdefault(label, []).append(path)
        picked = []
        for paths in groups.values():
            picked += random.sample(paths, count) if len(paths) >= count else paths
        drawn.append(picked)
    random.setstate(state)
    return drawn


GROUPED = np.repeat(np.arange(5), 20)
INTERLEAVED = np.random.default_rng(0).permutation(GROUPED)
LATE_FIRST = np.concatenate([np.repeat([3, 1], 18), np.repeat([0, 2], 30)])
SHORT = np.concatenate([np.repeat([2, 0], 18), np.repeat(1, 3), np.repeat(3, 1)])


@pytest.mark.parametrize("labels", [GROUPED, INTERLEAVED, LATE_FIRST, SHORT])
@pytest.mark.parametrize("shots", [1, 4, 16])
def test_equals_plain_rendering(labels, shots):
    train, val = make_split(labels, "train"), make_split(labels[::-1], "val")
    for seed in (1, 2, 3):
        lists = [list(zip(split.keys, split.labels.tolist(), strict=True)) for split in (train, val)]
        expected = plain_draw(lists, shots, seed)
        picked = few_shot(train, val, shots=shots, seed=seed)
        assert [train.keys[index] for index in picked[0]] == expected[0]
        assert [val.keys[index] for index in picked[1]] == expected[1]


def test_counts_and_independence_from_val():
    train = make_split(INTERLEAVED, "train")
    with_val, val = few_shot(train, train, shots=8, seed=1)
    alone, nothing = few_shot(train, None, shots=8, seed=1)
    assert np.bincount(train.labels[with_val]).tolist() == [8] * 5
    assert np.bincount(train.labels[val]).tolist() == [4] * 5
    np.testing.assert_array_equal(with_val, alone)
    assert len(nothing) == 0
    assert not np.array_equal(with_val, few_shot(train, None, shots=8, seed=2)[0])


def test_global_generator_is_left_alone():
    random.seed(7)
    expected = random.random()
    random.seed(7)
    few_shot(make_split(GROUPED, "train"), None, shots=4, seed=1)
    assert random.random() == expected


def test_short_classes_are_said(caplog):
    with caplog.at_level("WARNING"):
        few_shot(make_split(SHORT, "train"), None, shots=16, seed=1)
    assert "class 1 has 3, class 3 has 1" in caplog.text
    few_shot(make_split(SHORT, "train"), None, shots=16, seed=1, class_names=("ant", "bee", "cat", "dog"))
    assert "bee has 3, dog has 1" in caplog.text


def by_a_divisor(available, shots, seed):
    """Counts by the definition: shares over a common divisor, rounded, between one and what there is, in all as many.

    Of the parameter 1 a gamma variate is an exponential one, made of a number of Python's documented generator.
    """
    stream = random.Random(seed)
    shares = np.array([-math.log(1 - stream.random()) for _ in available])
    total = min(shots * np.count_nonzero(available), available.sum())

    def counts(divisor):
        return np.clip(np.rint(shares / divisor), np.minimum(available, 1), available)

    low, high = 1e-9, 1e9  # too many images, and too few or just enough
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if counts(middle).sum() > total else (low, middle)
    return counts(high)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("available", "shots"), [([100] * 6, 4), ([3, 100, 0, 100, 1, 100], 4), ([5, 3, 4], 16), ([9, 9, 9], 1)]
)
def test_imbalanced_counts_are_shares_over_a_divisor(available, shots, seed):
    available = np.array(available)
    counts = imbalanced_counts(available, shots=shots, seed=seed, concentration=1.0)
    assert counts.sum() == min(shots * np.count_nonzero(available), available.sum())
    np.testing.assert_array_equal(counts, by_a_divisor(available, shots, seed))


def test_imbalanced_counts_vary_as_a_dirichlet_distribution_does():
    """Where hardly anything is rounded, they have its marginal distribution: Beta(a, (C - 1) a)."""
    for concentration in (0.5, 20.0):
        draws = [
            imbalanced_counts(np.full(4, 10**6), shots=100, seed=seed, concentration=concentration)
            for seed in range(100)
        ]
        shares = np.array(draws) / 400
        result = stats.kstest(shares[:, 1], stats.beta(concentration, 3 * concentration).cdf)
        assert result.pvalue > 0.01, concentration


def test_imbalanced_images_are_drawn_within_each_class():
    train = make_split(INTERLEAVED, "train")
    counts = np.array([1, 20, 3, 7, 2])
    picked, val = few_shot(train, train, shots=4, seed=1, counts=counts)
    assert np.bincount(train.labels[picked]).tolist() == counts.tolist() and len(set(picked.tolist())) == 33
    assert np.bincount(train.labels[val]).tolist() == [4] * 5
    assert not np.array_equal(picked, few_shot(train, None, shots=4, seed=2, counts=counts)[0])
