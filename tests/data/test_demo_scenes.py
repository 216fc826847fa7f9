"""Scenes, their captions and the batches made of them: what the demo model learns from."""

import numpy as np
import pytest

from clipbias.clip import tokenizer as tokenizer_lib
from clipbias.clip.config import TextConfig
from tests.data.drawn_icons import glyphs
from tools.demo import corpus, icons, scenes, vocabulary


@pytest.fixture(scope="module", autouse=True)
def drawn_icons():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(icons, "glyphs", glyphs)
        yield


def test_a_scene_depends_on_seed_and_index_alone():
    first, again, other = scenes.scene(3, 7), scenes.scene(3, 7), scenes.scene(3, 8)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.phrases == again.phrases
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_every_kind_draws_something_and_names_it(kind):
    for seed in range(12):
        drawn = scenes.KINDS[kind][1](np.random.default_rng(seed))
        assert drawn.image.shape == (48, 48, 3) and drawn.image.dtype == np.uint8
        assert drawn.kind == kind
        assert np.ptp(drawn.image.astype(int)) > 20
        assert len(drawn.phrases) > 1 and all(drawn.phrases)
        if kind != "emoji":  # whose phrases use the icon's own name
            noun = drawn.name.removeprefix("letter ").split()[-1]
            assert any(noun in phrase for phrase in drawn.phrases)


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory):
    words = vocabulary.tokenizer(3072)
    text = TextConfig(8, 1, 1, 8, vocabulary_size=3072, context_length=32, eos_token_id=words.eos_token_id)
    return corpus.load(
        tmp_path_factory.mktemp("scenes"),
        seed=0,
        count=120,
        tokenize=lambda texts: tokenizer_lib.tokenize(words, texts, text),
        workers=1,
    )


def test_a_batch_depends_on_seed_and_step_alone(small_corpus):
    first, again, later = (corpus.batch(small_corpus, seed=0, step=step, size=16) for step in (5, 5, 6))
    np.testing.assert_array_equal(first["images"], again["images"])
    np.testing.assert_array_equal(first["ids"], again["ids"])
    assert not np.array_equal(first["images"], later["images"])


def test_half_of_a_batch_is_of_one_kind(small_corpus):
    kind_of = {image.tobytes(): kind for image, kind in zip(small_corpus.images, small_corpus.kinds, strict=True)}
    batch = corpus.batch(small_corpus, seed=0, step=1, size=32)
    assert len({kind_of[image.tobytes()] for image in batch["images"][:16]}) == 1
