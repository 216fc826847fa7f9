"""TPT against NumPy: views that count, loss, gradients, steps and logits; and that every image starts anew."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Split, catalog, transforms
from clipbias.data.pipeline import test_batches as evaluated
from clipbias.data.transforms import Resizing
from clipbias.training import placement
from clipbias.training.batches import Reading
from clipbias.training.evaluator import Budget, Evaluator
from clipbias.training.forward import EvalInputs, EvalStatic
from clipbias.tuning import Task, make_method
from tests.data.pictures import encoded, picture
from tests.reference import methods, prompts
from tests.reference.differences import along_directions
from tests.reference.weights import double
from tests.tuning import weights_common as common
from tests.tuning.weights_common import CLASS_NAMES

CROPS = 11
RESIZING = Resizing(8)
COUNT = 4
OPTIONS = {"crops": CROPS, "share": 0.3, "decay": 2.0}  # 3 of 12 views; a decay that shows
RULE = {"share": 0.3, "decay": 2.0}


@pytest.fixture(scope="module")
def pair(tiny) -> tuple[Clip, methods.Reference]:
    return tiny(vision=(16, 2, 2), image_size=8)


@pytest.fixture(scope="module")
def views() -> tuple[np.ndarray, np.ndarray]:
    """Images with their crops, uint8 `[B, 1 + V, R, R, 3]`, and the same normalised, float64."""
    raw = np.stack([transforms.test_views(picture(seed), RESIZING, CROPS) for seed in range(COUNT)])
    return raw, (raw / 255 - common.MEAN) / common.DEVIATION


@pytest.fixture(scope="module")
def start(pair) -> dict[str, np.ndarray]:
    return common.drawn(Task(pair[0], "tpt", CLASS_NAMES).shapes, 0.4, seed=2)


@pytest.mark.ci
def test_views_that_count_loss_and_gradient_equal_numpy(pair, start, views):
    clip, reference = pair
    raw, images = views
    task = Task(clip, "tpt", CLASS_NAMES, **OPTIONS)
    features = jax.jit(task.classifier.encode_images)(
        clip.params, task.method.adapt(start), clip.preprocessing.normalize(jnp.asarray(raw))
    )
    assert features.shape[:2] == (COUNT, 1 + CROPS)

    def logits(learned, crops):
        return task.classifier.head(
            clip.params, learned, crops, task.classifier.encode_text(clip.params, task.method.adapt(learned), task.text)
        )

    def objective(learned, crops):
        return task.method.loss(lambda learned: logits(learned, crops), learned, None)

    differentiate = jax.jit(jax.value_and_grad(objective, has_aux=True))
    for crops, image in zip(features, images, strict=True):
        surest = prompts.most_confident(methods.task_logits(reference, "coop", CLASS_NAMES, double(start), image), 0.3)
        (value, picks), slopes = differentiate(start, crops)
        np.testing.assert_array_equal(picks, surest)
        entropy = functools.partial(prompts.tpt_entropy, reference, CLASS_NAMES, views=image, surest=surest)
        assert float(value) == pytest.approx(entropy(double(start)), rel=common.LOGITS)
        assert max(along_directions(entropy, double(start), slopes).values()) < common.GRADIENTS


@pytest.mark.ci
def test_tuned_contexts_and_logits_equal_numpy(pair, start, views):
    clip, reference = pair
    raw, images = (x[:2] for x in views)  # differences in every coordinate take long
    steps = 2
    task = Task(clip, "tpt", CLASS_NAMES, steps=steps, **OPTIONS)
    normal = clip.preprocessing.normalize(jnp.asarray(raw))
    compute = jax.jit(task.logits)
    logits = np.asarray(compute(clip.params, start, normal))
    expected = prompts.tpt_logits(reference, CLASS_NAMES, start, images, steps=steps, **RULE)
    common.close(logits, expected, 2e-4)  # AdamW's first steps are as long as the rate, whatever the gradient's size
    untouched = methods.task_logits(reference, "coop", CLASS_NAMES, double(start), images[:, 0])
    assert np.abs(logits - untouched).max() > 1e-2  # so that the steps are what is compared
    # Every image starts anew: alone, or in another order, its logits are the same.
    again = np.asarray(compute(clip.params, start, normal[::-1]))[::-1]
    np.testing.assert_allclose(again, logits, rtol=1e-5, atol=1e-5)


def test_features_of_views_are_computed_once(pair, start, monkeypatch):
    clip = pair[0]
    mesh = placement.single_device()
    seen = []
    split = Split(tuple("abcd"), np.arange(COUNT), lambda index: encoded(picture(index)))
    stacked = jax.tree.map(lambda leaf: leaf[None], start)

    def colours(static, params, learnables, images):
        seen.append(np.asarray(images))
        return images.astype(jnp.float32).mean((-3, -2))[None]

    monkeypatch.setattr("clipbias.training.forward.image_features", colours)

    def features(evaluator: Evaluator, name: str, **options) -> list:
        task = Task(clip, name, CLASS_NAMES, **OPTIONS, **options)
        static = EvalStatic(task.classifier, clip.preprocessing, mesh, runs=1)
        return list(evaluator._features(static, EvalInputs(clip.params, stacked, task.text)))

    shared, narrow = (Evaluator(split, Reading(mesh), batch_size=24, budget=Budget(size)) for size in (1 << 20, 1))
    first, again = features(shared, "tpt"), features(shared, "tpt_coop")
    assert len(seen) == len(first) == COUNT
    for (rows, batch), (other, copy) in zip(first, again, strict=True):
        np.testing.assert_array_equal(rows, other)
        assert copy.keys() == {"labels", "mask"} and all((copy[name] == batch[name]).all() for name in copy)
    mixed = features(shared, "tpt", augmix=True)
    expected = [transforms.test_views(picture(seed), RESIZING, CROPS, mixed=True) for seed in range(COUNT)]
    np.testing.assert_array_equal(np.concatenate(seen[COUNT:]), expected)
    assert (mixed[0][0] != first[0][0]).any()
    for _ in range(2):  # nothing is kept where there is no room
        features(narrow, "tpt")
    assert len(seen) == 4 * COUNT


def test_views_depend_on_the_image_alone():
    images = [picture(0), picture(1)]
    crops = transforms.test_views(images[0], RESIZING, 40)
    np.testing.assert_array_equal(crops[0], transforms.test_image(images[0], RESIZING))
    assert len({view.tobytes() for view in crops}) > 38  # no two crops are the same
    split = Split(("x", "y"), np.zeros(2, int), lambda index: encoded(images[1 - index]))
    batch = next(evaluated(split, resizing=RESIZING, batch_size=2, crops=40))
    np.testing.assert_array_equal(batch["images"][1], crops)


def test_augmix_is_for_the_authors_datasets():
    names = (*catalog.ELEVEN, *catalog.VARIANTS, "demo/digits")
    names_with = [name for name in names if make_method("tpt").options_for(name, None) == {"augmix": True}]
    assert names_with == [name for name in catalog.ELEVEN if name != "imagenet"]
    choices = {None: False, False: False, True: True}
    assert all(make_method("tpt_coop", augmix=augmix).augmix_at_test() is made for augmix, made in choices.items())


def test_crops_are_bilinear_of_the_whole_image_and_flipped_half_the_time():
    # 100 at the left end and 150 at the right one, which the centre does not show: a filter that overshoots would leave
    # that range.
    wide = np.full((16, 64, 3), 120, np.uint8)
    wide[:, :20], wide[:, 44:] = 100, 150
    wide[::3] = 100
    views = transforms.test_views(wide, RESIZING, 400)[1:]
    assert views.min() >= 100 and views.max() <= 150
    assert (views.reshape(400, -1).max(-1) == 150).sum() > 20
    slope = np.linspace(0, 255, 64).astype(np.uint8)
    ramp = transforms.test_views(np.broadcast_to(slope[None, :, None], (64, 64, 3)), RESIZING, 400)[1:].astype(int)
    flipped = (ramp[:, 0, 0, 0] > ramp[:, 0, -1, 0]).mean()
    assert 0.4 < flipped < 0.6


@pytest.mark.ci
def test_coop_trains_what_tpt_then_tunes(pair, start):
    clip = pair[0]
    inputs = clip.preprocessing.normalize(jnp.asarray(common.pictures(8)[0])), common.LABELS
    programs = [
        jax.make_jaxpr(jax.value_and_grad(Task(clip, name, CLASS_NAMES).loss, argnums=1))(clip.params, start, *inputs)
        for name in ("coop", "tpt_coop")
    ]
    assert str(programs[0]) == str(programs[1])
    authors = {"crops": 63, "share": 0.1, "steps": 1, "rate": 5e-3, "decay": 0.01, "tokens": 4, "words": "a photo of a"}
    assert authors.items() <= dataclasses.asdict(make_method("tpt")).items()
    assert dataclasses.asdict(make_method("tpt_coop")) == dataclasses.asdict(make_method("tpt"))
