import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.explain.tokens import prompt_counts, text_kinds, text_roles, token_labels, vision_roles
from clipbias.tuning import Task
from tests.explain.models import CLASS_NAMES

LETTERS = "spcde-"  # SOS, prompt, category, dot, EOS, padding


@pytest.mark.parametrize(
    "method, options, expected",
    [
        ("zero_shot", {}, ["sppppcde-", "sppppccde"]),
        ("zero_shot", {"templates": "a {} texture."}, ["spcpde-", "spccpde"]),
        ("zero_shot", {"templates": "a painting of {}"}, ["spppce-", "spppcce"]),
        ("ivlp", {"text_tokens": 2}, ["sppppcde-", "sppppccde"]),
        ("coop", {"position": "middle"}, ["sppcppde-", "sppccppde"]),
        ("coop", {"position": "front"}, ["scppppde-", "sccppppde"]),
    ],
)
def test_kinds_of_text_tokens(clip, method, options, expected):
    kinds = text_kinds(Task(clip, method, ["cat", "maine coon"], **options))
    assert ["".join(LETTERS[kind] for kind in row) for row in kinds] == expected


def test_words_name_learned_tokens_by_number(clip):
    assert token_labels(Task(clip, "zero_shot", CLASS_NAMES), 1) == [
        "SOS",
        "a",
        "photo",
        "of",
        "a",
        "maine",
        "coon",
        ".",
    ]
    assert token_labels(Task(clip, "ivlp", CLASS_NAMES, text_tokens=2), 0) == [
        "SOS",
        "[1]",
        "[2]",
        "of",
        "a",
        "cat",
        ".",
    ]


def test_roles(clip):
    vision = vision_roles(clip.config.vision, 2)
    assert np.flatnonzero(vision.prompts).tolist() == [17, 18]
    assert np.flatnonzero(~vision.queries).tolist() == [17, 18]
    text = text_roles(Task(clip, "ivlp", ["cat", "maine coon"], text_tokens=2))
    assert np.flatnonzero(text.prompts[0]).tolist() == [1, 2]
    assert np.flatnonzero(text.queries[0]).tolist() == [3, 4, 5, 6, 7]  # not SOS, which sees no prompt, nor padding
    front = text_roles(Task(clip, "coop", ["cat"], position="front"))
    assert not front.queries[0, 1]  # the name comes first


@pytest.mark.parametrize(
    "method, expected", [("zero_shot", (0, 0)), ("vpt", (4, 0)), ("coop", (0, 4)), ("maple", (2, 2)), ("bias", (0, 0))]
)
def test_prompt_counts(clip, method, expected):
    task = Task(clip, method, ["cat"])
    assert prompt_counts(task, jnp.zeros(0) if method == "zero_shot" else task.init()) == expected
