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
from contextlib import ExitStack, contextmanager
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
CONTEXT, LENGTH = 2, 32  # learned tokens, positions
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
    ids = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
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
    siglip, size = kind == "Siglip", max(tokenizer.get_vocab().values()) + 1
    text = TEXT | dict(vocab_size=size, max_position_embeddings=LENGTH, pad_token_id=tokenizer.pad_token_id)
    if siglip:
        own: dict[str, Any] = dict(vision_config=dict(VISION), text_config=text | {"projection_size": 16})
    else:
        text |= dict(eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id, projection_dim=10)
        own = dict(vision_config=VISION | {"projection_dim": 10}, text_config=text, projection_dim=10)
    torch.manual_seed(7)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**own)).eval()
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
def adapted(model: Any, added: dict[str, torch.Tensor], first: int) -> Iterator[None]:
    """Runs a model with a bias after every block, a context in place of words, and prompts behind the patches."""

    def of_first(output: Any, change: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    prompts, context = added["vision_prompts"], added["text_context"]
    vision, count = model.vision_model, len(added["vision_prompts"][0])

    def put(number: int) -> Any:
        def hook(module: nn.Module, inputs: tuple, options: dict) -> tuple:
            rows = prompts[number].expand(len(inputs[0]), -1, -1)
            return (torch.cat([inputs[0][:, :-count], rows], 1), *inputs[1:]), options

        return hook

    def append(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output, prompts[0].expand(len(output), -1, -1)], 1)

    def replace(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        rows = context.expand(len(output), -1, -1)
        return torch.cat([output[:, :first], rows, output[:, first + len(context) :]], 1)

    def bias(row: torch.Tensor) -> Any:
        return lambda module, inputs, output: of_first(output, lambda x: x + row)

    with ExitStack() as stack:
        handles = [vision.embeddings.register_forward_hook(append)]
        handles += [
            vision.encoder.layers[i].register_forward_pre_hook(put(i), with_kwargs=True) for i in range(1, len(prompts))
        ]
        handles.append(model.text_model.embeddings.token_embedding.register_forward_hook(replace))
        if hasattr(vision, "head"):
            handles.append(vision.head.register_forward_pre_hook(lambda module, inputs: (inputs[0][:, :-count],)))
        for tower in ("vision", "text"):
            blocks = getattr(model, f"{tower}_model").encoder.layers
            handles += [b.register_forward_hook(bias(added[f"{tower}_bias"][i])) for i, b in enumerate(blocks)]
        for handle in handles:
            stack.callback(handle.remove)
        yield


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
    images = random.normal(size=(len(LABELS), 8, 8, 3)).astype(np.float32)
    shapes = {"vision_bias": (3, 16), "text_bias": (3, 12), "text_context": (CONTEXT, 12), "vision_prompts": (2, 2, 16)}
    added = {key: random.normal(scale=0.3, size=shape).astype(np.float32) for key, shape in shapes.items()}
    model = model.double()
    pixels = torch.from_numpy(images).double().permute(0, 3, 1, 2)
    with torch.no_grad():
        plain = model(input_ids=ids, pixel_values=pixels)
        image_features = model.get_image_features(pixel_values=pixels)
        text_features = model.get_text_features(input_ids=ids)
    found = {"tokens": ids, "logits": plain.logits_per_image}
    found |= {"image_features": getattr(image_features, "pooler_output", image_features)}
    found |= {"text_features": getattr(text_features, "pooler_output", text_features)}
    leaves = {key: torch.from_numpy(value).double().requires_grad_() for key, value in added.items()}
    with adapted(model, leaves, first=int(kind != "Siglip")):
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
    loss = nn.functional.cross_entropy(logits, torch.tensor(LABELS))
    loss.backward()
    found |= {"adapted.logits": logits, "adapted.loss": loss} | {f"gradient.{k}": x.grad for k, x in leaves.items()}
    arrays = {key: value.detach().numpy() for key, value in found.items()}
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
