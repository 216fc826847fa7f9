"""Levels of what a tuned run adds, against the plain NumPy reference, and what must hold of them exactly."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from clipbias.clip import Adaptation, Clip
from clipbias.data.images import pictures
from clipbias.data.transforms import Resizing
from clipbias.explain.added import Added, added_to_images, added_to_texts
from clipbias.explain.factorial import corners, mix_images, mix_texts
from clipbias.explain.factorial_section import compute_factorial
from clipbias.explain.levels import why_no_levels
from clipbias.explain.model import Model
from clipbias.explain.options import StudyOptions
from clipbias.explain.results import CausalTest, CausalTests, LevelOutcomes
from clipbias.explain.study import Study
from clipbias.tuning import Task
from tests import helpers
from tests.explain.fitted_constants import everywhere, some_constant
from tests.explain.models import moved
from tests.explain.test_factorial import TOLERANCE, Bound, assert_close, bind, reference_runs
from tests.explain.test_study import split
from tests.helpers import short
from tests.reference import factorial, levels, methods, numpy_clip
from tests.reference.cases import CLASS_NAMES

# By tower. "everything" has slots, pixels, a bias by token, weights and the projection at once.
VISION = short(["ivlp", "lora", "everything", "layer_norm", "bias_by_kind"], "ivlp", "lora", "everything")
TEXTS = short(["maple", "bias_by_kind", "coop_long"], "maple", "bias_by_kind")
DONORS = np.array([[2, 0, 1], [1, 2, 0]])


@pytest.fixture(scope="module")
def images(reference: methods.Reference) -> np.ndarray:
    return helpers.random_images(reference.config, 3, seed=4)


@pytest.fixture(scope="module")
def training(reference: methods.Reference) -> np.ndarray:
    return helpers.random_images(reference.config, 4, seed=5)


def takes(stream: str) -> dict[str, str]:
    return {"attention": stream[0], "scale": stream[1] if len(stream) > 2 else "P"}


def streams(bound: Bound, letters: str) -> list[str]:
    return [corner + letter for letter in letters for corner in corners(bound.effects[:-1])]


def vision_features(bound: Bound, clip: Clip, images: Any, mean: Added, donors: Any, names: list[str]) -> Any:
    run = jax.jit(lambda p, *runs: mix_images(p, clip.config, images, *runs, names, {"M": mean}, donors))
    return run(clip.params, bound.tuned, bound.reference)


@pytest.mark.ci
@pytest.mark.parametrize("name", VISION)
def test_vision_levels_equal_the_reference(
    name: str, clip: Clip, reference: methods.Reference, images: np.ndarray, training: np.ndarray
) -> None:
    """Means over images that are not those of the test, in two batches; donors' values token by token."""
    bound = bind(clip, name)
    runs = reference_runs(bound, reference, clip, name, "vision", images)
    others = reference_runs(bound, reference, clip, name, "vision", training)
    expected_mean = levels.mean(others[1], levels.added(*others))
    totals = added_to_images(clip.config, clip.params, np.float32(training), np.ones(4, bool), bound.tuned)
    mean = Added.mean(jax.device_get(totals))
    assert_close(mean.start, expected_mean.start[0, :2], "the start") if np.any(expected_mean.start) else None
    for part in ("slots", "blocks"):
        expected = getattr(expected_mean, part)[:, 0, :2]
        actual = getattr(mean, part)
        if actual is None or not np.any(actual):
            assert np.abs(expected).max() < 1e-12
        else:
            assert_close(actual, expected, part)
    every = levels.added(*others)
    names = streams(bound, "M01")
    mixed = vision_features(bound, clip, np.float32(images), mean, np.float32(training)[DONORS], names)
    for stream, features in zip(names, mixed.streams, strict=True):
        level = expected_mean if stream[-1] == "M" else levels.of_samples(every, DONORS[int(stream[-1])])
        level = levels.of_samples(level, np.arange(3)) if stream[-1] == "M" else level
        assert_close(features, levels.features(*runs, takes(stream), level), stream)


@pytest.mark.ci
@pytest.mark.parametrize("name", TEXTS)
def test_text_levels_equal_the_reference(name: str, clip: Clip, reference: methods.Reference) -> None:
    bound = bind(clip, name)
    runs = reference_runs(bound, reference, clip, name, "text", None)
    level = levels.mean(runs[1], levels.added(*runs))
    tokens = bound.task.tokens
    mean = Added.mean(added_to_texts(clip.config, clip.params, tokens, bound.tuned, bound.reference))
    names = streams(bound, "M")
    run = jax.jit(lambda p, *pair: mix_texts(p, clip.config, tokens, *pair, names, {"M": mean}))
    mixed = run(clip.params, bound.tuned, bound.reference)
    seen: list[np.ndarray] = [runs[0].forward.features, runs[1].forward.features]
    for stream, features in zip(names, mixed.streams, strict=True):
        expected = levels.features(*runs, takes(stream), level)
        assert_close(features, expected, stream)
        if name != "bias_by_kind":
            assert all(np.abs(expected - other).max() > 1e-3 for other in seen), stream
        seen.append(expected)


