"""The words nearest to prompts: against plain NumPy, and by known answers."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clipbias.clip import Clip, encode_text
from clipbias.clip.tokenizer import encode
from clipbias.explain.words import (
    Search,
    context_words,
    place_words,
    prompt_prefixes,
    readable_token,
    word_states,
)
from clipbias.tuning import Task
from tests.explain.models import CLASS_NAMES


def plain_search(vectors: np.ndarray, table: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All distances, in float64; equal ones in the order of the rows."""
    distances = np.sqrt(((vectors[:, None].astype(np.float64) - table[None].astype(np.float64)) ** 2).sum(-1))
    ids = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return ids, np.take_along_axis(distances, ids, 1), distances.mean(1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 9), st.booleans())
def test_search_in_pieces_is_the_plain_search(seed: int, count: int, chunk: int, whole_numbers: bool) -> None:
    rng = np.random.default_rng(seed)
    vectors, table = rng.normal(size=(3, 4)), rng.normal(size=(11, 4))
    if whole_numbers:  # many ties
        vectors = vectors.round()
        table = table.round()
    search = Search(vectors, count)
    for start in range(0, len(table), chunk):
        search.add(table[start : start + chunk])
    nearest = search.result()
    ids, distances, mean = plain_search(vectors, table, count)
    np.testing.assert_array_equal(nearest.ids, ids)
    np.testing.assert_allclose(nearest.distances, distances, rtol=1e-12, atol=0)
    np.testing.assert_allclose(nearest.mean_distance, mean, rtol=1e-9)


def test_a_row_is_at_distance_0_from_itself_however_long_it_is() -> None:
    table = 1e4 + np.random.default_rng(0).normal(size=(50, 512)).astype(np.float32)
    search = Search(table, 2)
    search.add(table)
    assert search.result().ids[:, 0].tolist() == list(range(50))
    assert search.result().distances[:, 0].tolist() == [0] * 50


def test_a_context_of_known_words_finds_them(clip: Clip) -> None:
    words = ["photo", "cat", "texture", "of"]
    ids = [encode(clip.tokenizer, [word])[0] for word in words]
    assert all(len(tokens) == 1 for tokens in ids)
    table = np.asarray(clip.params["text"]["token_embedding"])
    nearest = context_words(table[[tokens[0] for tokens in ids]], table, 3)
    assert [readable_token(clip.tokenizer, i) for i in nearest.ids[:, 0]] == words
    assert nearest.distances[:, 0].tolist() == [0] * 4
    assert (nearest.distances[:, 1] > 0).all()
    many = context_words(np.tile(table[:5], (300, 1)), table, 2)  # more than are compared at a time
    ids, distances, mean = plain_search(table[:5], table, 2)
    np.testing.assert_array_equal(many.ids, np.tile(ids, (300, 1)))
    np.testing.assert_allclose(many.distances, np.tile(distances, (300, 1)), rtol=1e-12)
    np.testing.assert_allclose(many.mean_distance, np.tile(mean, 300), rtol=1e-9)


def test_tokens_in_words(clip: Clip) -> None:
    tokenizer = clip.tokenizer
    assert readable_token(tokenizer, tokenizer.eos_token_id) == "<|endoftext|>"
    piece = tokenizer.convert_tokens_to_ids("p")
    assert readable_token(tokenizer, piece) == "p-"


def test_states_are_those_of_the_frozen_model_reading_a_text(clip: Clip) -> None:
    """What comes after a word cannot change its state, so a longer text shows the same one."""
    long = clip.tokenize(["a photo of a cat.", "a painting of a dog."])
    cut = np.asarray(word_states({"text": clip.params["text"]}, clip.config, long[:, :4]))
    run = jax.jit(lambda p: encode_text(p, clip.config, long, observe=lambda view: view.tokens)[1])
    whole = run(clip.params)
    assert cut.shape == (clip.config.text.layers, 2, clip.config.text.width)
    np.testing.assert_allclose(cut, np.asarray(whole)[:, :, 3], rtol=2e-5, atol=2e-5)


def test_deeper_prompts_that_are_states_of_words_find_them(clip: Clip) -> None:
    task = Task(clip, "ivlp", CLASS_NAMES, text_tokens=2)
    words = np.random.default_rng(1).choice(clip.config.text.vocabulary_size, (2, 2), replace=False)
    prompts = np.empty((2, 2, clip.config.text.width), np.float32)
    for place, prefix in enumerate(prompt_prefixes(task, 2)):
        texts = np.column_stack([np.tile(prefix, (2, 1)), words[:, place]]).astype(np.int32)
        states = np.asarray(word_states({"text": clip.params["text"]}, clip.config, texts))
        prompts[:, place] = states[[1, 2], [0, 1]]
    for place, prefix in enumerate(prompt_prefixes(task, 2)):
        shallow, deep = place_words(clip, prefix, [prompts[:1, place], prompts[:, place]], 3, chunk=100)
        assert len(shallow) == 1 and len(deep) == 2  # prompts of two depths in one pass
        for layer, near in enumerate([*shallow, *deep]):
            assert near.ids[0, 0] == words[max(layer - 1, 0), place]
            assert near.distances[0, 0] < 1e-4 < near.distances[0, 1]


def test_places_of_deeper_prompts(clip: Clip) -> None:
    words = encode(clip.tokenizer, ["a photo of a"])[0]
    prefixes = prompt_prefixes(Task(clip, "ivlp", CLASS_NAMES), 4)
    assert [p.tolist() for p in prefixes] == [[clip.tokenizer.bos_token_id, *words[:t]] for t in range(4)]
