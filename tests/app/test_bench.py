"""What the page computes, against the library's own functions; the page itself is in `test_page.py`."""

import dataclasses
import types
from typing import Any

import jax
import numpy as np
import pytest
import scipy.special

import clipbias
from clipbias.app import (
    ATTENTION,
    PICTURES,
    PROMPT,
    RELEVANCY,
    ZERO_SHOT,
    Bench,
    _Events,
    probabilities,
    read_names,
    starting_point,
    vision_prompts,
)
from clipbias.clip import Clip, encode_image
from clipbias.data import demo
from clipbias.explain.similarity import observe_similarity
from clipbias.tuning.conformal import Calibration
from tests.app.adapters import NAMES, PICTURE, tuned

TEXT = "\n".join(NAMES)


@pytest.mark.ci
def test_probabilities_are_those_of_the_task_for_any_names(bench: Bench, clip: Clip) -> None:
    prompts, plain = bench.bind("prompts", "bird, cat"), bench.bind(ZERO_SHOT, "bird, cat", "a {}.")
    assert prompts is bench.bind("prompts", "bird, cat")
    assert vision_prompts(prompts) == 4 and vision_prompts(plain) == 0
    for side, method, text in ((prompts, "ivlp", {}), (plain, "zero_shot", {"template": "a {}."})):
        task = clipbias.Task(clip, method, ["bird", "cat"], **text)
        learned = bench.models["prompts"].learnables if method == "ivlp" else {}
        logits = np.asarray(jax.jit(task.logits)(clip.params, learned, clip.preprocess([PICTURE])))
        np.testing.assert_allclose(probabilities(side, PICTURE), scipy.special.softmax(logits[0]), rtol=1e-5)


@pytest.mark.long
def test_relevancy_counts_from_the_layer_that_was_chosen(bench: Bench, clip: Clip) -> None:
    side = bench.bind("prompts", TEXT)
    layers = clip.config.vision.layers
    look, note = bench.look(side, PICTURE, 1, layer=2)
    maps = clipbias.relevancy(side.task, clip.params, side.learnables, clip.preprocess([PICTURE]), [1], start_layer=1)
    assert look is not None and note == f"{NAMES[1]}: layers 2 to {layers}" and look.title == NAMES[1]
    np.testing.assert_allclose(look.vision, maps.vision[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(look.text, maps.text[0], rtol=1e-4, atol=1e-7)
    assert look.tokens[:2] == ("SOS", "[1]") and look.tokens[-2:] == ("dog", ".")
    drawn = bench.draw(look, PICTURE)
    assert drawn.dtype == np.uint8 and drawn.shape[-1] in (3, 4) and len(np.unique(drawn)) > 50


def test_attention_and_nearness_are_of_the_layer_and_the_prompt(bench: Bench, clip: Clip) -> None:
    side = bench.bind("prompts", TEXT)
    patches = clip.config.vision.patches
    adaptation = side.task.method.adapt(side.learnables)
    last = clip.config.vision.layers
    _images = clip.preprocess([PICTURE])

    @jax.jit
    def run(params: Any, adaptation: Any, images: Any) -> Any:
        slots = [observe_similarity(patches, prompts=4, prompt=prompt) for prompt in range(4)]
        every = lambda view: [observe(view) for observe in slots]  # noqa: E731
        return encode_image(params, clip.config, images, adaptation, observe=every)[1]

    every = jax.device_get(run(clip.params, adaptation, clip.preprocess([PICTURE])))
    for layer, slot in ((1, 3), (last, 1)):
        seen = every[slot - 1]
        for kind, row in ((ATTENTION, seen["cls"]), (PROMPT, 1 - seen["distance"])):
            look, note = bench.look(side, PICTURE, 0, kind, layer, slot)
            assert look is not None and not look.tokens
            np.testing.assert_allclose(look.vision[:patches], np.asarray(row)[layer - 1, 0], rtol=1e-4, atol=1e-6)
    assert note == f"layer {last}, prompt 1 of 4"


def test_a_sentence_stands_where_there_is_no_map(bench: Bench, clip: Clip) -> None:
    assert bench.look(bench.bind(ZERO_SHOT, TEXT), PICTURE, 0, PROMPT) == (None, "There are no vision prompts.")
    other = Bench(clip, {"inserted": tuned(clip, "mmrl", NAMES)})
    for kind in (RELEVANCY, ATTENTION, PROMPT):
        look, note = other.look(other.bind("inserted", TEXT), PICTURE, 0, kind)
        assert look is None and note.startswith("Tokens are inserted inside")
    size = clip.config.vision.image_size
    assert other.draw(None, PICTURE).shape == (size, size, 3)


def test_the_pictures_to_start_from_are_of_the_classes(bench: Bench) -> None:
    emoji, clothes = demo.load("demo/emoji"), demo.load("demo/fashion")
    pictures, names, template = starting_point(None)
    assert len(pictures) == PICTURES and (names, template) == (emoji.class_names, emoji.template)
    pictures, names, template = starting_point(None, ["dog", "unicorn", "cat"])
    assert len(pictures) == 2 and names == ["dog", "unicorn", "cat"] and not template
    model = bench.models["prompts"]
    assert starting_point(model) == ([], tuple(NAMES), model.task.template)
    other = dataclasses.replace(model.with_classes(("bag", "coat")), notes={"dataset": "demo/fashion"})
    pictures, names, _ = starting_point(other)
    test = clothes.split("test")
    for picture, name in zip(pictures, names, strict=True):
        number = list(test.labels).index(clothes.class_names.index(name))
        np.testing.assert_array_equal(np.asarray(picture), test.image(number))


@pytest.mark.ci
def test_a_calibrated_model_says_which_classes_are_likely_or_that_it_is_none(bench: Bench) -> None:
    """Beside the probabilities, for its own classes alone; gradio's components are played."""
    model = bench.models["prompts"]
    logits = model.predict([PICTURE]).logits
    scores = Calibration.of(np.repeat(logits, 12, 0), np.full(12, logits[0].argmax()), 14.0)
    played = types.SimpleNamespace(update=lambda **values: values)

    def answer(calibration: Calibration, names: str = TEXT) -> object:
        calibrated = dataclasses.replace(model, calibration=calibration)
        events = _Events(Bench(bench.clip, {"prompts": calibrated}), played)
        return events.classify(PICTURE, names, "a {}.", "prompts", None)[2]  # type: ignore[arg-type]

    likely = model.predict([PICTURE]).classes[0]
    assert answer(scores) == f'<div class="answer">90 % set: {likely}</div>'
    lower = dataclasses.replace(scores, max_logit=scores.max_logit + 1)
    assert answer(lower) == '<div class="answer">none of these</div>'
    assert answer(scores, "bird, cat") == ""


def test_names_are_read_as_people_write_them() -> None:
    assert read_names("cat, a grey dog,\n") == ["cat", "a grey dog"]
    assert read_names(" cat\n\nsalt, pepper\ncat\n") == ["cat", "salt, pepper"]
