"""Linear probe, GDA, CLAP and LP++ against the float64 reference: what is fitted, searched, trained and transferred."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.training.features import FeatureBatches
from clipbias.training.mesh import single_device
from clipbias.tuning import CONSTANTS, Samples, Task, features, make_method
from clipbias.tuning.adapter import transfer
from clipbias.tuning.features import validation_features
from clipbias.tuning.method import sampling_of
from clipbias.tuning.methods import gda, linear_probe
from tests.reference import heads, heads_clap, heads_gda, heads_lp_plus_plus, heads_probe, optimizers
from tests.reference.heads_cases import arrays
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

NAMES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def samples(clip: Clip) -> Samples:
    return make_samples(clip)


# Linear probe


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("inverse", [1e-2, 0.3])
def test_the_probes_fit_is_the_multinomial_minimum(samples: Samples, classes: int, inverse: float) -> None:
    labels = LABELS[classes > LABELS]
    features = samples.features[0][classes > LABELS].astype(np.float64)
    weight, bias = linear_probe.fit(features, labels, inverse, 1000)
    objective, gradient, _ = heads_probe.objective(
        features=features, labels=labels, weight=weight, bias=bias, inverse=inverse
    )
    best = heads_probe.fit(features=features, labels=labels, classes=classes, inverse=inverse)
    lowest, _, _ = heads_probe.objective(
        features=features, labels=labels, weight=best[0], bias=best[1], inverse=inverse
    )
    assert lowest <= objective < lowest * (1 + 1e-6) and np.linalg.norm(gradient) < 1e-3
    close(weight, best[0], 1e-2)


def test_a_task_of_a_head_takes_features_in_place_of_images(clip: Clip) -> None:
    """As training does; of a method that sees images they are no images."""
    rng = np.random.default_rng(0)
    width = clip.config.projection_width
    features = rng.normal(size=(2, width)).astype(np.float32)
    learnables = {"weight": rng.normal(size=(3, width)).astype(np.float32), "bias": np.ones(3, np.float32)}
    task = Task(clip, "linear_probe", ("cat", "dog", "bird"))
    logits = jax.jit(task.logits)(clip.params, learnables, features)
    np.testing.assert_allclose(logits, features @ learnables["weight"].T + 1, rtol=1e-4, atol=1e-5)
    for other, learned, images in ((task, learnables, features[None]), (Task(clip, "bias", ("cat",)), {}, features)):
        with pytest.raises(ClipbiasError, match="shape"):
            other.logits(clip.params, learned, images)


def test_a_single_class_has_nothing_to_tell_apart(samples: Samples) -> None:
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
def test_the_probes_search(score) -> None:
    assert linear_probe.search(score) == heads_probe.search_inverse(score)[0]


def test_the_probe_is_chosen_on_four_validation_images_of_a_class(
    samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = []

    def fit(features, labels, inverse, iterations):
        fits.append(inverse)
        return heads_probe.fit(features=features, labels=labels, classes=CLASSES, inverse=inverse)

    monkeypatch.setattr(linear_probe, "fit", fit)
    method = make_method("linear_probe")
    assert sampling_of(method).passes == 0
    many = dataclasses.replace(samples, features=np.tile(samples.features[:1], (1, 2, 1)), labels=np.tile(LABELS, 2))
    assert many.shots == 8
    fitted = method.support({}, many)
    features, labels = validation_features(samples, 4)
    assert len(labels) == 12
    expected = heads_probe.search(
        **{"features": many.features[0], "labels": many.labels, "classes": CLASSES},
        **{"validation_features": features, "validation_labels": labels},
    )
    close(fitted["weight"], expected.weight, 1e-6)
    close(fitted["bias"], expected.bias, 1e-6)
    assert len(fits) == len(set(fits)) and expected.inverse in fits
    expected = heads_probe.logits(features=samples.validation, weight=expected.weight, bias=expected.bias)
    close(scored(method, fitted, samples, samples.validation), expected, LOGITS)
    fits.clear()
    make_method("linear_probe", inverse=0.5).support({}, dataclasses.replace(samples, validation=None))
    assert fits == [0.5]


# GDA


def with_more_images(samples: Samples) -> Samples:
    """Enough rows for covariances of full rank."""
    rng = np.random.default_rng(4)
    labels = np.tile(LABELS, 4)
    noise = rng.normal(size=(3, len(labels), samples.features.shape[-1]))
    features = np.tile(samples.features, (1, 4, 1)) + 0.5 * noise
    return dataclasses.replace(samples, features=features.astype(np.float32), labels=labels)


@pytest.mark.parametrize(("options", "rule"), [({}, "few_shot"), ({"covariance": "classes"}, "base_classes")])
def test_gda(samples: Samples, options: dict[str, str], rule: str) -> None:
    method = make_method("gda", **options)
    assert sampling_of(method).passes == 10 and sampling_of(method).crop == 0.5
    samples = with_more_images(samples)
    constants = method.support({}, samples)[CONSTANTS]
    weight, bias = getattr(heads_gda, rule)(features=samples.features, labels=samples.labels, classes=CLASSES)
    close(constants["weight"], weight, 1e-6)
    close(constants["bias"], bias, 1e-6)
    case = {"text_features": samples.text, "weight": weight, "bias": bias}
    alpha, best = heads_gda.search(features=samples.validation, labels=samples.validation_labels, few=True, **case)
    assert best < 1
    few = heads_gda.search(features=samples.validation[:5], labels=samples.validation_labels[:5], few=True, **case)
    first = dataclasses.replace(
        samples, validation=samples.validation[:5], validation_labels=samples.validation_labels[:5]
    )
    close(method.support({}, first)[CONSTANTS]["alpha"], few[0], 1e-6)
    close(constants["alpha"], alpha, 1e-6)
    expected = heads_gda.logits(features=samples.validation, alpha=alpha, **case)
    close(scored(method, {CONSTANTS: constants}, samples, samples.validation), expected, LOGITS)
    alone = method.support({}, dataclasses.replace(samples, validation=None))[CONSTANTS]
    assert alone["alpha"] == np.float32(0.1)


def test_gda_with_fewer_rows_than_dimensions(samples: Samples) -> None:
    few = dataclasses.replace(samples, features=samples.features[:, :3], labels=LABELS[:3])
    constants = make_method("gda", covariance="classes").support({}, few)[CONSTANTS]
    weight, bias = heads_gda.base_classes(features=few.features, labels=few.labels, classes=CLASSES)
    close(constants["weight"], weight, 1e-6)
    close(constants["bias"], bias, 1e-6)


@pytest.mark.parametrize("best", gda.ALPHAS[2:5])
def test_gdas_search_takes_the_smallest_of_the_best(
    samples: Samples, best: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that zero-shot CLIP gets wrong by so much that only larger α's get it right."""
    texts = heads.zero_shot_classifier(samples.text)
    image = texts[0] + 0.1 * texts[1]
    lead = 100 * (heads.unit(image) @ (texts[0] - texts[1]))
    with_image = dataclasses.replace(samples, validation=image[None], validation_labels=np.array([1]))
    densities = np.array([0.0, lead / best * 1.5, 0.0])
    # Of few images one that is surer.
    assert gda.GDA()._search(np.zeros_like(texts), densities, with_image) > best
    monkeypatch.setattr(features, "FEW_IMAGES", 1)
    assert gda.GDA()._search(np.zeros_like(texts), densities, with_image) == best


