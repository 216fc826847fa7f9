"""Heads on features against the float64 reference: what is fitted, searched, trained and transferred."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.training.batches import FeatureBatches, FeatureStatic, frozen_features
from clipbias.training.placement import single_device
from clipbias.tuning import CONSTANTS, Features, Samples, Task, features, make_method
from clipbias.tuning.features import cosines
from clipbias.tuning.method import sampling_of
from clipbias.tuning.methods import linear_probe, tip_adapter
from clipbias.tuning.on_host import text_classifier, validation_features
from clipbias.tuning.prompts import IMAGENET_SELECT
from tests.reference import heads, optimizers
from tests.reference.numpy_clip import cross_entropy
from tests.tuning import weights_common as common
from tests.tuning.heads_common import COMMON, LABELS, SHOTS, check_steps, make_samples, scored
from tests.tuning.weights_common import LOGITS, Training, close

NAMES = ("red", "green", "blue")
CLASSES = len(NAMES)


@pytest.fixture(scope="module")
def samples(clip: Clip) -> Samples:
    return make_samples(clip)


def without_validation(samples: Samples) -> Samples:
    return dataclasses.replace(samples, validation=None, validation_labels=None)


def test_validation_images_are_at_most_so_many_of_a_class_in_a_seeded_order(samples):
    features, labels = validation_features(samples, SHOTS)
    assert np.bincount(labels).tolist() == [SHOTS] * CLASSES
    places = [int(np.flatnonzero((samples.validation == row).all(1))[0]) for row in features]
    assert len(set(places)) == len(places) and (samples.validation_labels[places] == labels).all()
    other, _ = validation_features(dataclasses.replace(samples, seed=4), SHOTS)
    assert (validation_features(samples, SHOTS)[0] == features).all() and not np.array_equal(other, features)
    assert [len(rows) for rows in validation_features(samples)] == [33, 33]


def test_rows_of_zeros_stand_for_texts_that_a_class_lacks(samples):
    text = samples.text.copy()
    text[1, 2] = 0
    whole = text_classifier(text)
    close(whole[2], heads.zero_shot_classifier(text[:1])[2], 1e-12)
    close(whole[:2], heads.zero_shot_classifier(text[:, :2]), 1e-12)
    features = Features(jnp.asarray(samples.validation), jnp.asarray(text), jnp.float32(1))
    close(cosines(features), heads.unit(samples.validation) @ whole.T, LOGITS)


def test_a_task_of_a_head_takes_features_in_place_of_images(clip):
    """As training does; of a method that sees images they are no images."""
    rng = np.random.default_rng(0)
    width = clip.config.projection_width
    features = rng.normal(size=(2, width)).astype(np.float32)
    learnables = {"weight": rng.normal(size=(3, width)).astype(np.float32), "bias": np.ones(3, np.float32)}
    task = Task(clip, "linear_probe", NAMES)
    logits = jax.jit(task.logits)(clip.params, learnables, features)
    np.testing.assert_allclose(logits, features @ learnables["weight"].T + 1, rtol=1e-4, atol=1e-5)
    bias = Task(clip, "bias", ("cat",))
    for other, learned, images in ((task, learnables, features[None]), (bias, bias.init(), features)):
        with pytest.raises(ClipbiasError, match="shape"):
            other.logits(clip.params, learned, images)


def test_clip_adapter(clip, samples):
    method = make_method("clip_adapter")
    start = method.init(jax.random.key(0), clip, "abc")
    width = clip.config.projection_width
    assert start["vision_down"].shape == (width // 4, width) and start["vision_up"].shape == (width, width // 4)
    for weight in start.values():
        assert 0.8 < np.abs(np.asarray(weight)).max() * weight.shape[1] ** 0.5 <= 1
    images = samples.features[0]

    def logits(values: Any, images: np.ndarray) -> np.ndarray:
        return heads.adapter_logits(images, samples.text, values["vision_down"], values["vision_up"], samples.scale)

    close(scored(method, start, samples, images), logits(start, images), LOGITS)

    def terms(values, *, features, labels):
        return {"cross_entropy": cross_entropy(logits(values, features), labels)}

    rates = optimizers.warmed_cosine_rates(0.2, 3)
    check_steps(clip, method, start, samples, [(images, LABELS)] * 3, rates, terms, Training(COMMON))


# Tip-Adapter


@pytest.mark.parametrize("images", [33, 5])
def test_tip_adapter_and_its_search(clip, samples, images, monkeypatch):
    """Of few images the lowest loss decides between equal accuracies."""
    monkeypatch.setattr(tip_adapter, "CHUNK", 5 * len(LABELS))  # in seven chunks, the last one smaller
    monkeypatch.setattr(features, "FEW_IMAGES", 34 if images == 5 else 0)
    method = make_method("tip_adapter", alpha_max=30.0, beta_max=9.0)
    assert sampling_of(method).passes == 10 and sampling_of(method).crop == 0.5
    held, labels = samples.validation[:images], samples.validation_labels[:images]
    constants = method.support({}, dataclasses.replace(samples, validation=held, validation_labels=labels))[CONSTANTS]
    case = {"keys": heads.tip_keys(samples.features), "values": np.eye(CLASSES)[LABELS], "text_features": samples.text}
    close(constants["keys"], case["keys"], 1e-7)
    assert (constants["labels"] == LABELS).all()
    alpha, beta, best = heads.tip_search(held, labels, beta_max=9.0, alpha_max=30.0, few=images == 5, **case)
    assert images == 5 or (alpha > 0.1 and beta > 0.1 and best < 1)
    close([constants["alpha"], constants["beta"]], [alpha, beta], 1e-6)
    expected = heads.tip_logits(samples.validation, alpha=alpha, beta=beta, **case)
    close(scored(method, {CONSTANTS: constants}, samples, samples.validation), expected, LOGITS)


def test_tip_adapter_keeps_its_numbers_where_no_image_says_others(samples):
    wrong = dataclasses.replace(samples, validation_labels=np.full(33, 7, np.int32))  # none is ever right
    for images in (wrong, without_validation(samples)):
        fixed = make_method("tip_adapter", alpha=4.0, beta=2.0).support({}, images)[CONSTANTS]
        assert (fixed["alpha"], fixed["beta"]) == (4, 2)


@pytest.mark.ci
def test_tip_adapter_f(clip, samples):
    method = make_method("tip_adapter_f", alpha=2.0, beta=1.7, alpha_max=60.0, beta_max=9.0)
    start = method.support({}, samples)
    close(start["keys"], heads.tip_keys(samples.features), 1e-7)
    case = {"values": np.eye(CLASSES)[LABELS], "text_features": samples.text}
    moved = {**start, "keys": 1.3 * start["keys"]}  # not normalised again
    images, labels = samples.validation[:20], samples.validation_labels[:20]

    def logits(values: Any, images: np.ndarray) -> np.ndarray:
        return heads.tip_logits(images, keys=values["keys"], alpha=2.0, beta=1.7, **case)

    close(scored(method, moved, samples, images), logits(moved, images), LOGITS)
    recipe = method.recipe_for(COMMON, SHOTS)
    assert (recipe.epochs, recipe.batch_size, recipe.crop, recipe.keep_last) == (20, 256, 0.5, True)
    recipe = dataclasses.replace(recipe, epochs=2, batch_size=8)
    batches = [(images[first : first + 8], labels[first : first + 8]) for first in (0, 8, 16)] * 2

    def terms(values, *, features, labels):
        return {"cross_entropy": cross_entropy(logits(values, features), labels)}

    rates = optimizers.cosine_rates(1e-3, len(batches))
    np.testing.assert_allclose(recipe.step_rates(20), rates)
    training = Training(recipe, optimizers.AdamW(epsilon=1e-4, weight_decay=1e-2))
    moved = {name: value for name, value in moved.items() if name != CONSTANTS} | {CONSTANTS: start[CONSTANTS]}
    keys = check_steps(clip, method, moved, samples, batches, rates, terms, training)["keys"]
    finished = method.finish({"keys": keys, CONSTANTS: start[CONSTANTS]}, samples)
    held = samples.validation, samples.validation_labels
    alpha, beta, _ = heads.tip_search(*held, keys=keys, beta_max=9.0, alpha_max=60.0, few=True, **case)
    close([finished[CONSTANTS]["alpha"], finished[CONSTANTS]["beta"]], [alpha, beta], 1e-6)
    assert finished["keys"] is keys and alpha != 2.0


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f"])
def test_a_cache_for_other_classes(clip, samples, name):
    method = make_method(name, alpha=50.0)
    learnables = method.support(method.init(jax.random.key(0), clip, "abc"), without_validation(samples))
    plain = heads.zero_shot_logits(samples.validation, samples.text)
    cached = np.asarray(scored(method, learnables, samples, samples.validation), np.float64) - plain
    two = dataclasses.replace(samples, text=samples.text[:, [2, 0]])
    for labels, factor, keys in (((2, 0), [1, 1], 6), ((2, -1), [1, 0], 4), ((-1, -1), [0, 0], 0)):
        moved = method.transfer(learnables, np.asarray(labels), samples.text, two.text)
        assert len(moved[CONSTANTS]["labels"]) == keys and (moved[CONSTANTS]["labels"] < 2).all()
        expected = plain[:, [2, 0]] + factor * cached[:, [2, 0]]
        close(scored(method, moved, two, samples.validation), expected, LOGITS)
    assert np.abs(cached).max() > 1


# Linear probe


@pytest.mark.parametrize(("classes", "inverse"), [(2, 1e-2), (3, 0.3)])
def test_the_probes_fit_is_the_multinomial_minimum(samples, classes, inverse):
    labels = LABELS[classes > LABELS]
    features = samples.features[0][classes > LABELS].astype(np.float64)
    weight, bias = linear_probe.fit(features, labels, inverse, 1000)
    case = features, labels, inverse
    best = scipy.optimize.minimize(heads.probe_objective, np.zeros(classes * (features.shape[1] + 1)), case)
    fitted = heads.probe_objective(np.c_[weight, bias], *case)
    assert best.fun * (1 - 1e-6) < fitted < best.fun * (1 + 1e-6)
    close(np.c_[weight, bias], best.x.reshape(classes, -1), 1e-2)


def test_a_single_class_has_nothing_to_tell_apart(samples):
    weight, bias = linear_probe.fit(samples.features[0], np.zeros(9, int), 1.0, 10)
    assert weight.shape == (1, samples.features.shape[-1]) and not weight.any() and not bias.any()


@pytest.mark.parametrize(
    "score",
    [
        lambda c: 0.5,
        lambda c: np.log10(c),
        lambda c: -np.log10(c),
        lambda c: -abs(np.log10(c) - 0.3),
        lambda c: round(-abs(np.log10(c) + 3.1), 1),  # with ties
    ],
)
def test_the_probes_search(score):
    assert linear_probe.search(score) == heads.probe_search(score)


def test_the_probe_is_chosen_on_four_validation_images_of_a_class(samples, monkeypatch):
    asked, inputs, fits = [], [], {}
    original = linear_probe.fit

    def fit(features: np.ndarray, labels: np.ndarray, inverse: float, iterations: int) -> tuple:
        asked.append(inverse)
        inputs[:] = features, labels
        fits[inverse] = original(features, labels, inverse, iterations)
        return fits[inverse]

    monkeypatch.setattr(linear_probe, "fit", fit)
    method = make_method("linear_probe")
    assert sampling_of(method).passes == 0
    many = dataclasses.replace(samples, features=np.tile(samples.features[:1], (1, 2, 1)), labels=np.tile(LABELS, 2))
    assert many.shots == 8
    fitted = method.support({}, many)
    held, labels = validation_features(samples, 4)
    assert len(labels) == 12 and len(asked) == len(fits)
    np.testing.assert_array_equal(inputs[0], many.features[0])
    np.testing.assert_array_equal(inputs[1], many.labels)
    chosen = heads.probe_search(lambda inverse: heads.accuracy(held @ fits[inverse][0].T + fits[inverse][1], labels))
    weight, bias = fits[chosen]
    close(fitted["weight"], weight, 1e-6)
    close(fitted["bias"], bias, 1e-6)
    close(scored(method, fitted, samples, samples.validation), samples.validation @ weight.T + bias, LOGITS)
    asked.clear()
    make_method("linear_probe", inverse=0.5).support({}, without_validation(samples))
    assert asked == [0.5]


# GDA


def with_more_images(samples: Samples) -> Samples:
    """Enough rows for covariances of full rank."""
    labels = np.tile(LABELS, 4)
    noise = np.random.default_rng(4).normal(size=(3, len(labels), samples.features.shape[-1]))
    features = np.tile(samples.features, (1, 4, 1)) + 0.5 * noise
    return dataclasses.replace(samples, features=features.astype(np.float32), labels=labels)


@pytest.mark.parametrize(
    ("covariance", "rule", "few"),
    [("pooled", "few_shot", True), ("classes", "base_classes", True), ("pooled", "few_shot", False)],
)
def test_gda(samples, covariance, rule, few, monkeypatch):
    monkeypatch.setattr(features, "FEW_IMAGES", 40 if few else 0)
    method = make_method("gda", **({} if covariance == "pooled" else {"covariance": covariance}))
    assert sampling_of(method).passes == 10 and sampling_of(method).crop == 0.5
    samples = with_more_images(samples)
    weight, bias = heads.gda(samples.features, samples.labels, CLASSES, rule)
    case = {"text_features": samples.text, "weight": weight, "bias": bias}
    for images in (33, 5):
        held = samples.validation[:images], samples.validation_labels[:images]
        seen = dataclasses.replace(samples, validation=held[0], validation_labels=held[1])
        constants = method.support({}, seen)[CONSTANTS]
        close(constants["weight"], weight, 1e-6)
        close(constants["bias"], bias, 1e-6)
        alpha, _ = heads.gda_search(*held, few=few, **case)
        close(constants["alpha"], alpha, 1e-6)
        expected = heads.gda_logits(samples.validation, alpha=alpha, **case)
        close(scored(method, {CONSTANTS: constants}, samples, samples.validation), expected, LOGITS)
    assert method.support({}, without_validation(samples))[CONSTANTS]["alpha"] == np.float32(0.1)


def test_gda_with_fewer_rows_than_dimensions(samples):
    few = dataclasses.replace(samples, features=samples.features[:, :3], labels=LABELS[:3])
    constants = make_method("gda", covariance="classes").support({}, few)[CONSTANTS]
    weight, bias = heads.gda(few.features, few.labels, CLASSES, "base_classes")
    close(constants["weight"], weight, 1e-6)
    close(constants["bias"], bias, 1e-6)


def test_gda_of_new_classes(clip, samples):
    samples = with_more_images(samples)
    method = make_method("gda", covariance="classes", keep_rows=True)
    learnables = method.support({}, samples)
    other = heads.arrays(seed=9, width=samples.text.shape[-1], labels=range(4))["text_features"] + 3.0
    moved = method.transfer(learnables, np.full(4, -1), samples.text, other)[CONSTANTS]
    weight, bias = heads.gda_new_classes(samples.features, other)
    close(moved["weight"], weight, 1e-5)
    close(moved["bias"], bias, 1e-5)
    assert moved["alpha"] == learnables[CONSTANTS]["alpha"]
    rows, precision = (np.asarray(learnables[CONSTANTS][name], np.float64) for name in ("rows", "precision"))
    assert rows.shape == (3 * 36, clip.config.projection_width)
    # Beside a class of training they have its precision, and are as likely.
    moved = method.transfer(learnables, np.array([2, -1, -1, -1]), samples.text, other)[CONSTANTS]
    for place, text in enumerate(heads.zero_shot_classifier(other)[1:], 1):
        nearest = rows[np.argsort(-(rows @ text))[:64]]
        mean = (nearest.sum(0) + 16 * text) / 80
        close(moved["weight"][place], mean @ precision, 1e-5)
        close(moved["bias"][place], np.log(1 / 3) - 0.5 * mean @ precision @ mean, 1e-5)
    for name in ("weight", "bias"):
        np.testing.assert_array_equal(moved[name][0], learnables[CONSTANTS][name][2])
    with pytest.raises(ClipbiasError, match=r"cannot be used with other classes; .* or set its option keep_rows"):
        method = make_method("gda")
        method.transfer(method.support({}, samples), np.array([0, -1]), samples.text, other[:, :2])


# CLAP and LP++


@pytest.mark.parametrize("name", ["clap", "zs_lp"])
def test_clap(clip, samples, name):
    method = make_method(name)
    assert sampling_of(method).passes == 20 and sampling_of(method).training == "pooled"
    start = method.support(method.init(jax.random.key(0), clip, NAMES), samples)
    close(start["text_prototypes"], samples.text.mean(0), 1e-6)
    strengths = None
    if name == "clap":
        strengths = heads.clap_penalties(samples.features, LABELS, samples.text, samples.scale)
        assert strengths.min() > 0.01
        close(start[CONSTANTS]["penalties"], strengths, 1e-5)
    assert (CONSTANTS in start) == (name == "clap")
    noise = np.random.default_rng(1).normal(size=start["text_prototypes"].shape)
    away = {**start, "text_prototypes": (start["text_prototypes"] + noise).astype(np.float32)}
    expected = heads.clap_logits(samples.features[1], away["text_prototypes"], samples.scale)
    close(scored(method, away, samples, samples.features[1]), expected, LOGITS)

    recipe = method.recipe_for(COMMON, SHOTS)
    recipe = dataclasses.replace(recipe, epochs=3, batch_size=4)
    drawn = FeatureBatches([samples.features], [LABELS], [1], recipe, single_device(), pooled=True, start_step=0)
    batches = [(np.asarray(batch["images"])[0], np.asarray(batch["labels"])[0]) for batch in itertools.islice(drawn, 6)]

    def terms(values, *, features, labels):
        return heads.clap_losses(features, labels, values["text_prototypes"], samples.text, samples.scale, strengths)

    rates = np.repeat(optimizers.warmed_cosine_rates(0.1, 3), 2)
    np.testing.assert_allclose(recipe.step_rates(len(LABELS)), rates)
    check_steps(clip, method, away, samples, batches, rates, terms, Training(recipe, optimizers.SGD(weight_decay=0.0)))


@pytest.mark.parametrize("steps", [9, 300])
def test_lp_plus_plus(clip, samples, steps):
    method = make_method("lp_plus_plus", steps=steps)
    assert sampling_of(method).passes == 1 and sampling_of(method).crop == 0.5
    start = method.init(jax.random.key(2), clip, NAMES)
    spread = np.abs(np.asarray(method.init(jax.random.key(0), clip, range(400))["bias"]))
    assert 0.95 < spread.max() * clip.config.projection_width**0.5 <= 1
    noise = np.random.default_rng(3).normal(size=samples.validation.shape)
    single = dataclasses.replace(samples, features=samples.features[:1], validation=samples.validation + noise)
    held = validation_features(single, SHOTS)
    start_bias = np.asarray(start["bias"])
    history, accuracies = heads.lp_train(single.features[0], LABELS, samples.text, start_bias, held, steps)
    best = len(accuracies) - 1 - int(np.argmax(accuracies[::-1]))  # a tie replaces the best
    if steps == 300:
        assert 0 < accuracies.index(max(accuracies)) < best < 299
    for learned, expected in (
        (method.support(start, single), history[best]),
        (method.support(start, without_validation(single)), history[-1]),
    ):
        for name, value in expected.items():
            close(learned[name], value, 1e-6)
        logits = heads.lp_logits(samples.validation, samples.text, **expected)
        close(scored(method, learned, samples, samples.validation), logits, LOGITS)


# ProLIP


def prolip(clip: Clip, **options: float) -> Task:
    return Task(clip, "prolip", NAMES, templates=("a {}", "the {}"), **options)


@pytest.mark.parametrize(("options", "strength"), [({}, 1 / SHOTS), ({"strength": 0.7}, 0.7)])
def test_prolip(clip, options, strength):
    """Of rows before the projection, of three passes, and texts by two templates."""
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(3, len(LABELS), clip.config.vision.width)) + 0.5
    text = rng.normal(size=(2, CLASSES, clip.config.projection_width))
    samples = Samples(hidden.astype(np.float32), LABELS, text.astype(np.float32), scale=7.0)
    task = prolip(clip, **options)
    method = task.method
    original = np.asarray(clip.params["vision"]["projection"], np.float64)
    start = method.support(task.init(), samples)
    change = np.random.default_rng(2).normal(scale=0.05, size=original.shape)
    start = {**start, "vision_projection": change.astype(np.float32)}

    def terms(values, *, features, labels):
        tuned = original + np.asarray(values["vision_projection"])
        return heads.prolip_losses(features, labels, tuned, original, samples.text, strength)[0]

    recipe = method.recipe_for(common.SGD, SHOTS)
    assert recipe.total_steps(1000 * 16) == 300 and recipe.steps_per_epoch(1000 * 16) == 1
    recipe = dataclasses.replace(recipe, learning_rate=1e-2, epochs=5)
    rates = recipe.step_rates(len(LABELS))
    np.testing.assert_allclose(rates, optimizers.cosine_rates(1e-2, 5))
    batches = [(samples.features[step % 3], LABELS) for step in range(5)]
    training = Training(recipe, optimizers.Adam(epsilon=1e-4))
    check_steps(clip, method, start, samples, batches, rates, terms, training)
    sampling = sampling_of(make_method("prolip"))
    assert (sampling.passes, sampling.crop, sampling.training, sampling.projected) == (300, 0.5, "again", False)
    assert method.options_for("imagenet", 4) == {"templates": "imagenet_select"}
    assert make_method("prolip", templates="imagenet_select").text("{}", None).templates == IMAGENET_SELECT


@pytest.mark.ci
def test_images_are_projected_by_the_tuned_projection(clip):
    """What is trained on rows is what the tower computes of images afterwards."""
    task = prolip(clip)
    learnables = common.drawn(task.shapes, 0.05)
    raw, _ = common.pictures(clip.config.vision.image_size)
    static = FeatureStatic(clip.config, clip.preprocessing, "float32", projected=False)
    rows = frozen_features(static, clip.params, raw)
    logits = jax.jit(task.logits)(clip.params, learnables, clip.preprocessing.normalize(raw))
    projection = np.asarray(clip.params["vision"]["projection"] + learnables["vision_projection"])
    text = np.asarray(task.classifier.split_by_template(task.text_input(clip.params, task.init())))
    expected = heads.zero_shot_logits(heads.double(rows) @ projection, text)
    close(logits, expected, LOGITS)
