import functools

import jax
import numpy as np
import pytest

from clipbias.clip import VisionConfig
from clipbias.explain.attention import (
    distance_and_entropy,
    index_kinds,
    text_kinds,
    text_roles,
    token_labels,
    vision_roles,
)
from clipbias.explain.model import Model
from clipbias.tuning import Task
from tests.explain.models import CLASS_NAMES

LETTERS = "spwcde-"  # SOS, prompt, words, category, dot, EOS, padding


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("zero_shot", {}, ["swwwwcde-", "swwwwccde"]),
        ("zero_shot", {"templates": "a {} texture."}, ["swcwde-", "swccwde"]),
        ("zero_shot", {"templates": "a painting of {}"}, ["swwwce-", "swwwcce"]),
        ("bias", {}, ["swwwwcde-", "swwwwccde"]),
        ("ivlp", {"text_tokens": 2}, ["sppwwcde-", "sppwwccde"]),
        ("ivlp", {"text_tokens": 4}, ["sppppcde-", "sppppccde"]),
        ("maple", {}, ["sppwwcde-", "sppwwccde"]),
        ("coop", {"position": "middle"}, ["sppcppde-", "sppccppde"]),
        ("coop", {"position": "front"}, ["scppppde-", "sccppppde"]),
    ],
)
def test_kinds_of_text_tokens(clip, method, options, expected):
    kinds = text_kinds(Task(clip, method, ["cat", "maine coon"], **options))
    assert ["".join(LETTERS[kind] for kind in row) for row in kinds] == expected


def test_what_is_the_same_for_all_classes_is_known_by_index(clip):
    kinds = text_kinds(Task(clip, "maple", ["cat", "maine coon"]))
    assert index_kinds(kinds) == ["sos", "prompt", "prompt", "words", "words", "category", "", "", ""]


def test_depth_and_count_of_prompts(clip):
    """In the vision tower, then in the text tower."""
    for method, options, depths, counts in (
        ("zero_shot", {}, (0, 0), (0, 0)),
        ("vpt", {"depth": 1}, (1, 0), (4, 0)),
        ("coop", {}, (0, 1), (0, 4)),
        ("ivlp", {"vision_depth": 2}, (2, 3), (4, 4)),
        ("ivlp", {"depth": 2, "text_depth": 3}, (2, 3), (4, 4)),
        ("maple", {"depth": 2}, (2, 2), (2, 2)),
        ("maple", {"depth": 1000}, (3, 3), (2, 2)),
        ("bias", {}, (0, 0), (0, 0)),
    ):
        task = Task(clip, method, ["cat"], **options)
        model = Model(method, method, method, task, task.shapes)
        assert (model.depths, model.prompts) == (depths, counts), method


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


def test_roles(clip):
    vision = vision_roles(clip.config.vision, 2)
    assert np.flatnonzero(vision.prompts).tolist() == [17, 18]
    assert np.flatnonzero(~vision.queries).tolist() == [17, 18]
    text = text_roles(Task(clip, "ivlp", ["cat", "maine coon"], text_tokens=2))
    assert np.flatnonzero(text.prompts[0]).tolist() == [1, 2]
    assert np.flatnonzero(text.queries[0]).tolist() == [3, 4, 5, 6, 7]  # not SOS, which sees no prompt, nor padding
    front = text_roles(Task(clip, "coop", ["cat"], position="front"))
    assert not front.queries[0, 1]  # the name comes first


VIT_B_16 = VisionConfig(width=4, layers=1, heads=1, mlp_width=4, image_size=224, patch_size=16)


def test_uniform_attention_has_the_known_values():
    run = jax.jit(functools.partial(distance_and_entropy, config=VIT_B_16))
    with_cls = run(np.full((1, 1, 197, 197), 1 / 197, np.float32))
    assert float(with_cls["distance"][0, 0]) == pytest.approx(115.901, abs=5e-4)
    assert float(with_cls["entropy"][0, 0]) == pytest.approx(np.log(197), abs=1e-5)
    assert float(with_cls["cls_entropy"][0, 0]) == pytest.approx(np.log(197), abs=1e-5)
    patches_alone = np.zeros((1, 1, 197, 197), np.float32)
    patches_alone[..., 1:] = 1 / 196
    assert float(run(patches_alone)["distance"][0, 0]) == pytest.approx(116.492, abs=5e-4)
