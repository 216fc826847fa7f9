"""CLIP-Adapter and Tip-Adapter against the float64 reference: logits, losses, gradients, steps and searches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import catalog
from clipbias.tuning import CONSTANTS, Features, Samples, features, make_method
from clipbias.tuning.features import cosines, text_classifier, validation_features
from clipbias.tuning.method import sampling_of
from clipbias.tuning.methods import tip_adapter
from tests.reference import heads, heads_clip_adapter, heads_tip, optimizers
from tests.reference.numpy_clip import cross_entropy
from tests.tuning.heads_common import (
    CLASSES,
    COMMON,
    LABELS,
    LOGITS,
    SHOTS,
    Training,
    check_steps,
    close,
    make_samples,
    scored,
)


@pytest.fixture(scope="module")
def samples(clip: Clip) -> Samples:
    return make_samples(clip)


def test_validation_images_are_at_most_so_many_of_a_class_in_a_seeded_order(samples: Samples) -> None:
    features, labels = validation_features(samples, SHOTS)
    assert np.bincount(labels).tolist() == [SHOTS] * CLASSES
    places = [int(np.flatnonzero((samples.validation == row).all(1))[0]) for row in features]
    assert len(set(places)) == len(places) and (samples.validation_labels[places] == labels).all()
    again, _ = validation_features(samples, SHOTS)
    other, _ = validation_features(dataclasses.replace(samples, seed=4), SHOTS)
    assert (again == features).all() and not np.array_equal(other, features)
    assert [len(rows) for rows in validation_features(samples)] == [33, 33]
    assert validation_features(dataclasses.replace(samples, validation=None)) is None


def test_rows_of_zeros_stand_for_texts_that_a_class_lacks(samples: Samples) -> None:
    text = samples.text.copy()
    text[1, 2] = 0
    expected = heads.zero_shot_classifier(text[:1])[2]
    whole = text_classifier(text)
    close(whole[2], expected, 1e-12)
    close(whole[:2], heads.zero_shot_classifier(text[:, :2]), 1e-12)
    features = Features(jnp.asarray(samples.validation), jnp.asarray(text), jnp.float32(1))
    close(cosines(features), heads.unit(samples.validation) @ whole.T, LOGITS)


# CLIP-Adapter


def test_clip_adapter(clip: Clip, samples: Samples) -> None:
    method = make_method("clip_adapter")
    start = method.init(jax.random.key(0), clip, "abc")
    width = clip.config.projection_width
    assert start["vision_down"].shape == (width // 4, width) and start["vision_up"].shape == (width, width // 4)
    for weight in start.values():
        bound = np.abs(np.asarray(weight)).max() * weight.shape[1] ** 0.5
        assert 0.8 < bound <= 1
    names = {"vision_down": "down", "vision_up": "up"}
    images = samples.features[0]
    texts = samples.text
    case = {"features": images, "text_features": texts, "scale": samples.scale}
    by_name = {names[name]: value for name, value in start.items()}
    close(scored(method, start, samples, images), heads_clip_adapter.logits(**case, **by_name), LOGITS)

    def terms(values, *, features, labels):
        weights = {short: values[name] for name, short in names.items()}
        logits = heads_clip_adapter.logits(**case | {"features": features}, **weights)
        return {"cross_entropy": cross_entropy(logits, labels)}

    rates = optimizers.warmed_cosine_rates(0.2, 3)
    learned = check_steps(clip, method, start, samples, [(images, LABELS)] * 3, rates, terms, Training(COMMON))
    assert all(np.abs(learned[name] - start[name]).max() > 1e-3 for name in names)


# Tip-Adapter


def test_tip_adapter_and_its_search(clip: Clip, samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tip_adapter, "CHUNK", 5 * len(LABELS))  # in seven chunks, the last one smaller
    method = make_method("tip_adapter", alpha_max=60.0, beta_max=9.0)
    assert sampling_of(method).passes == 10 and sampling_of(method).crop == 0.5
    monkeypatch.setattr(features, "FEW_IMAGES", 0)
    constants = method.support({}, samples)[CONSTANTS]
    keys, values = heads_tip.cache(features=samples.features, labels=LABELS, classes=CLASSES)
    close(constants["keys"], keys, 1e-7)
    assert (constants["labels"] == LABELS).all()
    case = {"keys": keys, "values": values, "text_features": samples.text}
    alpha, beta, best = heads_tip.search(
        features=samples.validation, labels=samples.validation_labels, beta_max=9.0, alpha_max=60.0, **case
    )
    assert alpha > 0.1 and beta > 0.1 and best < 1
    close(constants["alpha"], alpha, 1e-6)
    close(constants["beta"], beta, 1e-6)
    expected = heads_tip.logits(features=samples.validation, alpha=alpha, beta=beta, **case)
    close(scored(method, {CONSTANTS: constants}, samples, samples.validation), expected, LOGITS)

    # Of few images the lowest loss decides between equal accuracies.
    monkeypatch.setattr(features, "FEW_IMAGES", 34)
    first = samples.validation[:5], samples.validation_labels[:5]
    few = dataclasses.replace(samples, validation=first[0], validation_labels=first[1])
    searched = method.support({}, few)[CONSTANTS]
    alpha, beta, _ = heads_tip.search(
        features=first[0], labels=first[1], beta_max=9.0, alpha_max=60.0, few=True, **case
    )
    close([searched["alpha"], searched["beta"]], [alpha, beta], 1e-6)

    without = dataclasses.replace(samples, validation=None, validation_labels=None)
    fixed = make_method("tip_adapter", alpha=4.0, beta=2.0).support({}, without)[CONSTANTS]
    assert (fixed["alpha"], fixed["beta"]) == (4, 2)
    wrong = dataclasses.replace(samples, validation_labels=np.full(33, 7, np.int32))  # none is ever right
    fixed = make_method("tip_adapter", alpha=4.0, beta=2.0).support({}, wrong)[CONSTANTS]
    assert (fixed["alpha"], fixed["beta"]) == (4, 2)


def test_tip_adapters_grid_counts_like_the_plain_computation(samples: Samples) -> None:
    """Also where a class has no key."""
    labels = np.where(LABELS == 1, 2, LABELS)
    keys = heads.unit(samples.features.mean(0))
    texts = 100 * heads.zero_shot_classifier(samples.text)
    alphas, betas = np.array([0.5, 20.0, 60.0]), np.array([0.1, 2.1, 4.1])
    counts = tip_adapter.count_correct(
        tip_adapter.Cache(keys, labels, texts), samples.validation, samples.validation_labels, alphas, betas
    )
    case = {"features": samples.validation, "keys": keys, "text_features": samples.text}
    for i, beta in enumerate(betas):
        for j, alpha in enumerate(alphas):
            logits = heads_tip.logits(values=heads.one_hot(labels, CLASSES), alpha=alpha, beta=beta, **case)
            assert counts[i, j] == round(33 * heads.accuracy(logits, samples.validation_labels))
    assert len(np.unique(counts)) > 3


@pytest.mark.ci
def test_tip_adapter_f(clip: Clip, samples: Samples) -> None:
    method = make_method("tip_adapter_f", alpha=2.0, beta=1.7, alpha_max=60.0, beta_max=9.0)
    start = method.support({}, samples)
    keys, values = heads_tip.cache(features=samples.features, labels=LABELS, classes=CLASSES)
    close(start["keys"], keys, 1e-7)
    case = {"values": values, "text_features": samples.text, "alpha": 2.0, "beta": 1.7}
    moved = {**start, "keys": 1.3 * start["keys"]}  # not normalised again
    images = samples.validation[:20]
    labels = samples.validation_labels[:20]
    expected = heads_tip.logits(features=images, keys=1.3 * heads.double(start["keys"]), **case)
    close(scored(method, moved, samples, images), expected, LOGITS)

    recipe = method.recipe_for(COMMON, SHOTS)
    assert (recipe.epochs, recipe.batch_size, recipe.crop, recipe.keep_last) == (20, 256, 0.5, True)
    recipe = dataclasses.replace(recipe, epochs=2, batch_size=8)
    batches = [(images[:8], labels[:8]), (images[8:16], labels[8:16]), (images[16:], labels[16:])] * 2
    assert recipe.total_steps(20) == len(batches)

    def terms(values, *, features, labels):
        return {
            "cross_entropy": cross_entropy(heads_tip.logits(features=features, keys=values["keys"], **case), labels)
        }

    rates = optimizers.cosine_rates(1e-3, len(batches))
    optimizer = optimizers.AdamW(epsilon=1e-4, weight_decay=1e-2)
    np.testing.assert_allclose(recipe.step_rates(20), rates)
    trained = check_steps(clip, method, moved, samples, batches, rates, terms, Training(recipe, optimizer))
    assert np.abs(trained["keys"] - moved["keys"]).max() > 1e-3

    trained = {"keys": np.asarray(trained["keys"]), CONSTANTS: start[CONSTANTS]}
    finished = method.finish(trained, samples)
    alpha, beta, _ = heads_tip.search(
        **{"features": samples.validation, "labels": samples.validation_labels, "keys": trained["keys"]},
        **{"values": values, "text_features": samples.text, "beta_max": 9.0, "alpha_max": 60.0},
        few=True,
    )
    close([finished[CONSTANTS]["alpha"], finished[CONSTANTS]["beta"]], [alpha, beta], 1e-6)
    assert finished["keys"] is trained["keys"] and alpha != 2.0


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f"])
def test_a_cache_for_other_classes(clip: Clip, samples: Samples, name: str) -> None:
    method = make_method(name, alpha=50.0)
    without = dataclasses.replace(samples, validation=None)
    learnables = method.support(method.init(jax.random.key(0), clip, "abc"), without)
    plain = heads.zero_shot_logits(samples.validation, samples.text)
    cached = np.asarray(scored(method, learnables, samples, samples.validation), np.float64) - plain
    two = dataclasses.replace(samples, text=samples.text[:, [2, 0]])
    moved = method.transfer(learnables, (2, 0), samples.text, two.text)
    assert jax.tree.map(np.shape, moved) == jax.tree.map(np.shape, learnables)
    close(scored(method, moved, two, samples.validation), (plain + cached)[:, [2, 0]], LOGITS)
    moved = method.transfer(learnables, None, samples.text, two.text)
    close(scored(method, moved, two, samples.validation), plain[:, [2, 0]], LOGITS)
    assert np.abs(cached).max() > 1


def test_what_the_authors_choose_for_each_dataset() -> None:
    for name in ("tip_adapter", "tip_adapter_f"):
        method = make_method(name)
        facts = type(method).datasets
        assert set(facts) == set(catalog.ELEVEN) and facts["imagenet"]["templates"] == "imagenet_select"
        for options in facts.values():
            assert dataclasses.replace(method, **options).alpha == options["alpha"]
        assert (facts["oxford_flowers"]["alpha_max"], facts["caltech101"]["beta_max"]) == (50, 12)
    assert facts["eurosat"]["epochs"] == 100
