r"""Makes the outputs that tests compare with, from `transformers.CLIPModel` and the methods' rules in PyTorch.

Run once, where PyTorch is installed (`pip install torch torchvision`); tests need neither:

  python -m tools.make_reference_outputs

Writes to tests/data_files two tiny checkpoints in the form that `transformers` saves, with features, logits and, for
every method, loss, gradients and the learnables after ten steps of SGD; and the outputs of the ViT-B/16 geometry, whose
weights are too large to keep and are drawn anew from their seed. `tests/tuning/test_against_reference.py` compares.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
import transformers
from torch.nn import functional

from tests import helpers
from tests.reference import methods, weights
from tests.reference.cases import CASES, CLASS_NAMES, LABELS, LEARNING_RATE, STEPS, TINY, VIT_B_16, Case
from tests.reference.tokenizer import SimpleTokenizer

DATA = Path(__file__).parents[1] / "tests" / "data_files"
Arrays = dict[str, np.ndarray]
Tokenize = Callable[[list[str]], torch.Tensor]


def torch_clip(config: Mapping, state: Mapping[str, np.ndarray]) -> transformers.CLIPModel:
    """A `CLIPModel` with these weights, in float32."""
    settings = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    model = transformers.CLIPModel(transformers.CLIPConfig(**settings)).eval()
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return model.requires_grad_(False)


def pixels(images: np.ndarray) -> torch.Tensor:
    """[B, R, R, 3] -> [B, 3, R, R] in float64."""
    return torch.from_numpy(images).double().permute(0, 3, 1, 2)


def forward(model: transformers.CLIPModel, tokens: np.ndarray, images: np.ndarray) -> Arrays:
    """Un-normalised features and logits of `CLIPModel.forward` itself."""
    ids = torch.from_numpy(tokens)
    values = pixels(images)
    return {
        "image_features": model.visual_projection(model.vision_model(values).pooler_output).numpy(),
        "text_features": model.text_projection(model.text_model(ids).pooler_output).numpy(),
        "logits": model(input_ids=ids, pixel_values=values).logits_per_image.numpy(),
    }


def tune(model: transformers.CLIPModel, tokenize: Tokenize, case: Case, images: np.ndarray) -> Arrays:
    """Logits, loss, gradients, and the learnables after `STEPS` steps of `torch.optim.SGD`."""
    initial = methods.random_learnables(model.config.to_dict(), case.method, len(CLASS_NAMES), **case.sizes)
    learnables = {name: torch.from_numpy(value).double().requires_grad_() for name, value in initial.items()}

    def scores() -> torch.Tensor:
        return torch_logits(model, tokenize, case.method, CLASS_NAMES, learnables, pixels(images), **case.options)

    first = scores()
    labels = torch.tensor(LABELS)
    loss = functional.cross_entropy(first, labels)
    outputs = {"logits": first.detach().numpy(), "loss": loss.detach().numpy()}
    # A learnable with no rows (the deeper prompts of depth 1) has nothing to optimise.
    moving = [value for value in learnables.values() if value.numel()]
    if not moving:
        return outputs
    optimizer = torch.optim.SGD(moving, lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    for step in range(STEPS):
        optimizer.zero_grad()
        functional.cross_entropy(scores(), labels).backward()
        if step == 0:
            for name, value in learnables.items():
                if value.numel():
                    outputs[f"gradient.{name}"] = value.grad.numpy().copy()
        optimizer.step()
    for name, value in learnables.items():
        if value.numel():
            outputs[f"after.{name}"] = value.detach().numpy()
    return outputs


def save(path: Path, arrays: Arrays) -> None:
    """Writes float64 outputs as float32: the comparison is with float32 computations."""
    stored = {}
    for name, value in arrays.items():
        dtype = np.float32 if value.dtype == np.float64 else value.dtype
        stored[name] = np.array(value, dtype, order="C")
    safetensors.numpy.save_file(stored, path)
    print(f"{path.relative_to(DATA.parent)}: {path.stat().st_size / 1024:.0f} KB")


def make_tiny(name: str, sizes: Mapping) -> None:
    """One tiny checkpoint as `transformers` writes it, with its outputs."""
    folder = DATA / name
    shutil.rmtree(folder, ignore_errors=True)
    config = helpers.tiny_geometry(folder, **sizes)
    state = weights.random_state_dict(config, seed=len(name))
    model = torch_clip(config, state)
    model.save_pretrained(folder)
    length = config["text_config"]["max_position_embeddings"]
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": sizes["image_size"]}, crop_size=sizes["image_size"]
    ).save_pretrained(folder)

    def tokenize(texts: list[str]) -> torch.Tensor:
        return tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt")["input_ids"]

    images = helpers.random_images(config, len(LABELS))
    texts = ["a photo of a cat.", "the big dog, a type of pet", "757-200", "Golden Retriever's pup!?"]
    tokens = tokenize(texts).numpy()
    np.testing.assert_array_equal(SimpleTokenizer(folder, length).tokenize(texts), tokens)
    model = model.double()
    outputs = {"tokens": tokens, "images": images, **forward(model, tokens, images)}
    tuned: Arrays = {}
    for case_name, case in CASES.items():
        tuned |= {f"{case_name}.{key}": value for key, value in tune(model, tokenize, case, images).items()}
    save(folder / "expected.safetensors", outputs)
    save(folder / "expected_tuning.safetensors", tuned)


def make_full() -> None:
    """The outputs of ViT-B/16's geometry for two images and three texts of random tokens."""
    config = weights.geometry(**VIT_B_16)
    state = weights.random_state_dict(config, seed=16)
    tokens = helpers.random_tokens(config, (5, 30, 75))
    images = helpers.random_images(config, 2)
    save(DATA / "vit_b_16.safetensors", forward(torch_clip(config, state).double(), tokens, images))


