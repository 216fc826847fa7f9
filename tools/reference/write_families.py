r"""Writes small random models of MetaCLIP 2, SigLIP and SigLIP 2 with what `transformers` computes with them.

Run once, where PyTorch and sentencepiece are installed; tests need neither, but for SigLIP's tokenizer:

  python -m tools.reference.write_families

Each folder of tests/data_files has the model and its tokenizer as `transformers` saves them, trained on a few words,
and `expected.safetensors`: token ids, features, logits, and the gradients of the loss by what methods add, computed by
hooks on the modules of `transformers` in float64.
"""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import sentencepiece
import tokenizers
import torch
import transformers
from torch import nn

DATA = Path(__file__).parents[2] / "tests" / "data_files"
TEXTS = ("a photo of a cat.", "a photo of a Dog.", "a photo of a golden retriever.", "a photo of a big bird.")
LABELS = (2, 0, 3)
RATE = 0.05
STEPS = 3
# Learned tokens, and positions.
CONTEXT = 2
LENGTH = 32
WORDS = [*TEXTS, "satellite texture type painting", "maine coon", "the quick brown fox jumps over lazy dogs"] * 20
VISION = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=2
)
TEXT = dict(hidden_size=12, intermediate_size=24, num_hidden_layers=3, num_attention_heads=3)


def metaclip_2_tokenizer(_: Path) -> Any:
    """A unigram model as XLM-V's."""
    trained = tokenizers.Tokenizer(tokenizers.models.Unigram())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = tokenizers.trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
    trained.train_from_iterator(WORDS, trainer)
    import json

    pieces = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["vocab"]]
    return transformers.XLMRobertaTokenizer(vocab=pieces, model_max_length=LENGTH)


def siglip_tokenizer(folder: Path) -> Any:
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


def siglip_2_tokenizer(_: Path) -> Any:
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


# The tokenizer, and the configuration and model of `transformers`.
FAMILIES: dict[str, tuple[Any, str]] = {
    "metaclip_2": (metaclip_2_tokenizer, "MetaClip2"),
    "siglip": (siglip_tokenizer, "Siglip"),
    "siglip_2": (siglip_2_tokenizer, "Siglip"),
}


def random_model(kind: str, tokenizer: Any) -> Any:
    """A model with random weights, larger than those that training starts from, so that every part counts."""
    siglip = kind == "Siglip"
    size = max(tokenizer.get_vocab().values()) + 1
    text = TEXT | dict(vocab_size=size, max_position_embeddings=LENGTH, pad_token_id=tokenizer.pad_token_id)
    if siglip:
        # As in SigLIP's largest models, the patches leave a margin.
        settings: dict[str, Any] = dict(
            vision_config=VISION | {"image_size": 9}, text_config=text | {"projection_size": 16}
        )
    else:
        text |= dict(eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id, projection_dim=10)
        settings = dict(vision_config=VISION | {"projection_dim": 10}, text_config=text, projection_dim=10)
    torch.manual_seed(7)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.3)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
        model.logit_scale.fill_(2.0)
        if siglip:
            model.logit_bias.fill_(-3.0)
    return model


