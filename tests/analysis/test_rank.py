"""The rank curve: students against NumPy in float64, a planted map, words, and the section in a small study."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

from clipbias.analysis import rank, replacement
from clipbias.analysis.model import Model
from clipbias.analysis.rank import SEEN, TEXTS, ClassVectors, FixedTexts, LinearMap, sentence
from clipbias.analysis.replacement import Fits, Origin, compare
from clipbias.analysis.results import Missing
from clipbias.analysis.results_file import load_results
from clipbias.analysis.run import run_study
from clipbias.analysis.study import Study, StudyOptions
from clipbias.data import Split
from clipbias.intervals import Estimate
from clipbias.training import students
from clipbias.tuning import CONSTANTS, Task
from clipbias.tuning.method import without_constants
from clipbias.tuning.tuned import Tuned
from tests.analysis.models import CLASS_NAMES, moved, tuned
from tests.reference import numpy_clip
from tests.report.synthetic import model_replacements
from tests.training.conftest import colour_split
from tests.tuning.weights_common import drawn


def with_constants(task, size=0.3, **constants):
    """Learnables far from where they start, and these constants."""
    learnables = drawn(without_constants(task.shapes), size, seed=5)
    return {**learnables, CONSTANTS: {name: np.float32(value) for name, value in constants.items()}}


def features_of(clip):
    width = clip.config.projection_width
    return numpy_clip.unit(np.random.default_rng(3).normal(size=(len(CLASS_NAMES), width)))


def logits_of(task, learnables, images):
    return np.asarray(jax.jit(task.logits)(task.clip.params, learnables, images))


@pytest.mark.parametrize("size", [0, 3])
def test_a_map_against_numpy(clip, reference, images, size):
    task = Task(clip, FixedTexts(LinearMap(size)), CLASS_NAMES)
    texts = features_of(clip)
    learnables = with_constants(task, **{TEXTS: texts})

    def beside(layer, normed):
        if not size:
            return 0.0
        down, up = (learnables[name][layer].astype(np.float64) for name in ("vision_down", "vision_up"))
        return normed @ down @ up

    bias = learnables["vision_bias"].astype(np.float64)
    expected = numpy_clip.encode_image(reference.state, reference.config, images, bias=bias, beside=beside).features
    np.testing.assert_allclose(
        logits_of(task, learnables, images), numpy_clip.logits(reference.state, expected, texts), atol=2e-4
    )


def test_a_map_starts_at_zero_and_both_ends_learn(clip):
    learnables = Task(clip, FixedTexts(LinearMap(2)), CLASS_NAMES).init(1)
    assert np.abs(learnables["vision_down"]).min() > 0 and not np.any(learnables["vision_up"])


@pytest.mark.parametrize("method", ["ivlp", "lora"])
def test_the_ceiling_with_the_teachers_numbers_is_the_teacher(clip, images, method):
    task, learnables = tuned(clip, method)
    student = Task(clip, FixedTexts(task.method), CLASS_NAMES)
    constants = {**learnables.get(CONSTANTS, {}), TEXTS: np.asarray(task.class_features(clip.params, learnables))}
    found = logits_of(student, {**learnables, CONSTANTS: constants}, images)
    np.testing.assert_allclose(found, logits_of(task, learnables, images), atol=2e-4)
    assert not student.classifier.changes_text(student.shapes) and student.classifier.changes_vision(student.shapes)


def test_vectors_by_class_against_numpy(clip, reference, images):
    """Each image by itself, with the mean of the classes' vectors under the frozen model's softmax."""
    task = rank.bound(Task(clip, FixedTexts(ClassVectors()), CLASS_NAMES))
    texts = features_of(clip)
    seen = numpy_clip.unit(np.ones(texts.shape[1]) + 0.05 * texts)  # so near to each other that no class has all weight
    learnables = with_constants(task, 0.3, **{TEXTS: texts, SEEN: seen})
    state, config = reference.state, reference.config
    found = logits_of(task, learnables, images)
    vectors = learnables["vision_bias"].astype(np.float64)
    for image, scores in zip(images, found, strict=True):
        frozen = numpy_clip.encode_image(state, config, image[None]).features
        weights = numpy_clip.softmax(numpy_clip.logits(state, frozen, seen))[0]
        assert weights.max() < 0.999  # otherwise an argmax would do as well
        bias = np.einsum("c,cltd->ltd", weights, vectors)
        feature = numpy_clip.encode_image(state, config, image[None], bias=bias).features
        np.testing.assert_allclose(scores, numpy_clip.logits(state, feature, texts)[0], atol=5e-4)


def study_of(clip, model, folder, steps, images=8):
    zero_shot = Model("zero_shot", "Zero-shot", Tuned(Task(clip, "zero_shot", CLASS_NAMES)))
    options = StudyOptions(replacement_steps=steps, rank_curve=True)
    return Study([zero_shot, model], colour_split(4, 3), options, folder, unlabelled=colour_split(images, 0))


def mosaics(count):
    """Images of random tiles, so that no two have tokens in common."""
    encoded = []
    draw = np.random.default_rng(1)
    for _ in range(count):
        tiles = draw.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(tiles.repeat(8, 0).repeat(8, 1)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    keys = tuple(f"{number}.png" for number in range(count))
    return Split(keys, np.zeros(count, int), encoded.__getitem__, source="")


@pytest.mark.long
def test_a_planted_map_is_reached_from_its_rank_on(clip, tmp_path, monkeypatch):
    """A teacher with a map of rank 2: a student of rank 2 comes near to it, students of rank 0 and 1 do not."""
    names = [f"class {letter}" for letter in "abcdefghijkl"]  # many, so that outputs tell much of a feature
    task = Task(clip, FixedTexts(LinearMap(2)), names, method_name="planted")
    texts = numpy_clip.unit(np.random.default_rng(3).normal(size=(len(names), clip.config.projection_width)))
    learnables = with_constants(task, 0.0, **{TEXTS: texts})
    # In each block two orthogonal directions of the same size.
    draw = np.random.default_rng(0)
    for layer in range(clip.config.common_blocks):
        down, up = (np.linalg.qr(draw.normal(size=(clip.config.vision.width, 2)))[0] for _ in range(2))
        learnables["vision_down"][layer], learnables["vision_up"][layer] = down, 0.5 * up.T
    model = Model("planted", "Planted", Tuned(task, learnables), seed=1)
    monkeypatch.setattr(students, "select_learning_rate", lambda divergence, first: (divergence(first), first)[1])
    study = study_of(clip, model, tmp_path, 1240)
    study.unlabelled = mosaics(400)
    fits = Fits(study, 3)
    found = {}
    for size in (0, 1, 2):
        student = Task(clip, FixedTexts(LinearMap(size)), names, method_name=f"rank{size}")
        constants = {TEXTS: learnables[CONSTANTS][TEXTS]}
        found[size] = fits.fit(model, student, rate=0.01, constants=constants).fitted_divergence
    assert found[2] < 0.5 * found[1] < 0.25 * found[0], found


def test_the_smallest_rank_within_five_points():
    far, near, unsure = Estimate(-0.12, -0.15, -0.09), Estimate(-0.01, -0.04, 0.02), Estimate(-0.02, -0.06, 0.02)
    ceiling, form, *_ = compare([model_replacements().by_image])[1]

    too_uncertain = "The share of changed predictions is too uncertain to compare them with the ceiling:"

    def said(gaps):
        """Of the ceiling, vectors by class that are near, and maps with these gaps."""
        rows = [ceiling]
        for name, gap in {"class": near, **{f"rank{size}": gap for size, gap in gaps.items()}}.items():
            student = dataclasses.replace(form.student, form=name)
            rows.append(dataclasses.replace(form, student=student, less_ceiling=gap))
        return sentence("IVLP", rows)

    assert "has rank 4." in said({0: far, 1: unsure, 4: near, 8: near})
    assert said({0: far, 16: unsure}).startswith("No map up to rank 16 surely comes within 5 of 100")
    assert said({0: near, 1: far}).startswith("Two vectors per layer, without a map, come within 5 of 100")
    assert said({0: None, 1: None}) == f"{too_uncertain} {form.moved_images} of {form.images} images, 1 seed."
    form = dataclasses.replace(form, moved=None)
    assert said({0: None, 1: None}) == "IVLP changed no prediction."


def test_models_without_a_curve(clip, tmp_path):
    reasons = {"": "vpt", "image token": "coop", "more than a feature": "mmrl", "crops of each image": "tpt"}
    for why, method in reasons.items():
        task = Task(clip, method, CLASS_NAMES)
        study = study_of(clip, Model("it", "It", Tuned(task, task.init())), tmp_path, 2)
        reason = rank.why_no_curve(study, study.tuned[0])
        assert why in reason and bool(reason) == bool(why), reason
    off = Study(study.models, study.split, StudyOptions(), tmp_path, unlabelled=study.unlabelled)
    results = off.run({"it": rank.compute_rank(off)})["it"]
    missing = results.models["it"]
    assert isinstance(missing, Missing) and "rank_curve is False" in missing.reason and not results.methods


@pytest.mark.ci
def test_the_section(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(students, "select_learning_rate", lambda divergence, first: (divergence(first), first)[1])
    monkeypatch.setattr(rank, "RANKS", (0, 1))
    task = Task(clip, "ivlp", CLASS_NAMES)
    model = Model("ivlp", "IVLP", Tuned(task, moved(task)), seed=0)
    study = study_of(clip, model, tmp_path, 2, images=5)
    run_study(study, tmp_path, dataset="colours", sections=("rank",))
    results = load_results(tmp_path).sections["rank"]
    assert isinstance(results, replacement.ReplacementResults)
    found = results.models["ivlp"]
    assert not isinstance(found, Missing)
    places = [(each.kind, each.form) for each in found.by_image.students]
    assert places == [(Origin.CEILING, "ivlp"), *((Origin.FITTED, form) for form in ("class", "rank0", "rank1"))]
    assert all(each.steps == 2 and np.isfinite(each.held_back_divergence) for each in found.by_image.students)
    (method,) = results.methods
    assert method.rows == compare([found.by_image])[1] and method.sentence == sentence("IVLP", method.rows) != ""
