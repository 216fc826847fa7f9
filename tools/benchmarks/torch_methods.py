"""The tuning methods in PyTorch, on `transformers.CLIPModel`, step by step as in their authors' public code.

Used to make the committed reference outputs, and as what relevancy's speed is compared with. CoOp: KaiyangZhou/CoOp.
VPT, IVLP, MaPLe: muzairkhattak/multimodal-prompt-learning. TaskRes: geekyutao/TaskRes. Learnables are the arrays of the
package's methods.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional

Tokenize = Callable[[list[str]], torch.Tensor]


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


def image_features(
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


def text_features(
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


def logits(
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
    images = image_features(model, pixels, vision_prompts, learnables.get("vision_bias"))
    texts = text_features(model, tokens, embedding, text_prompts, learnables.get("text_bias"))
    if method == "taskres":
        texts = texts + alpha * learnables["text_residual"]
    images = images / images.norm(dim=-1, keepdim=True)
    texts = texts / texts.norm(dim=-1, keepdim=True)
    return model.logit_scale.exp() * images @ texts.t()
