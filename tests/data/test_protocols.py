"""Few-shot splits and protocols against plain renderings on (path, label, name) items."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from clipbias import data
from clipbias.data import catalog, protocols
from clipbias.data.dataset import Dataset, Split
from clipbias.data.few_shot import few_shot, imbalanced_counts
from tests.data import miniatures
from tests.data.miniatures import plain_draw


def make_split(labels, prefix) -> Split:
    return Split(tuple(f"{prefix}/{index}" for index in range(len(labels))), labels, lambda index: b"")


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
        picked = few_shot(train, val, shots=shots, seed=seed)
        for split, indices, drawn in zip((train, val), picked, plain_draw(*lists, shots, seed), strict=True):
            assert [split.keys[index] for index in indices] == [path for path, _ in drawn]


def test_the_global_generator_is_left_alone():
    before = random.getstate()
    few_shot(make_split(GROUPED, "train"), None, shots=4, seed=1)
    assert random.getstate() == before


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


# Protocols.


def items(split, class_names):
    return [(key, label, class_names[label]) for key, label in zip(split.keys, split.labels.tolist(), strict=True)]


def plain_halves(lists, half):
    """Plain rendering of the class halves: sorted labels of the training list, ceil(n / 2) first."""
    labels = sorted({label for _, label, _ in lists[0]})
    middle = math.ceil(len(labels) / 2)
    selected = labels[:middle] if half == "base" else labels[middle:]
    renumbered = {label: position for position, label in enumerate(selected)}
    return [[(path, renumbered[y], name) for path, y, name in each if y in selected] for each in lists]


@pytest.mark.parametrize("name", ["imagenet", "oxford_pets", "fgvc_aircraft"])
def test_base_to_new_equals_plain_rendering(fifteen, name):
    dataset = data.load(name, data_dir=fifteen)
    train, val, test = (items(dataset.splits[part], dataset.class_names) for part in ("train", "val", "test"))
    for shots, seed in ((1, 1), (2, 2), (4, 3)):
        plan = protocols.base_to_new(dataset, shots=shots, seed=seed)
        drawn = plain_draw(train, val, shots, seed)
        base_train, base_val, base_test = plain_halves([*drawn, test], "base")
        *_, new_test = plain_halves([*drawn, test], "new")
        source = plan.source
        assert items(source.splits["train"], source.class_names) == base_train
        assert items(source.splits["val"], source.class_names) == base_val
        base, new = plan.evaluations
        assert items(base.dataset.splits["test"], base.dataset.class_names) == base_test
        assert items(new.dataset.splits["test"], new.dataset.class_names) == new_test
        assert (base.name, new.name) == ("base", "new")
        assert base.source_labels == tuple(range(len(base.dataset.class_names))) and new.source_labels is None


def test_halves_have_the_published_sizes():
    published = {"oxford_pets": (19, 18), "eurosat": (5, 5)}
    for name, sizes in published.items():
        classes = catalog.ENTRIES[name].classes
        test = Split(tuple(map(str, range(classes))), range(classes), lambda index: b"")
        dataset = Dataset(name, tuple(map(str, range(classes))), "{}", {"train": test, "test": test})
        plan = protocols.base_to_new(dataset, shots=1, seed=1)
        assert tuple(len(evaluation.dataset.class_names) for evaluation in plan.evaluations) == sizes


def test_cross_dataset_takes_the_other_ten(fifteen):
    plan = protocols.make_protocol("cross_dataset", "imagenet", lambda name: data.load(name, data_dir=fifteen), shots=1)
    assert [evaluation.name for evaluation in plan.evaluations] == list(catalog.ELEVEN)
    assert plan.evaluations[0].source_labels == (0, 1, 2, 3)
    assert all(evaluation.source_labels is None for evaluation in plan.evaluations[1:])
    assert plan.evaluations[9].dataset.template == "a centered satellite photo of {}."
    assert len(plan.source.splits["train"]) == 4


def test_domain_generalization_maps_classes_to_the_source(fifteen, tmp_path):
    miniatures.make(tmp_path, "imagenet_a")
    images = tmp_path / "imagenet-adversarial" / "imagenet-a"
    for path in (images / miniatures.WNIDS[1]).iterdir():
        path.unlink()
    (images / miniatures.WNIDS[1]).rmdir()

    def load(name):
        return data.load(name, data_dir=tmp_path if name == "imagenet_a" else fifteen)

    plan = protocols.make_protocol("domain_generalization", "imagenet", load, shots=1, seed=2)
    labels = {evaluation.name: evaluation.source_labels for evaluation in plan.evaluations}
    assert list(labels) == ["imagenet", *catalog.VARIANTS]
    # Two classes are called "missile": they are told apart by WordNet id, not by name.
    assert labels["imagenet_a"] == (0, 2, 3) and labels["imagenet_v2"] == (0, 1, 2, 3)
    assert load("imagenet_a").splits["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]


def noise(sizes: dict[str, tuple[int, ...]]) -> Dataset:
    """So many examples of each class in every split."""
    splits = {}
    for part, counts in sizes.items():
        labels = np.repeat(np.arange(len(counts)), counts)
        splits[part] = Split(tuple(f"{part}/{index}" for index in range(len(labels))), labels, lambda index: b"")
    return Dataset("noise", ("a", "b", "c"), "a {}.", splits)


def test_validation_is_the_whole_split_of_the_training_classes():
    dataset = noise({"train": (9, 9, 9), "val": (5, 6, 7), "test": (1, 1, 1)})
    validation = protocols.base_to_new(dataset, shots=2, seed=1).validation()
    assert validation.keys == tuple(f"val/{index}" for index in range(11))
    assert np.bincount(validation.labels).tolist() == [5, 6]
    for plan in (protocols.few_shot(dataset, shots=2, seed=1), protocols.full(dataset)):
        assert plan.validation().keys == dataset.splits["val"].keys


@pytest.mark.parametrize(("shots", "counts"), [(1, [1, 1, 1]), (3, [3, 2, 0]), (8, [4])])
def test_validation_without_a_split_is_what_was_not_picked(shots, counts):
    """At most as many images of a class as picks, and no more than four."""
    dataset = noise({"train": (19, 5, 3), "test": (1, 1, 1)})
    plan = protocols.few_shot(dataset, shots=shots, seed=2)
    validation = plan.validation()
    picked = plan.source.splits["train"].keys
    assert not set(validation.keys) & set(picked) and set(validation.keys) <= set(dataset.splits["train"].keys)
    assert np.bincount(validation.labels, minlength=len(counts)).tolist() == counts
    base = protocols.base_to_new(dataset, shots=shots, seed=2)
    assert set(base.validation().labels.tolist()) <= {0, 1}
    assert not set(base.validation().keys) & set(base.source.splits["train"].keys)
