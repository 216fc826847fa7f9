"""Tokenizers of all kinds against their owners' on odd texts, CLIP's also against OpenAI's in plain Python."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clipbias
from clipbias.clip import Clip
from clipbias.clip.tokenizer import clip_tokenizer, encode, read_tokenizer
from tests.clip.odd_texts import ODD_TEXTS
from tests.reference.tokenizer import SimpleTokenizer

DATA = Path(__file__).parents[1] / "data_files"
# Letters, digits, marks and punctuation that every version of Unicode in use knows.
ALPHABET = st.characters(
    min_codepoint=0x20, max_codepoint=0x24F, exclude_categories=["Cs", "Cn", "Cc"]
) | st.sampled_from("ΣσςΩώЖжяёשאعب日本語한ﬁ２①½\u0301\u00a0\u2009‘’“”–—…€™😀🇩\u200d\u200b")
DEMO = Path(clipbias.__file__).parent / "assets" / "demo"
FOLDERS = {"tiny": DATA / "tiny_quick_gelu", "demo": DEMO}


@functools.cache
def tokenizers(name: str) -> tuple[Clip, SimpleTokenizer]:
    return clipbias.load(FOLDERS[name]), SimpleTokenizer(FOLDERS[name])


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("text", ODD_TEXTS)
def test_equals_the_original(name, text):
    clip, reference = tokenizers(name)
    assert encode(clip.tokenizer, [text])[0] == reference.encode(text)


@pytest.mark.ci
@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(ALPHABET, max_size=16))
def test_equals_the_original_on_any_text(text):
    clip, reference = tokenizers("tiny")
    assert encode(clip.tokenizer, [text])[0] == reference.encode(text)


def test_rows_begin_end_and_are_padded_as_the_original():
    clip, reference = tokenizers("tiny")
    texts = ["a photo of a cat.", "", "Golden Retriever's pup, 757"]
    ids = clip.tokenize(texts)
    width = ids.shape[1]
    padded = reference.tokenize(texts, pad=0)
    np.testing.assert_array_equal(ids, padded[:, :width])
    assert not padded[:, width:].any() and padded[:, width - 1].any()


# By the name in the file of expected ids: the folder of the vocabulary, the family, and open_clip's cleaning.
KINDS: dict[str, tuple[str, str, str | None]] = {
    "siglip": ("sentencepiece", "siglip", None),
    "siglip in open_clip": ("sentencepiece", "siglip", "canonicalize"),
    "siglip_2": ("gemma", "siglip", None),
    "siglip_2 in open_clip": ("gemma", "siglip", "canonicalize"),
    "metaclip_2": ("xlm_v", "metaclip_2", None),
    "metaclip_2 in open_clip": ("xlm_v", "metaclip_2", "whitespace"),
    "metaclip_2 with mT5's": ("sentencepiece", "metaclip_2", None),
    "chinese_clip": ("bert", "chinese_clip", None),
    "biomed_clip": ("bert", "biomed_clip", "whitespace"),
}


@pytest.fixture(scope="module")
def owners() -> dict[str, list[list[int]]]:
    """Ids of `ODD_TEXTS` by the owners' tokenizers (`tools/reference/write_tokens.py` of commit 4ca177e7)."""
    return json.loads((DATA / "tokenizers" / "expected.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_owners(kind, owners):
    folder, family, cleaning = KINDS[kind]
    if folder == "sentencepiece":
        pytest.importorskip("sentencepiece")
    tokenizer = read_tokenizer(DATA / "tokenizers" / folder, family, cleaning)
    for text, ids in zip(ODD_TEXTS, owners[kind], strict=True):
        assert encode(tokenizer, [text])[0] == ids, text


@pytest.mark.ci
def test_clips_own_vocabulary_equals_open_clips(owners):
    for text, ids in zip(ODD_TEXTS, owners["clip"], strict=True):
        assert encode(clip_tokenizer(), [text])[0] == ids, text
