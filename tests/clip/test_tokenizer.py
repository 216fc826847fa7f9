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
from tests.reference.tokenizer import SimpleTokenizer

DATA = Path(__file__).parents[1] / "data_files"
# Texts that trip up re-implementations: entities, ligatures, emoji, accents, empty, very long.
ODD_TEXTS = [
    "a photo of a cat.",
    "A PHOTO of a Maine Coon.",
    "the dog's bird, they're I've we'll he'd I'm don't 'tis",
    "THE DOG'S BIRD, THEY'RE I'VE WE'LL HE'D I'M DON'T",
    "747-200 and 757 in 2012, 3.5 or ½ or ² or Ⅷ",
    "wait... what?! (no) --> yes!!! #1 & co., c/o a@b.c, 100% _under_score_",
    "  many   spaces\tand\ntabs\r\n and no-break\u00a0space and\u2003em space ",
    "caf&eacute; &amp; bar, &amp;amp; twice, &lt;tag&gt; &#39;quoted&#39;",
    "caf\u00e9 cafe\u0301 na\u00efve \u00dcber stra\u00dfe \u0130stanbul \u01c5",
    "sch\u00c3\u00b6n mis-decoded \u00e2\u20ac\u0153quotes\u00e2\u20ac\u009d",
    "\u201ccurly\u201d \u2018quotes\u2019 \u2013 dash \u2014 dash \u2026",
    "emoji \U0001f600 and flag \U0001f1e9\U0001f1ea and family \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u65e5\u672c\u8a9e \u4e2d\u6587 \ud55c\uad6d\uc5b4 \u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644\u0639",
    "\u03a3\u0391\u03a3 \u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3",
    "\uff26\uff35\uff2c\uff2c \uff57\uff49\uff44\uff54\uff48 \ufb01sh \u2163",
    "a\u200bzero width \ufeffbom \u00adsoft",
    "control \x00\x07\x1c\x1f\x85 characters",
    "",
    ".",
    "'",
    "'s",
    "x" * 30,
    "a photo of " + ", ".join(f"cat {number} and dog" for number in range(60)),
    "https://example.org/a_b?c=d&e=%20#f and @name #tag $5.00 \u20ac7 \u00a39",
    "na\u00efve caf\u00e9\u2019s cr\u00e8me br\u00fbl\u00e9e, \u00c5ngstr\u00f6m, \u0130\u0131, \u1e9e",
    "\u4e00\u5f20\u732b\u7684\u7167\u7247 with English, \u5168\u89d2\uff0c\u6807\u70b9\u3002\uff01\u300a\u4e66\u300b",
    "x\u00b2 + y\u00b2 \u2264 \u221e, \u00b1 3 \u00d7 10\u207b\u2079 \u2192 \u03b1\u03b2\u03b3 \u00b5m, \ufb03 \ufb06",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u05e9\u05dc\u05d5\u05dd",
    "#hash--tag__under/slash\\back{brace}[bracket]|pipe~tilde^caret`tick`",
    "a photo of [CLS] <s> </s> <pad> [SEP] <eos> [UNK] <unk> tokens",
]
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
    assert ids.dtype == np.int32
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
    """Ids of `ODD_TEXTS` by the owners' tokenizers (`tools/reference/write_tokens.py`)."""
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
