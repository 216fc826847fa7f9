"""The reference of mixed runs agrees with plain forward passes where both are defined."""

import dataclasses

import numpy as np
import pytest

from tests import helpers
from tests.reference import factorial, methods, numpy_clip, weight_tuning
from tests.reference.cases import CASES, CLASS_NAMES
from tests.reference.factorial import WITH_SLOTS, WITHOUT_SLOTS

MIXED = {
    "ivlp": (),
    "ivlp_two_and_one_layers": (),
    "ivlp_long": ("random",),
    "coop_middle": (),
    "coop_class_specific_front": ("random",),
    "coop_placeholders_middle": ("random",),
    "vpt_two_layers": (),
    "maple_two_layers": (),
    "bias": (),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> methods.Reference:
    return helpers.tiny_checkpoint(tmp_path_factory.mktemp("tiny"), vision=(16, 3, 2), image_size=8)


@pytest.fixture(scope="module")
def images(clip):
    return helpers.random_images(clip.config, 3)


def runs(clip, name, images):
    """The reference and the tuned run of both towers, and the effects in play."""
    case = CASES[name]
    learnables = methods.random_learnables(clip.config, case.method, len(CLASS_NAMES), **case.sizes)
    before = None
    if "text_context" in learnables:
        other = methods.random_learnables(clip.config, case.method, len(CLASS_NAMES), seed=9, **case.sizes)
        before = other["text_context"]
    tuned = methods.prepare(clip, case.method, CLASS_NAMES, learnables, **case.options)
    plain = factorial.reference_inputs(clip, case.method, CLASS_NAMES, before, **case.options)
    towers = {
        "vision": (factorial.vision_run(clip, images), factorial.vision_run(clip, images, tuned)),
        "text": (factorial.text_run(clip, plain), factorial.text_run(clip, tuned)),
    }
    slots = tuned.places.shape[1] or tuned.vision_prompts is not None
    return towers, WITH_SLOTS if slots else WITHOUT_SLOTS


@pytest.mark.parametrize("name", MIXED)
def test_outer_corners_are_the_two_runs(name, clip, images):
    towers, effects = runs(clip, name, images)
    for reference, tuned in towers.values():
        for letter, run in (("R", reference), ("P", tuned)):
            mixed = factorial.features(reference, tuned, letter * len(effects), effects)
            np.testing.assert_allclose(mixed, run.forward.features, rtol=1e-9, atol=1e-11)


def test_each_letter_matters(clip, images):
    towers, effects = runs(clip, "ivlp_two_and_one_layers", images)
    for reference, tuned in towers.values():
        mixed = [factorial.features(reference, tuned, s, effects) for s in factorial.streams(effects)]
        for i, features in enumerate(mixed):
            assert all(np.abs(features - other).max() > 1e-4 for other in mixed[:i])


def test_weights_go_with_the_values(clip, images):
    learnables = weight_tuning.random_lora(weight_tuning.lora_shapes(clip.config, parts="qkvo"))
    changed = dataclasses.replace(clip, state=weight_tuning.fold_lora(clip.state, learnables))
    reference, tuned = factorial.vision_run(clip, images), factorial.vision_run(changed, images)
    mixed = {s: factorial.features(reference, tuned, s, WITHOUT_SLOTS) for s in factorial.streams(WITHOUT_SLOTS)}
    np.testing.assert_allclose(mixed["PP"], tuned.forward.features, rtol=1e-9)
    # The tuned model's weights under given attention do not depend on its queries and keys.
    weights = {
        name: value for name, value in changed.state.items() if not name.endswith(("q_proj.weight", "k_proj.weight"))
    }
    other = dataclasses.replace(tuned, state={**clip.state, **weights})
    np.testing.assert_allclose(factorial.features(reference, other, "RP", WITHOUT_SLOTS), mixed["RP"], rtol=1e-12)
    assert np.abs(mixed["RP"] - mixed["PP"]).max() > 1e-3 < np.abs(mixed["PR"] - mixed["RR"]).max()


def test_the_words_of_a_prompt_are_the_reference_of_text(clip):
    """With the context's own embeddings in the slots the all-R corner is plain CLIP on the text."""
    tokens = clip.tokenizer.tokenize([methods.WORDED.format(name.replace("_", " ")) for name in CLASS_NAMES])
    words = numpy_clip.token_embeddings(clip.state, tokens)[0, 1:5]
    plain = factorial.reference_inputs(clip, "ivlp", CLASS_NAMES, words)
    run = factorial.text_run(clip, plain)
    expected = numpy_clip.encode_text(clip.state, clip.config, tokens).features
    np.testing.assert_allclose(factorial.features(run, run, "RRR", WITH_SLOTS), expected, rtol=1e-9, atol=1e-11)
    assert all(factorial.parts(run, l).mass[:, :, 1:].min() > 0 for l in range(3))


def test_shapley_values_add_up_and_divide_an_interaction(images):
    rng = np.random.default_rng(0)
    outcome = {s: rng.normal(size=4) for s in factorial.streams(WITH_SLOTS)[:8]}
    values = factorial.shapley(outcome, WITH_SLOTS)
    np.testing.assert_allclose(sum(values.values()), outcome["PPP"] - outcome["RRR"])
    product = {s: np.array(float(s[0] == s[2] == "P")) for s in outcome}
    assert factorial.shapley(product, WITH_SLOTS) == {"attention": 0.5, "scale": 0.0, "values": 0.5}
