"""Every method stays in a study: what makes sense for it is computed, and one sentence stands in place of the rest."""

from typing import Any

import jax
import numpy as np
import pytest

from clipbias.analysis.bias import changed_towers, measure_equivalent_bias, reference_adaptation
from clipbias.analysis.causal import PathPatch
from clipbias.analysis.causal_section import Way, compute_causal, halves
from clipbias.analysis.model import Model, why_no_causal_test, why_no_maps
from clipbias.analysis.relevancy import relevancy
from clipbias.analysis.results import present
from clipbias.analysis.run import run_study
from clipbias.analysis.study import Study, StudyOptions
from clipbias.clip import Adaptation, encode_text
from clipbias.clip.encode import image_batches
from clipbias.data import transforms
from clipbias.data.transforms import Resizing
from clipbias.tuning import Task, registry
from clipbias.tuning.tuned import Tuned
from tests.analysis.models import CLASS_NAMES, moved
from tests.analysis.test_study import split
from tests.reference import calibration, causal, inner_parts, methods, numpy_clip, prompts, prompts_plot, weights
from tests.reference import equivalent_bias as plain_bias
from tests.reference import relevancy as plain_relevancy
from tests.tuning import weights_common

PHRASES = ("a photo of a", "this is the dog")
# The model reads 24 tokens.
OPTIONS: dict[str, dict[str, Any]] = {
    "plot": {"tokens": 4, "sets": 2},
    "plot_plus_plus": {"phrases": PHRASES},
    "tpt": {"crops": 9},
    "mmrl": {"blocks": 2, "space": 6, "tokens": 2},
}
IMAGES = 3


def model(clip, method):
    task = Task(clip, method, CLASS_NAMES, **OPTIONS.get(method, {}))
    return Model(method, method.upper(), Tuned(task, moved(task) if method != "zero_shot" else {}), seed=1)


def study(clip, folder, *names, **options):
    images = split().subset(np.arange(IMAGES))
    study_options = StudyOptions(batch_size=2, explore_images=2, **options)
    models = [model(clip, name) for name in ("zero_shot", *names)]
    return Study(models, images, study_options, folder, training=images)


METHODS = ("cocoop", "plot", "plot_plus_plus", "mmrl", "tpt", "taskres", "tip_adapter")
HEADS = ("taskres", "tip_adapter")


@pytest.mark.long
def test_a_study_keeps_every_method_and_says_what_it_leaves_out(clip, tmp_path):
    made = study(clip, tmp_path, *METHODS)
    predicted = np.arange(IMAGES, dtype=np.int32) % 3
    made.known = lambda each: predicted  # so that nothing but the sections is compiled
    results = run_study(made, tmp_path, dataset="noise", sections=("text_attention", "similarity", "decomposition"))
    assert [each.key for each in results.models] == ["zero_shot", *METHODS]
    inside = {"cocoop", "tpt", "mmrl"}
    assert set(results.why_missing("text_attention")) == inside
    assert set(results.why_missing("similarity")) == set(METHODS)
    assert set(results.why_missing("decomposition")) == {*inside, *HEADS}
    decomposed = present(results.sections["decomposition"])
    towers = {key: sorted(result.towers) for key, result in decomposed.items()}
    assert towers == {"plot": ["text"], "plot_plus_plus": ["text", "vision"]}
    # Sections that take long say the same of the methods that they leave out.
    tasks = {each.key: each.task for each in made.tuned}
    assert {key for key, task in tasks.items() if why_no_maps(task)} == {"plot", "plot_plus_plus", "mmrl", "tpt"}
    assert {key for key, task in tasks.items() if why_no_causal_test(task)} == {"mmrl", "plot", *HEADS}
    assert [key for key, task in tasks.items() if not changed_towers(task)] == list(HEADS)


@pytest.mark.ci
@pytest.mark.parametrize("name", registry.METHODS)
def test_the_reference_run_is_a_clip_that_reads_words(clip, name):
    """Else what training gains over a random start would be called a gain over zero-shot CLIP."""
    task = Task(clip, name, CLASS_NAMES, **OPTIONS.get(name, {}))
    why = why_no_causal_test(task)
    read, words = (
        encode_text(clip.params, clip.config, task.tokens, adaptation)[0]
        for adaptation in (reference_adaptation(task, task.init(seed=3)), Adaptation())
    )
    assert np.allclose(read, words, atol=1e-5) or why
    assert not ("are no words" in why and np.allclose(read, words, atol=1e-5))


def normalised(clip):
    images = split().subset(np.arange(IMAGES))
    raw = np.stack([transforms.test_image(images.image(i), Resizing(16)) for i in range(IMAGES)])
    return (raw / 255 - np.asarray(clip.preprocessing.mean)) / np.asarray(clip.preprocessing.std)


