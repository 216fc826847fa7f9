"""What the page computes, against the library's own functions; the page itself is in `test_page.py`."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.special

import clipbias
from clipbias.app import MOST_EXAMPLES, NO_ADAPTER, classify, read_names, starting_point
from clipbias.data import demo
from tests.app import NAMES, PICTURE, tuned

TEXT = "\n".join(NAMES)


@pytest.mark.ci
def test_probabilities_are_those_of_the_task_for_any_names(bench, clip):
    prompts, plain = bench.bind("prompts", "bird, cat"), bench.bind(NO_ADAPTER, "bird, cat", "a {}.")
    assert prompts is bench.bind("prompts", "bird, cat")
    for side, method, text in ((prompts, "ivlp", {}), (plain, "zero_shot", {"template": "a {}."})):
        task = clipbias.Task(clip, method, ["bird", "cat"], **text)
        learned = bench.models["prompts"].learnables if method == "ivlp" else {}
        logits = np.asarray(jax.jit(task.logits)(clip.params, learned, clip.preprocess([PICTURE])))
        shares, words, drawn = classify(side, PICTURE)
        assert [*shares] == ["bird", "cat"] and drawn is not None and words == ""  # calibrated for other classes
        np.testing.assert_allclose(list(shares.values()), scipy.special.softmax(logits[0]), rtol=1e-5)


@pytest.mark.ci
def test_a_calibrated_model_says_which_classes_are_likely_or_that_it_is_none(bench):
    model = bench.models["prompts"]
    assert model.calibration is not None
    assert classify(model, PICTURE)[1] == f"90 % set: {model.predict([PICTURE]).classes[0]}"
    strict = dataclasses.replace(model.calibration, max_logit=model.calibration.max_logit + 1)
    assert classify(dataclasses.replace(model, calibration=strict), PICTURE)[1] == "none of these"


def test_a_sentence_stands_where_there_is_no_map(clip):
    shares, words, drawn = classify(tuned(clip, "mmrl", NAMES), PICTURE)
    assert [*shares] == NAMES and drawn is None and "Tokens are inserted inside the towers" in words


def test_the_pictures_to_start_from_are_of_the_classes(bench):
    emoji, clothes = demo.load("demo/emoji"), demo.load("demo/fashion")
    pictures, names, template = starting_point(None)
    assert len(pictures) == MOST_EXAMPLES and (names, template) == (emoji.class_names, emoji.template)
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


def test_names_are_read_as_people_write_them():
    assert read_names("cat, a grey dog,\n") == ["cat", "a grey dog"]
    assert read_names(" cat\n\nsalt, pepper\ncat\n") == ["cat", "salt, pepper"]