def test_gda_of_new_classes(clip: Clip, samples: Samples) -> None:
    samples = with_more_images(samples)
    method = make_method("gda", covariance="classes", keep_rows=True)
    learnables = method.support({}, samples)
    other = arrays(seed=9, width=samples.text.shape[-1], labels=range(4))["text_features"] + 3.0
    moved = method.transfer(learnables, None, samples.text, other)[CONSTANTS]
    weight, bias = heads_gda.new_classes(features=samples.features, new_text_features=other)
    close(moved["weight"], weight, 1e-5)
    close(moved["bias"], bias, 1e-5)
    assert moved["alpha"] == learnables[CONSTANTS]["alpha"]
    shapes = jax.tree.map(np.shape, method.init(jax.random.key(0), clip, NAMES))[CONSTANTS]
    assert shapes["rows"] == (0, clip.config.projection_width)
    assert learnables[CONSTANTS]["rows"].shape == (3 * 36, clip.config.projection_width)


def test_gda_for_a_part_of_the_classes_and_for_others(samples: Samples) -> None:
    method = make_method("gda")
    learnables = method.support({}, samples)
    moved = method.transfer(learnables, (2, 0), samples.text, samples.text[:, [2, 0]])
    two = dataclasses.replace(samples, text=samples.text[:, [2, 0]])
    whole = np.asarray(scored(method, learnables, samples, samples.validation))
    close(scored(method, moved, two, samples.validation), whole[:, [2, 0]], LOGITS)
    with pytest.raises(ClipbiasError, match=r"cannot be used with other classes; .* or set its option keep_rows"):
        method.transfer(learnables, None, samples.text, samples.text)


# CLAP


