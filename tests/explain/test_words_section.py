"""The section of words finds the words that prompts were made of, and says why it has none."""

import numpy as np
import pytest

from clipbias.clip.tokenizer import encode
from clipbias.explain.model import Model
from clipbias.explain.options import StudyOptions
from clipbias.explain.results import Missing
from clipbias.explain.study import Study
from clipbias.explain.words import prompt_prefixes, word_states
from clipbias.explain.words_section import compute_words
from clipbias.tuning import Task
from tests.explain.models import CLASS_NAMES
from tests.explain.test_study import split


def words_of(clip, folder, *models, **options):
    zero_shot = Model("zero_shot", "Zero-shot", "zero_shot", Task(clip, "zero_shot", CLASS_NAMES), {})
    study = Study([zero_shot, *models], split(), StudyOptions(nearest_words=3, **options), folder)
    return study.run_section(compute_words(study))


@pytest.fixture
def ivlp(clip):
    """IVLP whose context is two words, and whose deeper prompts are the states of two others."""
    task = Task(clip, "ivlp", CLASS_NAMES, text_tokens=2, depth=2)
    table = np.asarray(clip.params["text"]["token_embedding"])
    context, deeper = (np.concatenate(encode(clip.tokenizer, words)) for words in (["photo", "cat"], ["texture", "of"]))
    states = [
        np.asarray(word_states({"text": clip.params["text"]}, clip.config, np.append(prefix, token)[None]))[1, 0]
        for prefix, token in zip(prompt_prefixes(task, 2), deeper, strict=True)
    ]
    learnables = {name: np.zeros(shape.shape, np.float32) for name, shape in task.shapes.items()}
    learnables |= {"text_context": table[context], "text_prompts": np.stack(states)[None]}
    return Model("ivlp", "IVLP", "ivlp", task, learnables)


def test_words_of_contexts(clip, tmp_path, ivlp):
    result = words_of(clip, tmp_path, ivlp)["ivlp"]
    assert [prompt.words[0] for prompt in result.prompts] == ["photo", "cat"]
    assert [(prompt.layer, prompt.prompt, prompt.class_name) for prompt in result.prompts] == [
        (0, 0, None),
        (0, 1, None),
    ]
    for prompt in result.prompts:
        assert len(prompt.words) == len(prompt.ids) == len(prompt.distances) == 3
        assert prompt.distances[0] == 0 < prompt.distances[1] <= prompt.distances[2] < prompt.mean_distance
    assert "--config.deeper_words" in result.remark


def test_words_of_deeper_prompts(clip, tmp_path, ivlp):
    result = words_of(clip, tmp_path, ivlp, deeper_words=True)["ivlp"]
    assert result.remark is None
    assert [prompt.layer for prompt in result.prompts] == [0, 0, 1, 1]
    assert [prompt.words[0] for prompt in result.prompts] == ["photo", "cat", "texture", "of"]


def test_a_context_of_each_class_is_told_by_it(clip, tmp_path):
    task = Task(clip, "coop", CLASS_NAMES, tokens=2, class_specific=True)
    learnables = {name: np.asarray(value) for name, value in task.init(0).items()}
    result = words_of(clip, tmp_path, Model("coop", "CoOp", "coop", task, learnables))["coop"]
    named = [(prompt.class_name, prompt.prompt) for prompt in result.prompts]
    assert named == [(name, number) for name in task.class_names for number in range(2)]


def test_without_text_prompts_the_reason_is_given(clip, tmp_path):
    task = Task(clip, "bias", CLASS_NAMES)
    results = words_of(clip, tmp_path, Model("bias", "Bias tuning", "bias", task, task.init(0)))
    assert results == {"bias": Missing("There are no learned text prompts.")}
