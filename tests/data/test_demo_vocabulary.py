"""The demo model's byte-pair vocabulary."""

import pytest

from tools.demo import captions, concepts, vocabulary
from tools.demo.wardrobe import wardrobe


@pytest.fixture(scope="module")
def words():
    return vocabulary.tokenizer(3072)


def test_the_context_words_are_four_tokens(words):
    assert words.tokenize("a photo of a") == ["a</w>", "photo</w>", "of</w>", "a</w>"]


def test_every_noun_that_the_demo_tests_is_one_token_a_word(words):
    for name in (*captions.DIGITS, *concepts.CLASSES, *wardrobe()):
        assert len(words.tokenize(name)) == len(name.replace("-", " - ").split()), name


@pytest.mark.parametrize("text", ["xylophone", "Café au lait", "汉字", "naïve—quote", "007 & co."])
def test_any_text_can_be_written_and_read_back(words, text):
    ids = words(text, add_special_tokens=False)["input_ids"]
    assert words.eos_token_id not in ids and words.bos_token_id not in ids
    assert words.decode(ids).replace(" ", "") == text.lower().replace(" ", "")


def test_start_and_end_are_the_last_two_ids_and_pads_repeat_the_end(words):
    assert (words.bos_token_id, words.eos_token_id, words.pad_token_id) == (3070, 3071, 3071)
    ids = words("seven")["input_ids"]
    assert ids[0] == 3070 and ids[-1] == 3071


def test_saved_files_load_to_the_same_tokens(words, tmp_path):
    from transformers import CLIPTokenizerFast

    words.save_pretrained(tmp_path)
    vocabulary.write(tmp_path, 3072)
    texts = ["a photo of a seven.", "two red circles", "umbrellas & Café"]
    assert CLIPTokenizerFast.from_pretrained(tmp_path)(texts)["input_ids"] == words(texts)["input_ids"]
    (tmp_path / "tokenizer.json").unlink()  # the original format alone says the same
    assert CLIPTokenizerFast.from_pretrained(tmp_path)(texts)["input_ids"] == words(texts)["input_ids"]


def test_merges_join_the_most_frequent_pair_first():
    assert vocabulary.learn_merges({"aba": 3, "ab": 1}, 2) == [("a", "b"), ("ab", "a</w>")]
    assert vocabulary.learn_merges({"ab": 1}, 5) == [("a", "b</w>")]
