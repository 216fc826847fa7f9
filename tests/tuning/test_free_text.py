"""Texts of any kind in place of class names and their template."""

import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.clip.tokenizer import encode
from clipbias.explain.attention import token_labels
from clipbias.tuning import Task

TEXTS = ("a dog on_grass.", "two cats {}", "a dog")


def ids(task: Task, text: int) -> list[int]:
    """The tokens of one text without those after its end."""
    return np.asarray(task.tokens.ids)[text, : task.tokens.eos[text] + 1].tolist()


@pytest.mark.parametrize("method", ["zero_shot", "bias", "vpt"])
def test_texts_stand_alone(clip: Clip, method: str) -> None:
    task = Task(clip, method, TEXTS, template="a photo of a {}, a pet.", free_text=True)
    tokenizer = clip.tokenizer
    for i, words in enumerate(encode(tokenizer, list(TEXTS))):
        assert ids(task, i) == [tokenizer.bos_token_id, *words, tokenizer.eos_token_id]
    assert task.texts == TEXTS
    assert ids(task, 0) != ids(Task(clip, method, ("a dog on grass.",), free_text=True), 0)  # to the letter


@pytest.mark.parametrize(("method", "options"), [("coop", {}), ("coop", {"position": "front"}), ("ivlp", {})])
def test_a_learned_context_stands_before_them(clip: Clip, method: str, options: dict[str, str]) -> None:
    task = Task(clip, method, TEXTS, free_text=True, **options)
    tokenizer = clip.tokenizer
    learned = [f"[{i}]" for i in range(1, 5)]
    for i, (words, context) in enumerate(
        zip(encode(tokenizer, list(TEXTS)), encode(tokenizer, ["a photo of a"] * 3), strict=True)
    ):
        middle = [*words, *context] if options else [*context, *words]
        assert ids(task, i) == [tokenizer.bos_token_id, *middle, tokenizer.eos_token_id]
        labels = token_labels(task, i)
        assert labels[0] == "SOS"
        assert (labels[-4:] if options else labels[1:5]) == learned
