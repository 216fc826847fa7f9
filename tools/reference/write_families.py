r"""Writes what their owners' code computes with small random models of all families but CLIP, in several geometries.

  pip install torch torchvision timm open_clip_torch transformers sentencepiece
  python -m tools.reference.write_families [pe ...]    # to tests/data_files

transformers computes MetaCLIP 2, SigLIP, SigLIP 2 and Chinese-CLIP; open_clip, with timm's vision towers, Perception
Encoder, BiomedCLIP and the other families' forms in its files. Tests need none of them, but sentencepiece for SigLIP's
tokenizer. Numbers are float64: token ids, features, logits, gradients of the loss by what methods add, and learnables
after three steps of training.
"""

import argparse
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import sentencepiece
import tokenizers
import torch
import transformers
from open_clip.tokenizer import HFTokenizer
from torch import nn

from tests import families
from tests.families import BERT_WORDS, DATA, EVERY, FURTHER, GEOMETRIES, LABELS, METHODS, TEXTS, Geometry
from tools.reference.owners import (
    Owner,
    Tensors,
    build,
    fill,
    logits,
    towers_of_metaclip_2,
    trained,
    vocabulary_of,
)

HALF = [0.5, 0.5, 0.5]
BIOMED_BERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
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


def read_tokenizer(family: str) -> Any:
    """A family's tokenizer in its own class."""
    folder = DATA / families.TOKENIZERS.get(family, family)
    if (folder / "spiece.model").exists():
        return transformers.SiglipTokenizer.from_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def token_ids(family: str, tokenizer: Any, length: int) -> torch.Tensor:
    """Ids of `TEXTS` by the owner's tokenizer `[C, N]`."""
    if family in ("siglip_open_clip", "siglip_2_open_clip", "metaclip_2_open_clip"):
        folder = DATA / families.TOKENIZERS[family]
        clean = "canonicalize" if "siglip" in family else "whitespace"
        return HFTokenizer(str(folder), context_length=length, clean=clean)([*TEXTS])
    texts = [text.lower() for text in TEXTS] if family == "siglip_2" else [*TEXTS]
    return tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt")["input_ids"]