@pytest.mark.parametrize("name", ["ivlp", "lora", "everything"])
def test_an_images_own_values_are_the_tuned_model(name: str, clip: Clip, images: np.ndarray) -> None:
    """A donor that is the image itself; without slots at the tuned run's attention alone."""
    bound = bind(clip, name)
    images = np.float32(images)
    mean = Added.mean(jax.device_get(added_to_images(clip.config, clip.params, images, np.ones(3, bool), bound.tuned)))
    tuned = bound.effects[:-1]
    names = ["P" * len(tuned) + "0"]
    if name == "ivlp":
        names = [corner + letter for corner in corners(tuned) for letter in "0P"]
    mixed = vision_features(bound, clip, images, mean, images[None], names)
    if name == "ivlp":
        for place in range(0, len(names), 2):
            assert_close(mixed.streams[place], np.asarray(mixed.streams[place + 1], np.float64), names[place])
    assert_close(mixed.streams[-2 if name == "ivlp" else -1], np.asarray(mixed.tuned, np.float64), "own")


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_the_mean_of_a_bias_is_the_tuned_model(tower: str, clip: Clip, images: np.ndarray) -> None:
    bound = bind(clip, "bias_by_kind")
    if tower == "vision":
        training = np.float32(images[:1])
        totals = added_to_images(clip.config, clip.params, training, np.ones(1, bool), bound.tuned)
        mean = Added.mean(jax.device_get(totals))
        mixed = vision_features(bound, clip, np.float32(images), mean, None, ["PM"])
    else:
        tokens = bound.task.tokens
        mean = Added.mean(added_to_texts(clip.config, clip.params, tokens, bound.tuned, Adaptation()))
        run = jax.jit(lambda p, t: mix_texts(p, clip.config, tokens, t, Adaptation(), ["PM"], {"M": mean}))
        mixed = run(clip.params, bound.tuned)
    np.testing.assert_allclose(mean.blocks, getattr(bound.tuned, f"{tower}_bias"), atol=3e-6)
    assert_close(mixed.streams[0], np.asarray(mixed.tuned, np.float64), "the mean")
    assert np.abs(mixed.tuned - mixed.reference).max() > TOLERANCE * 100


