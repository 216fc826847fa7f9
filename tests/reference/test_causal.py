"""The reference of mixed runs agrees with plain forward passes where both are defined."""

import dataclasses

import numpy as np
import pytest

from tests import helpers
from tests.reference import causal, methods, numpy_clip, weight_tuning
from tests.reference.cases import CASES, CLASS_NAMES

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
    """The reference and the tuned run of both towers."""
    case = CASES[name]
    learnables = methods.random_learnables(clip.config, case.method, len(CLASS_NAMES), **case.sizes)
    before = None
    if "text_context" in learnables:
        other = methods.random_learnables(clip.config, case.method, len(CLASS_NAMES), seed=9, **case.sizes)
        before = other["text_context"]
    tuned = methods.prepare(clip, case.method, CLASS_NAMES, learnables, **case.options)
    plain = causal.reference_inputs(clip, case.method, CLASS_NAMES, before, **case.options)
    return {
        "vision": (causal.vision_run(clip, images), causal.vision_run(clip, images, tuned)),
        "text": (causal.text_run(clip, plain), causal.text_run(clip, tuned)),
    }


@pytest.mark.parametrize("name", MIXED)
def test_outer_corners_are_the_two_runs(name, clip, images):
    for reference, tuned in runs(clip, name, images).values():
        for letter, run in (("R", reference), ("P", tuned)):
            mixed = causal.corner(reference, tuned, letter, letter)
            np.testing.assert_allclose(mixed, run.forward.features, rtol=1e-9, atol=1e-11)


def test_the_corners_differ(clip, images):
    for reference, tuned in runs(clip, "ivlp_two_and_one_layers", images).values():
        mixed = [causal.corner(reference, tuned, *pair) for pair in ("RR", "PR", "RP", "PP")]
        for i, features in enumerate(mixed):
            assert all(np.abs(features - other).max() > 1e-4 for other in mixed[:i])


def test_weights_are_what_is_added_behind_a_block(clip, images):
    """Changes of queries and keys add nothing: attention alone is the tuned model; those of values add something."""
    learnables = weight_tuning.random_lora(weight_tuning.lora_shapes(clip.config, parts="qkvo"))
    state = weight_tuning.fold_lora(clip.state, learnables)
    plain = causal.vision_run(clip, images)
    for parts, alone in ((("q_proj.weight", "k_proj.weight"), "PR"), (("v_proj.weight", "out_proj.weight"), None)):
        kept = {name: value for name, value in state.items() if name.endswith(parts)}
        tuned = causal.vision_run(dataclasses.replace(clip, state={**clip.state, **kept}), images)
        np.testing.assert_allclose(causal.corner(plain, tuned, "P", "P"), tuned.forward.features, rtol=1e-9)
        added = np.abs(causal.added(plain, tuned).blocks).max()
        if alone:
            assert added < 1e-12
            np.testing.assert_allclose(causal.corner(plain, tuned, *alone), tuned.forward.features, rtol=1e-9)
        else:
            assert added > 1e-3


def test_the_words_of_a_prompt_are_the_reference_of_text(clip):
    """With the context's own embeddings in the slots the corner RR is plain CLIP on the text."""
    tokens = clip.tokenizer.tokenize([methods.WORDED.format(name.replace("_", " ")) for name in CLASS_NAMES])
    words = numpy_clip.token_embeddings(clip.state, tokens)[0, 1:5]
    plain = causal.reference_inputs(clip, "ivlp", CLASS_NAMES, words)
    run = causal.text_run(clip, plain)
    expected = numpy_clip.encode_text(clip.state, clip.config, tokens).features
    np.testing.assert_allclose(causal.corner(run, run, "R", "R"), expected, rtol=1e-9, atol=1e-11)
    assert all(causal.parts(run, l).mass[:, :, 1:].min() > 0 for l in range(3))
