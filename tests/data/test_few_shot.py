"""The few-shot draw against a plain rendering that works on (path, label) pairs and the global generator."""

import random

import numpy as np
import pytest

from clipbias.data.dataset import Split
from clipbias.data.few_shot import few_shot


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
@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
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