@pytest.mark.parametrize("name", ["clap", "zs_lp"])
def test_clap(clip: Clip, samples: Samples, name: str) -> None:
    method = make_method(name)
    penalised = name == "clap"
    assert sampling_of(method).passes == 20 and sampling_of(method).training == "pooled"
    start = method.support(method.init(jax.random.key(0), clip, NAMES), samples)
    texts = {"text_features": samples.text}
    close(start["text_prototypes"], heads_clap.start(**texts), 1e-6)
    strengths = None
    if penalised:
        strengths = heads_clap.penalties(features=samples.features, labels=LABELS, scale=samples.scale, **texts)
        assert strengths.min() > 0.01
        close(start[CONSTANTS]["penalties"], strengths, 1e-5)
    assert (CONSTANTS in start) == penalised
    images = samples.features[1]
    moved = start["text_prototypes"] + np.random.default_rng(1).normal(size=start["text_prototypes"].shape)
    away = {**start, "text_prototypes": moved.astype(np.float32)}
    expected = heads_clap.logits(features=images, prototypes=away["text_prototypes"], scale=samples.scale)
    close(scored(method, away, samples, images), expected, LOGITS)

    recipe = method.recipe_for(COMMON, SHOTS)
    assert (recipe.learning_rate, recipe.epochs, recipe.weight_decay, recipe.batch_size) == (0.1, 300, 0.0, 256)
    recipe = dataclasses.replace(recipe, epochs=3, batch_size=4)
    drawn = FeatureBatches([samples.features], [LABELS], [1], recipe, single_device(), pooled=True, start_step=0)
    batches = [(np.asarray(batch["images"])[0], np.asarray(batch["labels"])[0]) for batch in itertools.islice(drawn, 6)]

    def terms(values, *, features, labels):
        terms_by_name = heads_clap.losses(
            features=features,
            labels=labels,
            prototypes=values["text_prototypes"],
            text_features=samples.text,
            scale=samples.scale,
            strengths=strengths,
        )
        assert ("penalty" in terms_by_name) == penalised
        return terms_by_name

    rates = np.repeat(optimizers.warmed_cosine_rates(0.1, 3), 2)
    np.testing.assert_allclose(recipe.step_rates(len(LABELS)), rates)
    training = Training(recipe, optimizers.SGD(weight_decay=0.0))
    check_steps(clip, method, away, samples, batches, rates, terms, training)


# LP++


@pytest.mark.parametrize("steps", [9, 10, 300])
def test_lp_plus_plus(clip: Clip, samples: Samples, steps: int) -> None:
    method = make_method("lp_plus_plus", steps=steps)
    assert sampling_of(method).passes == 1 and sampling_of(method).crop == 0.5
    start = method.init(jax.random.key(2), clip, NAMES)
    spread = np.abs(np.asarray(make_method("lp_plus_plus").init(jax.random.key(0), clip, range(400))["bias"]))
    assert 0.95 < spread.max() * clip.config.projection_width**0.5 <= 1
    noise = np.random.default_rng(3).normal(size=samples.validation.shape)
    single = dataclasses.replace(samples, features=samples.features[:1], validation=samples.validation + noise)
    features, labels = validation_features(single, SHOTS)
    expected = heads_lp_plus_plus.train(
        features=single.features[0],
        labels=LABELS,
        text_features=samples.text,
        bias=np.asarray(start["bias"]),
        validation_features=features,
        validation_labels=labels,
        steps=steps,
    )
    fitted = method.support(start, single)
    last = method.support(start, dataclasses.replace(single, validation=None))
    for name in ("weight", "bias", "alpha"):
        close(fitted[name], expected.best[name], 1e-6)
        close(last[name], expected.last[name], 1e-6)
    if steps == 300:
        accuracies = expected.accuracies
        first = 1 + accuracies.index(max(accuracies))
        assert 1 < first < expected.best_step < 300
    case = {"features": samples.validation, "text_features": samples.text}
    close(
        scored(method, fitted, samples, samples.validation), heads_lp_plus_plus.logits(**case, **expected.best), LOGITS
    )


# What is learned for each class


@pytest.mark.parametrize("name", ["linear_probe", "clap", "zs_lp", "lp_plus_plus"])
def test_rows_of_a_part_of_the_classes(clip: Clip, samples: Samples, name: str) -> None:
    method = make_method(name)
    rng = np.random.default_rng(0)
    shapes = method.init(jax.random.key(0), clip, NAMES)
    learnables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    task, part = (Task(clip, method, names) for names in (NAMES, ("blue", "red")))
    moved = transfer(task, part, learnables, (2, 0))
    two = dataclasses.replace(samples, text=samples.text[:, [2, 0]])
    whole = np.asarray(scored(method, learnables, samples, samples.validation))
    close(scored(method, moved, two, samples.validation), whole[:, [2, 0]], LOGITS)
    with pytest.raises(ClipbiasError, match="cannot be used with other classes such as 'blue'"):
        transfer(task, part, learnables, None)
