"""The perturbation test of a study against one image, one map and one step at a time, in plain NumPy."""

import collections

import jax
import numpy as np
import pytest

from clipbias.analysis import faithfulness
from clipbias.analysis.faithfulness import (
    FRACTIONS,
    MAPS,
    area_under_curve,
    compute_faithfulness,
    distinct_rows,
    ranks_to_remove,
)
from clipbias.analysis.model import Model
from clipbias.analysis.relevancy import OF_TARGET, REDUCTIONS, MapOptions, Relevancy
from clipbias.analysis.study import Study, StudyOptions
from clipbias.data import Split
from clipbias.data.images import pictures
from clipbias.tuning import Task
from clipbias.tuning.tuned import Tuned
from tests.analysis import test_study
from tests.analysis.models import CLASS_NAMES

COUNT = 5
BROKEN = 3


@pytest.fixture(scope="module")
def raw(clip):
    return pictures(test_study.split().subset(range(COUNT)), np.arange(COUNT), clip.preprocessing.resizing)


@pytest.fixture(scope="module")
def model(clip, raw):
    """Tells images with no patch, some patches and all patches black apart."""
    task = Task(clip, "taskres", CLASS_NAMES, alpha=1.0)
    some = raw[0].copy()
    some[: len(some) // 2] = 0
    seen = clip.preprocessing.normalize(np.stack([raw[0], some, np.zeros_like(some)]))
    features = np.asarray(jax.jit(task.image_features)(clip.params, task.init(), seen))
    features = features - features.mean(0)
    (name,) = task.shapes
    learnables = {name: 1e3 * features / np.linalg.norm(features, axis=-1, keepdims=True)}
    return Model("zero_shot", "TaskRes", Tuned(task, learnables))


@pytest.fixture(scope="module")
def classify(clip, model):
    """Raw images to classes."""
    logits = jax.jit(model.task.logits)
    return lambda images: np.asarray(
        logits(clip.params, model.learnables, clip.preprocessing.normalize(images))
    ).argmax(-1)


@pytest.fixture(scope="module")
def split(model, classify, raw):
    """Some labels are what is predicted, others are not."""
    labels = (classify(raw) + np.array([0, 0, 1, 0, 2])) % 3
    images = test_study.split(broken=BROKEN).subset(range(COUNT))
    return Split(images.keys, labels, images.read)


def maps_by_hand(task, params, learnables, images, targets, options=None, text=None):
    """Of `explanations`' form, told apart by pixels, kind and, where it has a say, target; `test_sections` has its own.

    Patches are weighed by numbers without ties.
    """
    assert options in (None, MapOptions()) and text is None
    patches = images.reshape(len(images), 4, 4, 4, 4, 3).mean((2, 4, 5)).reshape(len(images), 1, 16)
    draw = np.random.default_rng(0)
    maps = {}
    for name in REDUCTIONS:
        weights = draw.normal(size=(2, 16)).astype(np.float32)
        rows = patches * weights[0] + targets[..., None] * weights[1] * (name in OF_TARGET)
        maps[name] = Relevancy(rows, rows, targets)
    return maps


@pytest.fixture(autouse=True)
def explained_by_hand(monkeypatch):
    """In place of `explanations`, which `test_relevancy` compares with its own."""
    monkeypatch.setattr(faithfulness, "explanations", maps_by_hand)


@pytest.fixture(scope="module")
def expected(clip, model, classify, raw, split):
    """Accuracy after each step by map, direction and target."""
    patch = clip.config.vision.patch_size
    grid = clip.config.vision.grid
    predicted = classify(raw)
    hits = collections.defaultdict(list)
    targets = np.stack([predicted, split.labels], axis=1)
    maps = jax.device_get(jax.jit(maps_by_hand)(*(None,) * 3, clip.preprocessing.normalize(raw), targets))
    for index in (index for index in range(COUNT) if index != BROKEN):
        key = jax.random.fold_in(jax.random.key(0), int(raw[index].astype(np.uint32).sum()))
        for k, target in enumerate(("predicted", "true")):
            for name in MAPS:
                if name == "random":
                    values = np.asarray(jax.random.uniform(key, (grid * grid,)))
                else:
                    values = np.asarray(maps[name].vision)[index, k, : grid * grid]
                # A random order serves both directions.
                for direction, signed in (("positive", -values), ("negative", -values if name == "random" else values)):
                    image = raw[index].copy()
                    images = []
                    order = np.argsort(signed, kind="stable")
                    for fraction in FRACTIONS:
                        for at in order[: round(fraction * grid * grid)]:
                            row, column = divmod(int(at), grid)
                            image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = 0
                        images.append(image.copy())
                    # As many at a time as there are images, so that nothing more is compiled.
                    predictions = np.concatenate(
                        [classify(np.stack(images[i : i + COUNT])) for i in range(0, len(images), COUNT)]
                    )
                    hits[name, direction, target].append(predictions == split.labels[index])
    return {names: np.mean(rows, axis=0) for names, rows in hits.items()}


def test_curves_are_those_of_one_image_after_the_other(model, split, expected, tmp_path):
    study = Study([model], split, StudyOptions(batch_size=2, on_image_error="skip"), tmp_path)
    result = study.run({"it": compute_faithfulness(study)})["it"].models["zero_shot"]
    assert result.count == COUNT - 1
    for (name, direction, target), curve in expected.items():
        np.testing.assert_allclose(result.maps[name][direction][target].accuracy, curve, rtol=1e-6)
    # Curves differ from step to step and map to map, or any mistake would do.
    assert len({tuple(curve) for curve in expected.values()}) > 6


def test_of_equal_patches_the_first_goes_first():
    first, last = np.asarray(ranks_to_remove(np.array([[0.1, 0.9, 0.5, 0.5]], np.float32)))
    assert (first.tolist(), last.tolist()) == ([[3, 0, 1, 2]], [[0, 3, 1, 2]])


def test_area_under_curve():
    assert area_under_curve((0.0, 0.5, 0.75), np.array([1.0, 1.0, 0.0])) == pytest.approx((0.5 + 0.125) / 0.75)


def test_nothing_is_classified_where_no_image_could_be_read():
    images, patches, which = distinct_rows(np.ones((2, 3, 9), bool), np.zeros(3, bool))
    assert images.shape == (0,) and patches.shape == (0, 9) and not which.any()