def save_model(family: str, geometry: Geometry, owner: Owner, tokenizer: Any, folder: Path) -> None:
    """Weights and configuration as the owner's library writes them."""
    if isinstance(owner.model, transformers.PreTrainedModel):
        owner.model.save_pretrained(folder)
        return
    state = {name: value.numpy().copy() for name, value in owner.model.state_dict().items()}
    state = {name: value for name, value in state.items() if not name.endswith(("rope.pos_embed", "attn_mask"))}
    safetensors.numpy.save_file(state, folder / "open_clip_model.safetensors")
    content = {"model_cfg": open_clip_model(family, geometry, tokenizer), "preprocess_cfg": {}}
    if family == "pe" or "siglip" in family:
        filter_name = "bilinear" if family == "pe" else "bicubic"
        content["preprocess_cfg"] = {"mean": HALF, "std": HALF, "interpolation": filter_name, "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps(content, indent=1))


def open_clip_model(family: str, geometry: Geometry, tokenizer: Any) -> dict[str, Any]:
    """The `model_cfg` of an `open_clip_config.json`, with the keys that open_clip's own files of the family have."""
    if family == "metaclip_2_open_clip":
        vision, text = towers_of_metaclip_2(geometry, tokenizer)
        text["hf_tokenizer_name"] = "facebook/xlm-v-base"
        quick_gelu = {"quick_gelu": True} if geometry.quick_gelu else {}
        return {"embed_dim": geometry.joint, **quick_gelu, "vision_cfg": vision, "text_cfg": text}
    core, siglip = ("pe_core_", "") if family == "pe" else ("", "siglip_" if "siglip" in family else "")
    name = f"vit_{core}{families.size_of(geometry)}_patch{geometry.patch}_{siglip}{geometry.image}"
    vision = {"image_size": geometry.image, "timm_model_name": name, "timm_pool": "map" if core or siglip else ""}
    if family == "biomed_clip":
        text = {"hf_model_name": BIOMED_BERT, "hf_proj_type": "mlp", "context_length": geometry.length}
        text["hf_pooler_type"] = "cls_last_hidden_state_pooler"
    else:
        text = {"context_length": geometry.length, "vocab_size": vocabulary_of(tokenizer)}
        text |= {"width": geometry.text_width, "heads": geometry.text_heads, "layers": geometry.text_layers}
    model = {"embed_dim": families.features_of(family, geometry), "vision_cfg": vision, "text_cfg": text}
    if siglip:
        text |= {"mlp_ratio": 2.0, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        text |= {"norm_kwargs": {"eps": 1e-6}, "tokenizer_kwargs": {"clean": "canonicalize"}}
        text |= {"act_kwargs": {"approximate": "tanh"}} if "siglip_2" in family else {}
        model["init_logit_bias"] = -10
    return model | {"custom_text": True}


def write(family: str, number: int) -> None:
    """A folder: the expected numbers of a geometry, with the model or its configuration alone."""
    geometry = GEOMETRIES[family][number - 1]
    tokenizer = read_tokenizer(family)
    owner = build(family, geometry, tokenizer)
    fill(owner)
    folder = families.folder_of(family, number)
    save_model(family, geometry, owner, tokenizer, folder)
    (weights,) = folder.glob("*model.safetensors")
    tensors = safetensors.numpy.load_file(weights)
    parameters = dict(owner.model.named_parameters())
    assert tensors.keys() <= parameters.keys() | {"text_model.embeddings.position_ids"}, tensors.keys() - parameters
    shapes = {name: value.shape for name, value in tensors.items()}
    if folder.parent == FURTHER:
        weights.unlink()
    arrays = computed(family, geometry, owner, token_ids(family, tokenizer, geometry.length))
    safetensors.numpy.save_file(arrays, folder / "expected.safetensors", {"tensors": json.dumps(shapes)})
    print(f"{folder.name}: {sum(path.stat().st_size for path in folder.iterdir()) / 1024:.0f} KB")


def computed(family: str, geometry: Geometry, owner: Owner, ids: torch.Tensor) -> dict[str, np.ndarray]:
    """Features, logits, gradients, and learnables after training."""
    owner.model.double().requires_grad_(False)
    pixels = torch.from_numpy(families.images_of(geometry)).double().permute(0, 3, 1, 2)

    def run(added: Tensors) -> torch.Tensor:
        return logits(owner, pixels, ids, added)

    outputs: dict[str, torch.Tensor] = {"tokens": ids, "logits": run({})}
    outputs |= {"image_features": owner.images(pixels), "text_features": owner.texts(ids)}
    added = families.start_of(family, geometry, "added")
    leaves = {key: torch.from_numpy(value).double().requires_grad_() for key, value in added.items()}
    changed = run(leaves)
    loss = nn.functional.cross_entropy(changed, torch.tensor(LABELS))
    gradients = dict(zip(leaves, torch.autograd.grad(loss, [*leaves.values()]), strict=True))
    outputs |= {"adapted.logits": changed, "adapted.loss": loss} | {f"gradient.{k}": x for k, x in gradients.items()}
    for method in METHODS:
        learnables, loss = trained(run, families.start_of(family, geometry, method))
        outputs |= {f"{method}.loss": loss} | {f"{method}.after.{key}": x for key, x in learnables.items()}
    arrays = {key: value.detach().numpy() for key, value in outputs.items()}
    return {key: np.array(x, np.int32 if x.dtype.kind == "i" else np.float32, order="C") for key, x in arrays.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.reference.write_families", description=__doc__.splitlines()[0]
    )
    parser.add_argument("families", nargs="*", choices=[*GEOMETRIES, []], help="by default all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # such small products only wait for further ones
    pairs = [pair for pair in EVERY if pair[0] in (arguments.families or GEOMETRIES)]
    for family, number in pairs:
        folder = families.folder_of(family, number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if folder.parent == DATA:
            write_tokenizer(family, folder)
        write(family, number)


if __name__ == "__main__":
    main()