@pytest.fixture(scope="module")
def study_tests(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, CausalTests]:
    """Of IVLP, whose both towers have slots."""
    task = Task(clip, "ivlp", CLASS_NAMES)
    models = [
        Model("zero_shot", "Zero-shot", "zero_shot", Task(clip, "zero_shot", CLASS_NAMES), {}),
        Model("ivlp", "IVLP", "ivlp", task, moved(task), seed=1),
    ]
    options = StudyOptions(batch_size=4, control_images=0, training_images=3, level_steps=2)
    folder = tmp_path_factory.mktemp("levels")
    study = Study(models, split(), options, folder, training=split().subset([6, 5, 3, 1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipbias.explain.endpoint.FEWEST_IMAGES", 7)
        patch.setattr("clipbias.explain.levels.fit_constants", lambda *_: (some_constant(clip, 3),))
        return study, study.run_section(compute_factorial(study))


def columns(test: CausalTest, tower: str, name: str = "log_likelihood") -> dict[str, np.ndarray]:
    levels_of_tower = test.levels[tower]
    assert isinstance(levels_of_tower, LevelOutcomes)
    values = np.asarray(getattr(levels_of_tower.outcomes, name), np.float64)
    return dict(zip(levels_of_tower.streams, values.T, strict=True))


def test_a_study_has_the_levels_of_both_towers(
    study_tests: tuple[Study, CausalTests], clip: Clip, reference: methods.Reference
) -> None:
    """From files to each image's likelihood: means over training images, donors by the seed, texts as tuned."""
    study, tests = study_tests
    test = tests.models["ivlp"]
    assert isinstance(test, CausalTest)
    bound = bind(clip, "ivlp", seed=1)
    shown, training = (
        np.float64(study.normalize(pictures(split(), rows, Resizing(16)))) for rows in (np.arange(7), [6, 3, 1])
    )
    runs, others = (reference_runs(bound, reference, clip, "ivlp", "vision", x) for x in (shown, training))
    texts = reference_runs(bound, reference, clip, "ivlp", "text", None)
    every = levels.added(*others)
    mean = levels.mean(others[1], every)
    drawn = np.random.default_rng(0).integers(0, 3, (7, 3))
    vision, text = (columns(test, tower) for tower in ("vision", "text"))
    for place in ("RP", "PP"):
        takes_of_place = takes(f"{place}M")
        expected = {f"{place}M": levels.of_samples(mean, np.zeros(7, int))}
        expected |= {f"{place}{k}": levels.of_samples(every, drawn[:, k]) for k in range(3)}
        if place == "PP":
            expected["PPF"] = everywhere(some_constant(clip, 3), 7, clip.config.vision.tokens)
        for stream, level in expected.items():
            features = levels.features(*runs, takes_of_place, level)
            logits = numpy_clip.logits(reference.state, features, texts[1].forward.features)
            likelihood = factorial.log_likelihood(logits, split().labels)
            np.testing.assert_allclose(vision[stream], likelihood, atol=3e-4, err_msg=stream)
        level = levels.mean(texts[1], levels.added(*texts))
        features = levels.features(*texts, takes_of_place, level)
        logits = numpy_clip.logits(reference.state, runs[0].forward.features, features)
        likelihood = factorial.log_likelihood(logits, split().labels)
        np.testing.assert_allclose(text[f"{place}M"], likelihood, atol=3e-4, err_msg=f"text {place}")
    both = np.asarray(test.outcomes.log_likelihood, np.float64)
    np.testing.assert_allclose(vision["PPP"], both[:, 0, -1], atol=1e-5)  # the own level is the tuned model
    for place, stream in enumerate(test.streams):  # texts alone
        np.testing.assert_allclose(text[stream], both[:, test.towers.index("text"), place], atol=1e-5)


def test_steps_add_up_to_values_and_to_their_shapley_value(study_tests: tuple[Study, CausalTests]) -> None:
    test = study_tests[1].models["ivlp"]
    assert isinstance(test, CausalTest)
    for tower in ("vision", "text"):
        for outcome, name, unit in (("accuracy", "correct", 100.0), ("calibrated", "calibrated", 1.0)):
            means = {stream: unit * x.mean() for stream, x in columns(test, tower, name).items()}
            summary = test.summary.levels[tower][outcome]
            places = corners(test.effects[:-1])
            steps: dict[str, dict[str, float]] = {}
            for place in places:
                random = np.mean([means.get(f"{place}{k}", np.nan) for k in range(3)])
                ends = [means[f"{place}R"], means[f"{place}M"], means[f"{place}P"]]
                if tower == "vision":
                    ends.insert(2, float(random))
                steps[place] = dict(zip(summary.steps, np.diff(ends), strict=True))
            assert summary.all.value == pytest.approx(means[f"{places[-1]}P"] - means[f"{places[-1]}R"], abs=1e-4)
            for step, number in summary.steps.items():
                assert number.value == pytest.approx(steps[places[-1]][step], abs=1e-4)
                by_order = {place: steps[place][step] for place in places}
                weights = {0: 1 / 3, 1: 1 / 6, 2: 1 / 3}  # values come first, after one effect, or last
                expected = sum(weights[place.count("P")] * value for place, value in by_order.items())
                assert summary.shapley[step].value == pytest.approx(expected, abs=1e-4)
            if tower == "vision":
                assert summary.fitted is not None
                assert summary.fitted.value == pytest.approx(means["PPF"] - means["PPR"], abs=1e-4)
            else:
                assert summary.fitted is None
            assert summary.beyond.value == pytest.approx(summary.all.value - summary.steps["constant"].value)
            game = {stream: np.array([means[stream]]) for stream in corners(test.effects)}
            values = factorial.shapley(game, test.effects)["values"][0]
            assert sum(x.value for x in summary.shapley.values()) == pytest.approx(values, abs=1e-4)


def test_the_endpoint_compares_the_mean_with_half_of_the_gain(study_tests: tuple[Study, CausalTests]) -> None:
    cell = study_tests[1].cells[0]
    test = study_tests[1].models["ivlp"]
    assert isinstance(test, CausalTest) and cell.models == ("ivlp",)
    means = {stream: x.mean() for stream, x in columns(test, "vision", "calibrated").items()}
    corner = dict(zip(test.streams, np.asarray(test.outcomes.calibrated, np.float64)[:, 0].mean(0), strict=True))
    expected = means["PPM"] - means["PPR"] - (corner["PPP"] - corner["RRR"]) / 2
    values = {each.name: each.calibrated.value for each in cell.tests}
    assert values["constant"] == pytest.approx(expected, abs=1e-5)


def test_what_has_no_levels_says_why(clip: Clip, study_tests: tuple[Study, CausalTests], tmp_path: Path) -> None:
    study = study_tests[0]
    task = Task(clip, "cocoop", CLASS_NAMES)
    assert "depend on the image" in why_no_levels(study, Model("a", "A", "cocoop", task, task.init()), "text")
    bare = Study(study.models, split(), StudyOptions(), tmp_path)
    ivlp = study.models[1]
    assert "training images" in why_no_levels(bare, ivlp, "vision") and not why_no_levels(bare, ivlp, "text")