@contextmanager
def adapted(  # noqa: C901, PLR0915 (a hook for each field)
    model: Any, added: dict[str, torch.Tensor], read: torch.Tensor | None
) -> Iterator[None]:
    """Runs a model with what methods add: biases behind blocks, prompts in both towers, low-rank changes of kernels.

    Args:
      model: of `transformers`.
      added: by the names of `Adaptation`; of low rank by `lora.{tower}.down` and `lora.{tower}.up`.
      read: the position of each text that is read out, of a model with `[cls]` and SOS; `None` of SigLIP.
    """
    first = int(read is not None)
    handles = []
    vision = model.vision_model
    count = added["vision_prompts"].shape[1] if "vision_prompts" in added else 0

    def changed(output: Any, change: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    def put(rows: torch.Tensor, places: slice) -> Any:
        def hook(module: nn.Module, inputs: tuple, options: dict) -> tuple:
            return (with_rows(inputs[0], rows, places), *inputs[1:]), options

        return hook

    def with_rows(x: torch.Tensor, rows: torch.Tensor, places: slice) -> torch.Tensor:
        x = x.clone()
        x[:, places] = rows
        return x

    def append(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output, added["vision_prompts"][0].expand(len(output), -1, -1)], 1)

    def bias(rows: torch.Tensor, row: Any) -> Any:
        """`rows [D]`, or `[2, D]` with the first at `row` of each sequence; without such a row a single kind."""

        def change(x: torch.Tensor) -> torch.Tensor:
            if rows.ndim == 1 or len(rows) == 1:
                return x + rows
            here = torch.arange(x.shape[1]) == torch.as_tensor(row).expand(len(x))[:, None]
            return x + torch.where(here[..., None], rows[0], rows[1])

        return lambda module, inputs, output: changed(output, change)

    def low_rank(down: torch.Tensor, up: torch.Tensor) -> Any:
        return lambda module, inputs, output: output + inputs[0] @ down @ up

    for tower in ("vision", "text"):
        row = 0 if tower == "vision" else LENGTH - 1 if read is None else read
        for number, block in enumerate(getattr(model, f"{tower}_model").encoder.layers):
            if f"{tower}_bias" in added:
                handles.append(block.register_forward_hook(bias(added[f"{tower}_bias"][number], row)))
            for part, name in enumerate("qkv" if f"lora.{tower}.down" in added else ""):
                pair = [added[f"lora.{tower}.{kind}"][number, part] for kind in ("down", "up")]
                kernel = getattr(block.self_attn, f"{name}_proj")
                handles.append(kernel.register_forward_hook(low_rank(*pair)))
    if count:
        handles.append(vision.embeddings.register_forward_hook(append))
        for number, rows in enumerate(added["vision_prompts"][1:], 1):
            hook = put(rows, slice(-count, None))
            handles.append(vision.encoder.layers[number].register_forward_pre_hook(hook, with_kwargs=True))
        if read is None:
            handles.append(vision.head.register_forward_pre_hook(lambda module, inputs: (inputs[0][:, :-count],)))
    if "text_context" in added:
        context = added["text_context"]
        text = model.text_model
        places = slice(first, first + len(context))
        embedding = text.embeddings.token_embedding
        handles.append(embedding.register_forward_hook(lambda module, inputs, x: with_rows(x, context, places)))
        for number, rows in enumerate(added.get("text_prompts", ()), 1):
            handles.append(text.encoder.layers[number].register_forward_pre_hook(put(rows, places), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits(model: Any, ids: Any, pixels: Any, added: dict[str, torch.Tensor], read: Any) -> torch.Tensor:
    """Of a model with what a method adds: of CLIP-LoRA with 100 in place of the model's own scale."""
    with adapted(model, added, read):
        outputs = model(input_ids=ids, pixel_values=pixels)
        if "text_residual" in added:  # of TaskRes, before the features are normalised
            output = model.get_text_features(input_ids=ids)
            text = getattr(output, "pooler_output", output) + 0.5 * added["text_residual"]
        else:
            text = outputs.text_embeds
    scale = torch.tensor(100.0).double() if "lora.vision.down" in added else model.logit_scale.exp()
    image, text = (x / x.norm(dim=-1, keepdim=True) for x in (outputs.image_embeds, text))
    return scale * image @ text.T + (model.logit_bias if hasattr(model, "logit_bias") else 0.0)


def trained(model: Any, ids: Any, pixels: Any, read: Any) -> dict[str, torch.Tensor]:
    """What three steps of SGD make of random learnables of five methods."""
    kinds = 1 if read is None else 2
    tensors = dict[str, torch.Tensor]()
    biases: dict[str, tuple[int, ...]]
    biases = {"vision_bias": (3, 16), "text_bias": (3, 12)}
    prompts: dict[str, tuple[int, ...]]
    prompts = {"text_context": (CONTEXT, 12), "text_prompts": (2, CONTEXT, 12), "vision_prompts": (3, 2, 16)}
    pairs: dict[str, tuple[int, ...]]
    pairs = {f"lora.{tower}.down": (3, 3, width, 2) for tower, width in (("vision", 16), ("text", 12))}
    pairs |= {f"lora.{tower}.up": (3, 3, 2, width) for tower, width in (("vision", 16), ("text", 12))}
    methods: dict[str, dict[str, tuple[int, ...]]] = {
        "bias": biases,
        "bias_by_kind": {"vision_bias": (3, kinds, 16), "text_bias": (3, 2, 12)},
        "ivlp": prompts,
        "taskres": {"text_residual": (len(TEXTS), 16 if read is None else 10)},
        "clip_lora": pairs,
    }
    random = np.random.default_rng(11)
    for method, shapes in methods.items():
        start = {key: random.normal(scale=0.3, size=shape).astype(np.float32) for key, shape in shapes.items()}
        leaves = {key: torch.from_numpy(value).double().requires_grad_() for key, value in start.items()}
        optimizer = torch.optim.SGD(leaves.values(), lr=RATE, momentum=0.9, weight_decay=5e-4)
        for _ in range(STEPS):
            optimizer.zero_grad()
            # `up` holds γ = α / √r beside what is learned.
            added = {key: x / 2**0.5 if key.endswith(".up") else x for key, x in leaves.items()}
            loss = nn.functional.cross_entropy(logits(model, ids, pixels, added, read), torch.tensor(LABELS))
            loss.backward()
            optimizer.step()
        tensors |= {f"{method}.loss": loss} | {f"{method}.before.{k}": torch.from_numpy(v) for k, v in start.items()}
        tensors |= {f"{method}.after.{key}": value for key, value in leaves.items()}
    return tensors


def write(name: str) -> None:
    """One folder."""
    make_tokenizer, kind = FAMILIES[name]
    folder = DATA / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    model = random_model(kind, tokenizer)
    model.save_pretrained(folder)
    texts = [text.lower() for text in TEXTS] if name == "siglip_2" else [*TEXTS]
    ids = tokenizer(texts, padding="max_length", max_length=LENGTH, return_tensors="pt")["input_ids"]
    random = np.random.default_rng(3)
    side = model.config.vision_config.image_size
    images = random.normal(size=(len(LABELS), side, side, 3)).astype(np.float32)
    shapes = {"vision_bias": (3, 16), "text_bias": (3, 12), "text_context": (CONTEXT, 12), "vision_prompts": (2, 2, 16)}
    added = {key: random.normal(scale=0.3, size=shape).astype(np.float32) for key, shape in shapes.items()}
    model = model.double()
    pixels = torch.from_numpy(images).double().permute(0, 3, 1, 2)
    with torch.no_grad():
        plain = model(input_ids=ids, pixel_values=pixels)
        image_features = model.get_image_features(pixel_values=pixels)
        text_features = model.get_text_features(input_ids=ids)
    stored = {"tokens": ids, "logits": plain.logits_per_image}
    stored |= {"image_features": getattr(image_features, "pooler_output", image_features)}
    stored |= {"text_features": getattr(text_features, "pooler_output", text_features)}
    leaves = {key: torch.from_numpy(value).double().requires_grad_() for key, value in added.items()}
    read = None if kind == "Siglip" else (ids == tokenizer.eos_token_id).int().argmax(-1)
    with adapted(model, leaves, read):
        changed = model(input_ids=ids, pixel_values=pixels).logits_per_image
    loss = nn.functional.cross_entropy(changed, torch.tensor(LABELS))
    loss.backward()
    model.requires_grad_(False)
    stored |= trained(model, ids, pixels, read)
    stored |= {"adapted.logits": changed, "adapted.loss": loss} | {f"gradient.{k}": x.grad for k, x in leaves.items()}
    arrays = {key: value.detach().numpy() for key, value in stored.items()}
    arrays = {key: np.array(x, x.dtype if x.dtype.kind == "i" else np.float32, order="C") for key, x in arrays.items()}
    arrays |= {"images": images, **{f"added.{key}": value for key, value in added.items()}}
    safetensors.numpy.save_file(arrays, folder / "expected.safetensors")
    print(
        f"{name}: {sum(path.stat().st_size for path in folder.iterdir()) / 1024:.0f} KB, {tokenizer.__class__.__name__}"
    )


def main() -> None:
    for name in FAMILIES:
        write(name)


if __name__ == "__main__":
    main()