@pytest.mark.ci
def test_passes_and_texts_of_an_image_are_each_runs_of_its_own(clip, reference, tmp_path):
    """PLOT++ and CoCoOp, from the images to the likelihoods."""
    made = study(clip, tmp_path, "plot_plus_plus", "cocoop")
    images = normalised(clip)
    labels = np.arange(IMAGES) % 3
    tests = made.run({"it": compute_causal(made)})["it"].models
    many, single = made.tuned
    before, after = (
        prompts_plot.plus_inputs(reference, CLASS_NAMES, jax.device_get(x), PHRASES)
        for x in (many.task.init(1), many.learnables)
    )
    features: dict[str, list[np.ndarray]] = {}
    for tower in ("vision", "text"):
        features[tower] = []
        for start, inputs in zip(before, after, strict=True):
            if tower == "vision":
                runs = causal.vision_run(reference, images), causal.vision_run(reference, images, inputs)
            else:
                runs = causal.text_run(reference, start), causal.text_run(reference, inputs)
            features[tower].append(np.stack([causal.corner(*runs, *patch.name) for patch in PathPatch]))
    image, text = (np.stack(features[tower], axis=1) for tower in ("vision", "text"))  # [4, m, B, d] and [4, P, C, d]
    logits = [prompts_plot.transport_logits(reference, *pair) for pair in zip(image, text, strict=True)]
    logits += [prompts_plot.transport_logits(reference, image[3], text[0])]
    logits += [prompts_plot.transport_logits(reference, image[0], text[3])]
    check(tests["plot_plus_plus"], np.stack(logits, axis=1), labels, (*CORNERS, Way.VISION, Way.TEXT))
    learnables = weights.double(single.learnables)
    seen = numpy_clip.encode_image(reference.state, reference.config, images).features
    start = causal.reference_inputs(reference, "coop", CLASS_NAMES, np.asarray(single.task.init(1)["text_context"]))
    rows = []
    for feature in seen:
        shifted = prompts.shifted(reference, CLASS_NAMES, learnables, feature)
        runs = causal.text_run(reference, start), causal.text_run(reference, shifted)
        by_path = [causal.corner(*runs, *patch.name) for patch in PathPatch]
        rows.append([numpy_clip.logits(reference.state, feature[None], texts)[0] for texts in by_path])
    check(tests["cocoop"], np.array(rows), labels, CORNERS)


CORNERS = (Way.REFERENCE, Way.ATTENTION, Way.TOKENS, Way.TUNED)


def check(test, logits, labels, ways):
    """Outcomes of a causal test of ways to classify, whose logits are `[n, K, C]`."""
    second = halves(labels)
    for k, way in enumerate(ways):
        at = test.ways.index(way.value)
        expected = calibration.cross_fitted(logits[:, k], labels, second)
        np.testing.assert_allclose(
            test.outcomes.log_likelihood[:, at], expected, rtol=2e-3, atol=5e-3, err_msg=way.value
        )
        np.testing.assert_array_equal(test.outcomes.correct[:, at], logits[:, k].argmax(-1) == labels)


def close(actual, expected, what):
    weights_common.close(actual, expected, 5e-5, what)


@pytest.mark.ci
def test_the_equivalent_bias_of_inserted_tokens_and_of_texts_of_images(clip, reference):
    """MMRL, whose later blocks have more tokens than the frozen ones, and CoCoOp, as a mean over images too."""
    images = normalised(clip)
    raw = split().subset(np.arange(IMAGES))
    tuned = model(clip, "mmrl")
    biases, _ = measure_equivalent_bias(
        tuned.task, clip.params, tuned.learnables, tuned.task.init(), image_batches(clip.preprocessing, raw, 2)
    )
    learned = inner_parts.flatten(tuned.learnables)
    for tower, inputs in inner_parts.towers_of(reference, CLASS_NAMES, methods.WORDED, images).items():
        enter = inner_parts.inserted(weights.double(learned), tower, 3)
        run = inner_parts.forward(reference, tower, inputs, enter=enter, later=2)
        assert len({block.tokens.shape[1] for block in run.blocks}) == 2
        for form, values in plain_bias.of_inserted(reference, tower, run).items():
            close(getattr(biases[tower], form), values, f"{tower} {form}")
    tuned = model(clip, "cocoop")
    biases, count = measure_equivalent_bias(
        tuned.task, clip.params, tuned.learnables, tuned.task.init(), image_batches(clip.preprocessing, raw, 2)
    )
    assert count == IMAGES and set(biases) == {"text"}
    learnables = weights.double(tuned.learnables)
    start = methods.prepare(
        reference, "coop", CLASS_NAMES, {"text_context": np.asarray(tuned.task.init()["text_context"])}
    )
    each = [
        plain_bias.of_texts(
            reference, reference.state, prompts.shifted(reference, CLASS_NAMES, learnables, feature), start
        )
        for feature in numpy_clip.encode_image(reference.state, reference.config, images).features
    ]
    for form in ("vector", "kind"):
        close(getattr(biases["text"], form), np.mean([inputs[form] for inputs in each], axis=0), form)


@pytest.mark.ci
def test_relevancy_holds_the_context_that_an_image_gives_fixed(clip, reference):
    """Then CoCoOp is CoOp with that context, image by image."""
    tuned = model(clip, "cocoop")
    images = normalised(clip)
    targets = np.array([[0, 2], [1, 0], [2, 1]])
    run = jax.jit(lambda p, learnables, x: relevancy(tuned.task, p, learnables, x, targets))
    maps = jax.device_get(run(clip.params, tuned.learnables, np.float32(images)))
    learnables = weights.double(tuned.learnables)
    for b, feature in enumerate(numpy_clip.encode_image(reference.state, reference.config, images).features):
        inputs = prompts.shifted(reference, CLASS_NAMES, learnables, feature)
        for k, target in enumerate(targets[b]):
            vision, text = plain_relevancy.relevancy(reference, inputs, images[b], target)
            close(maps.vision[b, k], vision, f"image {b}")
            close(maps.text[b, k, : len(text)], text, f"text {target} of image {b}")
            score = plain_relevancy.pair(reference, inputs, images[b], target).score
            assert float(maps.scores[b, k]) == pytest.approx(score, rel=5e-5)
