"""Kinds and labels of text tokens by known answers, and the words nearest to prompts against plain NumPy."""

import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st

from clipbias.analysis.model import Model
from clipbias.analysis.results import Missing
from clipbias.analysis.study import Study, StudyOptions
from clipbias.analysis.words import (
    compute_words,
    context_words,
    readable_token,
    text_types,
    token_labels,
)
from clipbias.clip.tokenizer import encode
from clipbias.tuning import Task
from clipbias.tuning.tuned import Tuned
from tests.analysis.models import CLASS_NAMES
from tests.analysis.test_study import split

LETTERS = "spwcde-"  # SOS, prompt, words, category, dot, EOS, padding


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("zero_shot", {}, ["swwwwcde-", "swwwwccde"]),
        ("zero_shot", {"templates": "a painting of {}"}, ["swwwce-", "swwwcce"]),
        ("ivlp", {"text_tokens": 2}, ["sppwwcde-", "sppwwccde"]),
        ("ivlp", {"text_tokens": 4}, ["sppppcde-", "sppppccde"]),
        ("coop", {"position": "middle"}, ["sppcppde-", "sppccppde"]),
        ("coop", {"position": "front"}, ["scppppde-", "sccppppde"]),
    ],
)
def test_kinds_of_text_tokens(clip, method, options, expected):
    kinds = text_types(Task(clip, method, ["cat", "maine coon"], **options))
    assert ["".join(LETTERS[kind] for kind in row) for row in kinds] == expected


def test_parts_of_a_character_are_told_with_the_whole(clip):
    task = Task(clip, "zero_shot", ["blüte", "日", "\ufffd"])
    labels = [token_labels(task, text)[5:-1] for text in range(3)]
    assert labels[0] == ["b", "l", "ü 1/2", "ü 2/2", "t", "e"] and labels[1] == ["日 1/3", "日 2/3", "日 3/3"]
    for text in range(3):
        assert len(token_labels(task, text)) == int(task.tokens.eos[text])


def test_words_name_learned_tokens_by_number(clip):
    plain, learned = Task(clip, "zero_shot", CLASS_NAMES), Task(clip, "ivlp", CLASS_NAMES, text_tokens=2)
    assert token_labels(plain, 1) == ["SOS", *["a", "photo", "of", "a", "maine", "coon", "."]]
    assert token_labels(learned, 0) == ["SOS", *["[1]", "[2]", "of", "a", "cat", "."]]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 12), st.booleans())
def test_the_nearest_words_are_those_of_all_distances(seed, count, whole_numbers):
    rng = np.random.default_rng(seed)
    vectors, table = (rng.normal(size=(n, 4)).astype(np.float32) for n in (3, 11))
    if whole_numbers:  # many ties
        vectors = vectors.round()
        table = table.round()
    with sklearn.config_context(working_memory=len(table) * 8 * 2 / 2**20):  # two rows at a time
        found, near, means = context_words(vectors, table, count)
    distances = np.linalg.norm(np.float64(vectors[:, None]) - np.float64(table), axis=-1)
    ids = np.argsort(distances, axis=1, kind="stable")[:, :count]  # equal ones in the order of the rows
    np.testing.assert_array_equal(found, ids)
    np.testing.assert_allclose(near, np.take_along_axis(distances, ids, 1), rtol=1e-12, atol=0)
    np.testing.assert_allclose(means, distances.mean(1), rtol=1e-6)


def test_a_row_is_at_distance_0_from_itself_however_long_it_is():
    table = 1e4 + np.random.default_rng(0).normal(size=(50, 512)).astype(np.float32)
    found, distances, _ = context_words(table, table, 2)
    assert found[:, 0].tolist() == list(range(50))
    assert distances[:, 0].tolist() == [0] * 50


def test_a_piece_of_a_word_is_shown_as_one(clip):
    assert readable_token(clip.tokenizer, clip.tokenizer.convert_tokens_to_ids("p")) == "p-"


def words_of(clip, folder, *models):
    zero_shot = Model("zero_shot", "Zero-shot", Tuned(Task(clip, "zero_shot", CLASS_NAMES)))
    study = Study([zero_shot, *models], split(), StudyOptions(), folder)
    return study.run({"it": compute_words(study)})["it"]


def test_a_study_has_the_words_of_contexts(clip, tmp_path):
    """IVLP's context is two words."""
    task = Task(clip, "ivlp", CLASS_NAMES, text_tokens=2, depth=2)
    table = np.asarray(clip.params["text"]["token_embedding"])
    context = np.concatenate(encode(clip.tokenizer, ["photo", "cat"]))
    learnables = {name: np.zeros(shape.shape, np.float32) for name, shape in task.shapes.items()}
    learnables["text_context"] = table[context]
    result = words_of(clip, tmp_path, Model("ivlp", "IVLP", Tuned(task, learnables)))["ivlp"]
    assert [prompt.words[0] for prompt in result.prompts] == ["photo", "cat"]
    assert [(prompt.prompt, prompt.class_name) for prompt in result.prompts] == [(0, None), (1, None)]
    for prompt in result.prompts:
        assert len(prompt.words) == len(prompt.distances) == 5
        assert prompt.distances[0] == 0 < prompt.distances[1] <= prompt.distances[2] < prompt.mean_distance


def test_a_context_of_each_class_is_told_by_it(clip, tmp_path):
    task = Task(clip, "coop", CLASS_NAMES, tokens=2, class_specific=True)
    learnables = {name: np.asarray(value) for name, value in task.init(0).items()}
    result = words_of(clip, tmp_path, Model("coop", "CoOp", Tuned(task, learnables)))["coop"]
    named = [(prompt.class_name, prompt.prompt) for prompt in result.prompts]
    assert named == [(name, number) for name in task.class_names for number in range(2)]


def test_without_text_prompts_the_reason_is_given(clip, tmp_path):
    task = Task(clip, "bias", CLASS_NAMES)
    results = words_of(clip, tmp_path, Model("bias", "Bias tuning", Tuned(task, task.init(0))))
    assert results == {"bias": Missing("There are no learned text prompts.")}
