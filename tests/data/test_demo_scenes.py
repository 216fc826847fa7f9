"""Scenes, their captions and the batches made of them: what the demo model learns from."""

import numpy as np
import pytest

from clipbias.clip import tokenizer as tokenizer_lib
from clipbias.clip.config import TextConfig
from tests.data.drawn_icons import glyphs
from tools.demo import captions, corpus, icons, scenes, vocabulary
from tools.demo.geometry import densify, polygon
from tools.demo.outlines import pen_digits, shapes
from tools.demo.patterns import PATTERNS, plane
from tools.demo.pictures import things
from tools.demo.wardrobe import wardrobe


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


def test_single_object_scenes_are_named_from_the_list_of_names():
    names = set(captions.names())
    for kind in ("digit", "letter", "shape", "thing", "texture", "garment", "emoji"):
        assert scenes.KINDS[kind][1](np.random.default_rng(1)).name in names


@pytest.mark.parametrize("drawings", [shapes(), things(), wardrobe()], ids=["shapes", "things", "wardrobe"])
def test_drawings_stay_near_the_unit_square_and_fill_it(drawings):
    for name, drawing in drawings.items():
        points = np.concatenate([part.points for part in drawing])
        assert np.abs(points).max() <= 1.25, name
        assert np.ptp(points, axis=0).max() >= 1.5, name


def test_pen_digits_are_open_strokes_of_all_ten_digits():
    assert list(pen_digits()) == list(scenes.DIGITS)
    assert not any(part.closed for forms in pen_digits().values() for form in forms for part in form)


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_vary_between_zero_and_one(name):
    rng = np.random.default_rng(0)
    height = PATTERNS[name](*plane(48, rng, repeats=4.0, turn=20.0), rng)
    assert height.shape == (48, 48)
    assert height.min() >= 0 and height.max() <= 1
    assert height.std() > 0.1


def test_densify_keeps_corners_and_closes_the_gap():
    square = polygon("0,0 1,0 1,1 0,1")
    points = densify(square, 0.25).points
    assert len(points) == 16
    assert {tuple(corner) for corner in square.points} <= {tuple(point) for point in points}


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


def test_captions_fit_the_length_that_batches_have(small_corpus):
    assert small_corpus.phrases.shape[-1] == small_corpus.nouns.shape[-1] == corpus.CAPTION_LENGTH
    ends = (small_corpus.phrases == 3071).sum(-1)
    np.testing.assert_array_equal(ends, np.ones_like(ends))


def test_a_batch_depends_on_seed_and_step_alone(small_corpus):
    first, again, later = (corpus.batch(small_corpus, seed=0, step=step, size=16) for step in (5, 5, 6))
    np.testing.assert_array_equal(first["images"], again["images"])
    np.testing.assert_array_equal(first["ids"], again["ids"])
    assert not np.array_equal(first["images"], later["images"])


def test_half_of_a_batch_is_of_one_kind(small_corpus):
    kind_of = {image.tobytes(): kind for image, kind in zip(small_corpus.images, small_corpus.kinds, strict=True)}
    batch = corpus.batch(small_corpus, seed=0, step=1, size=32)
    assert len({kind_of[image.tobytes()] for image in batch["images"][:16]}) == 1


def test_drawn_chunks_are_reused(tmp_path, monkeypatch):
    path = corpus.draw_chunk(tmp_path, 0, 0, 3)
    monkeypatch.setattr(scenes, "scene", lambda *_: pytest.fail("drew a scene that was there"))
    assert corpus.draw_chunk(tmp_path, 0, 0, 3) == path
