"""UPL against NumPy: picks, logits, loss, gradients and steps; and the protocol that keeps labels out."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset, Split
from clipbias.data.few_shot import most_confident
from clipbias.training.device import Compute
from clipbias.training.run import make_job
from clipbias.training.spec import make_groups
from tests.data.pictures import encoded
from tests.reference import prompts
from tests.training.conftest import TinySweep
from tests.tuning import weights_common as common
from tests.tuning.weights_common import CLASS_NAMES

TEMPLATE = "a blurry photo of {}."
IMAGES = 40
SHOTS = 4


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Random pictures, whose own labels say nothing."""
    raw, _ = common.pictures(8, IMAGES)
    splits = {}
    for name, (first, last) in {"train": (0, 30), "val": (30, 34), "test": (34, IMAGES)}.items():
        images = raw[first:last]
        keys = tuple(f"{name}/{i}" for i in range(last - first))
        labels = np.arange(last - first) % len(CLASS_NAMES)
        splits[name] = Split(keys, labels, lambda index, images=images: encoded(images[index]))
    return Dataset("drawn", CLASS_NAMES, TEMPLATE, splits)


def sweep_of(clip: Clip, dataset: Dataset, folder: Path, protocol: str) -> TinySweep:
    options = {"upl": {"tokens": 5, "sets": 2}}
    compute = Compute(trackers=(), eval_batch_size=7)
    recipe = dataclasses.replace(common.SGD, epochs=2)
    return TinySweep(clip, dataset, recipe, folder, protocol=protocol, options=options, compute=compute)


def picked(clip: Clip, dataset: Dataset, folder: Path, method: str, protocol: str) -> list[tuple[str, int]]:
    """The names and labels of the images that are trained on."""
    tiny = sweep_of(clip, dataset, folder, protocol)
    (group,) = make_groups(tiny.specs(method, shots=(SHOTS,)))
    images = [run.images for run in make_job(group, tiny.context).runs]
    first, second = (list(zip(picks.split.keys, picks.labels.tolist(), strict=True)) for picks in images)
    if method == "upl" or protocol == "pseudo_labels":
        assert first == second  # a seed changes contexts alone
    return first


@pytest.mark.ci
def test_picks_equal_numpy(pair, dataset, tmp_path):
    clip, reference = pair
    images = common.pictures(8, IMAGES)[1]
    pseudo = prompts.pseudo_labels(reference, CLASS_NAMES, images[:30], template=TEMPLATE, shots=SHOTS)
    counts = np.bincount([label for _, label in pseudo], minlength=len(CLASS_NAMES))
    assert counts.max() == SHOTS and 0 < len(pseudo) < 30  # some are left out
    expected = [(f"train/{image}", label) for image, label in pseudo]
    for method, protocol in (("upl", "few_shot"), ("upl", "pseudo_labels"), ("coop", "pseudo_labels")):
        assert picked(clip, dataset, tmp_path, method, protocol) == expected
    assert picked(clip, dataset, tmp_path, "coop", "few_shot") != expected
    # Among the base classes, the images of these alone.
    base = dataset.with_classes(range(3))
    known = [int(key.partition("/")[2]) for key in base.split("train").keys]
    fewer = prompts.pseudo_labels(reference, CLASS_NAMES[:3], images[known], template=TEMPLATE, shots=SHOTS)
    actual = picked(clip, dataset, tmp_path, "upl", "base_to_new")
    assert actual == [(f"train/{known[image]}", label) for image, label in fewer]


def test_picks_are_per_class_and_by_confidence():
    predicted, other_odds = np.array([0, 1, 0, 0, -1, 1, 3]), np.array([0.3, 0.2, 1e-30, 1e-20, 0.0, 0.2, 9.0])
    np.testing.assert_array_equal(most_confident(predicted, other_odds, shots=2), [2, 3, 1, 5, 6])
    np.testing.assert_array_equal(most_confident(predicted, other_odds, shots=None), [2, 3, 0, 1, 5, 6])
    assert most_confident(predicted[4:5], other_odds[4:5], shots=2).size == 0


def test_no_label_is_looked_at(pair, dataset, tmp_path):
    blind = dataclasses.replace(dataset.splits["train"], labels=np.zeros(30, int))
    blind = dataclasses.replace(dataset, splits={**dataset.splits, "train": blind})
    for method in ("upl", "clap", "coop"):
        labelled, other = (picked(pair[0], data, tmp_path, method, "pseudo_labels") for data in (dataset, blind))
        assert labelled == other
