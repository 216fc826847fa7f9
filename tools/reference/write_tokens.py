"""Writes small vocabularies of every kind, trained on odd texts, and the ids that the owners' tokenizers make of these.

  pip install torch torchvision timm open_clip_torch transformers sentencepiece
  python -m tools.reference.write_tokens

CLIP's is open_clip's own, with the published vocabulary. A tokenizer of transformers is the class that the publisher's
files name; open_clip cleans texts before it.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip.tokenizer
import sentencepiece
import tokenizers
import transformers
from open_clip.tokenizer import HFTokenizer

from tests.clip.odd_texts import ODD_TEXTS
from tests.families import DATA

FOLDER = DATA / "tokenizers"
SIZE = 700
# Marks of a vocabulary are no text to learn from.
CORPUS = [text for text in ODD_TEXTS if "\x00" not in text and "<pad>" not in text] * 10


def _sentencepiece(folder: Path) -> Any:
    """SigLIP's, and the mT5 vocabulary of MetaCLIP 2."""
    ids: dict[str, Any] = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in CORPUS]),
        model_prefix=str(folder / "spiece"),
        vocab_size=SIZE,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        **ids,
    )
    (folder / "spiece.vocab").unlink()
    return transformers.SiglipTokenizer(str(folder / "spiece.model"))


def _gemma(_: Path) -> Any:
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=SIZE, special_tokens=special)
    trained.train_from_iterator((text.lower() for text in CORPUS if text.isascii()), trainer)
    model = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return transformers.Siglip2Tokenizer(vocab=model["vocab"], merges=merges)


def _xlm_v(_: Path) -> Any:
    trained = tokenizers.Tokenizer(tokenizers.models.Unigram())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = tokenizers.trainers.UnigramTrainer(vocab_size=SIZE, special_tokens=special, unk_token="<unk>")
    trained.train_from_iterator(CORPUS, trainer)
    pieces = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["vocab"]]
    return transformers.XLMRobertaTokenizer(vocab=pieces)


def _bert(folder: Path) -> Any:
    trained = tokenizers.implementations.BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(CORPUS, vocab_size=SIZE, show_progress=False)
    trained.save_model(str(folder))
    return transformers.BertTokenizer(vocab=str(folder / "vocab.txt"))


KINDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "sentencepiece": (_sentencepiece, "siglip"),
    "gemma": (_gemma, "siglip_2"),
    "xlm_v": (_xlm_v, "metaclip_2"),
    "bert": (_bert, "chinese_clip"),
}
# The same vocabularies elsewhere: the name in the file, the folder, and how open_clip cleans texts.
OPEN_CLIP = {
    "siglip in open_clip": ("sentencepiece", "canonicalize"),
    "siglip_2 in open_clip": ("gemma", "canonicalize"),
    "metaclip_2 in open_clip": ("xlm_v", "whitespace"),
    "biomed_clip": ("bert", "whitespace"),
}


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    ids: dict[str, list[list[int]]] = {}
    for name, (make, family) in KINDS.items():
        folder = FOLDER / name
        folder.mkdir(parents=True)
        made = make(folder)
        made.save_pretrained(folder)
        owner = type(made).from_pretrained(folder)
        ids[family] = [owner(text, add_special_tokens=False)["input_ids"] for text in ODD_TEXTS]
    ids["metaclip_2 with mT5's"] = ids["siglip"]
    for name, (kind, clean) in OPEN_CLIP.items():
        wrapper = HFTokenizer(str(FOLDER / kind), context_length=77, clean=clean)
        texts = map(wrapper.clean_fn, ODD_TEXTS)
        ids[name] = [wrapper.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    clip = open_clip.tokenizer.SimpleTokenizer()
    ids["clip"] = [clip.encode(text) for text in ODD_TEXTS]
    (FOLDER / "expected.json").write_text(json.dumps(ids, indent=None, separators=(",", ":")) + "\n")
    print(f"{len(ODD_TEXTS)} texts, {sum(path.stat().st_size for path in FOLDER.rglob('*')) / 1024:.0f} KB")


if __name__ == "__main__":
    main()
