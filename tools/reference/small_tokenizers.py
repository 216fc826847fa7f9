"""Tokenizers of every kind, trained on a few words."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import transformers

from tests.families import BERT_WORDS, DATA, TEXTS

LENGTH = 32
WORDS = [*TEXTS, "satellite texture type painting", "maine coon", "the quick brown fox jumps over lazy dogs"] * 20


def _metaclip_2(_: Path) -> Any:
    """A unigram model as XLM-V's."""
    trained = tokenizers.Tokenizer(tokenizers.models.Unigram())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = tokenizers.trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
    trained.train_from_iterator(WORDS, trainer)
    pieces = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["vocab"]]
    return transformers.XLMRobertaTokenizer(vocab=pieces, model_max_length=LENGTH)


def _siglip(folder: Path) -> Any:
    """A sentencepiece model."""
    model = io.BytesIO()
    ids: dict[str, Any] = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.lower() for text in WORDS),
        model_writer=model,
        vocab_size=150,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        **ids,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    return transformers.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=LENGTH)


def _siglip_2(_: Path) -> Any:
    """Byte-pair encoding as Gemma's, with the end of a text."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    trained.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    parts = [tokenizers.pre_tokenizers.Split("▁", "merged_with_next"), tokenizers.pre_tokenizers.Punctuation()]
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(parts)
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trained.train_from_iterator(
        (text.lower() for text in WORDS), tokenizers.trainers.BpeTrainer(vocab_size=150, special_tokens=special)
    )
    trained.post_processor = tokenizers.processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    names = dict(pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=trained, model_max_length=LENGTH, **names)


def _clip(folder: Path) -> Any:
    for name in ("merges.txt", "vocab.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(DATA / "formats" / "openai" / name, folder / name)
    return transformers.CLIPTokenizer.from_pretrained(folder)


def _bert(folder: Path) -> Any:
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n")
    return transformers.BertTokenizer(vocab=str(folder / "vocab.txt"))


_MAKERS = {
    "metaclip_2": _metaclip_2,
    "siglip": _siglip,
    "siglip_2": _siglip_2,
    "pe": _clip,
    "biomed_clip": _bert,
    "chinese_clip": _bert,
}


def write_tokenizer(family: str, folder: Path) -> None:
    """Trains a family's tokenizer and writes its files."""
    tokenizer = _MAKERS[family](folder)
    if family != "pe":
        tokenizer.save_pretrained(folder)