# The tuning methods in PyTorch, on `transformers.CLIPModel`, step by step as in their authors' public code. CoOp:
# KaiyangZhou/CoOp. VPT, IVLP, MaPLe: muzairkhattak/multimodal-prompt-learning. TaskRes: geekyutao/TaskRes.


def prompt_text(method: str, names: Sequence[str], count: int, template: str, worded: bool) -> list[str]:
    """The text of each class: the dataset's template, or the context's words or placeholders and the name."""
    if method in ("zero_shot", "taskres"):
        return [template.format(name) for name in names]
    keeps_words = worded if method == "coop" else count <= 4
    prefix = "a photo of a" if keeps_words else " ".join(["X"] * count)
    return [f"{prefix} {name}." for name in names]


def context_embeddings(
    embedding: torch.Tensor, context: torch.Tensor, lengths: Sequence[int], position: str
) -> torch.Tensor:
    """CoOp's `PromptLearner.forward`: [C, N, D] token embeddings with the context put in around the class name."""
    count = context.shape[-2]
    if context.dim() == 2:
        context = context.unsqueeze(0).expand(len(embedding), -1, -1)
    prefix, suffix = embedding[:, :1], embedding[:, 1 + count :]
    if position == "end":
        return torch.cat([prefix, context, suffix], dim=1)
    half = count // 2 if position == "middle" else 0
    prompts = []
    for i, length in enumerate(lengths):
        parts = [prefix[i], context[i, :half], suffix[i, :length], context[i, half:], suffix[i, length:]]
        prompts.append(torch.cat(parts))
    return torch.stack(prompts)


def run_layers(
    layers: torch.nn.ModuleList,
    x: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    deep: Sequence[torch.Tensor],
    is_text: bool,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """`ResidualAttentionBlock_IVLP` and `_MaPLe`: from the second block on, prompts replace the last block's."""
    for i, layer in enumerate(layers):
        if 1 <= i <= len(deep):
            prompts = deep[i - 1].expand(len(x), -1, -1)
            count = prompts.shape[1]
            if is_text:
                x = torch.cat([x[:, :1], prompts, x[:, 1 + count :]], dim=1)
            else:
                x = torch.cat([x[:, : x.shape[1] - count], prompts], dim=1)
        x = layer(x, mask)
        if bias is not None:
            x = x + bias[i]
    return x


def torch_image_features(
    model: torch.nn.Module, pixels: torch.Tensor, prompts: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """[B, d] of `pixels` [B, 3, R, R]; `prompts` [depth, V, Dv]."""
    tower = model.vision_model
    x = tower.embeddings(pixels)
    deep: Sequence[torch.Tensor] = ()
    if prompts is not None:
        x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1)
        deep = prompts[1:]
    x = run_layers(tower.encoder.layers, tower.pre_layrnorm(x), mask=None, deep=deep, is_text=False, bias=bias)
    return model.visual_projection(tower.post_layernorm(x[:, 0]))


def torch_text_features(
    model: torch.nn.Module,
    tokens: torch.Tensor,
    embedding: torch.Tensor,
    deep: Sequence[torch.Tensor],
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """[C, d] of token embeddings [C, N, Dt]."""
    tower = model.text_model
    length = tokens.shape[1]
    mask = torch.full((length, length), float("-inf"), dtype=embedding.dtype).triu_(1)[None, None]
    x = embedding + tower.embeddings.position_embedding.weight[:length]
    x = run_layers(tower.encoder.layers, x, mask=mask, deep=deep, is_text=True, bias=bias)
    x = tower.final_layer_norm(x)
    return model.text_projection(x[torch.arange(len(x)), tokens.argmax(dim=-1)])


def torch_logits(
    model: torch.nn.Module,
    tokenize: Tokenize,
    method: str,
    class_names: Sequence[str],
    learnables: Mapping[str, torch.Tensor],
    pixels: torch.Tensor,
    *,
    template: str = "a photo of a {}.",
    position: str = "end",
    worded: bool = True,
    alpha: float = 0.5,
) -> torch.Tensor:
    """[B, C] logits of a method."""
    names = [name.replace("_", " ") for name in class_names]
    context = learnables.get("text_context")
    count = 0 if context is None else context.shape[-2]
    tokens = tokenize(prompt_text(method, names, count, template, worded))
    embedding = model.text_model.embeddings.token_embedding(tokens)
    if context is not None:
        # Start and end of text are not counted.
        lengths = [int(row.argmax()) - 1 for row in tokenize(names)]
        embedding = context_embeddings(embedding, context, lengths, position)
    text_prompts = learnables.get("text_prompts", ())
    vision_prompts = learnables.get("vision_prompts")
    if method == "maple":
        rows = [context, *text_prompts]
        maps = zip(rows, learnables["projection_kernel"], learnables["projection_bias"], strict=True)
        vision_prompts = torch.stack([functional.linear(row, kernel.T, bias) for row, kernel, bias in maps])
    images = torch_image_features(model, pixels, vision_prompts, learnables.get("vision_bias"))
    texts = torch_text_features(model, tokens, embedding, text_prompts, learnables.get("text_bias"))
    if method == "taskres":
        texts = texts + alpha * learnables["text_residual"]
    images = images / images.norm(dim=-1, keepdim=True)
    texts = texts / texts.norm(dim=-1, keepdim=True)
    return model.logit_scale.exp() * images @ texts.t()


def main() -> None:
    for name, sizes in TINY.items():
        make_tiny(name, sizes)
    make_full()


if __name__ == "__main__":
    main()
