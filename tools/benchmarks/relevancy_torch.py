"""Relevancy with PyTorch on `transformers.CLIPModel`, for `tools.benchmarks relevancy` where PyTorch is installed.

`torch` differentiates the summed scores of all pairs once, by the attention of all layers of both towers.
`torch-per-pair` takes one pair at a time, with texts of full context length, gradients possible for all weights, and
one call of `torch.autograd.grad` per layer with the graph kept, as in the method's public code (Chefer et al. 2021).
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers

from clipbias.errors import ClipbiasError
from tools.benchmarks import torch_methods
from tools.benchmarks.ways import Job


def read_model(folder: Path) -> torch.nn.Module:
    """The weights that `tools.benchmarks` wrote, in a `CLIPModel` that shows its attention."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = transformers.CLIPConfig(**settings | {"attn_implementation": "eager"})
    with torch.device("meta"):  # not initialised first, which would take the memory twice
        model = transformers.CLIPModel(config).eval()
    # Copied, since pages of a mapped file would count as memory only when the computation first reads them.
    state = {name: x.clone() for name, x in safetensors.torch.load_file(folder / "model.safetensors").items()}
    model.load_state_dict(state, assign=True, strict=False)
    for tower in (model.vision_model, model.text_model):  # buffers that hold no weights
        count = tower.embeddings.position_embedding.num_embeddings
        tower.embeddings.position_ids = torch.arange(count)[None]
    every = itertools.chain(model.named_parameters(), model.named_buffers())
    left = [name for name, value in every if value.is_meta]
    if left:
        raise ClipbiasError(f"{folder} has no weights for {left[0]}.")
    return model


@contextmanager
def seen_attention(model: torch.nn.Module) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Lists that every forward pass fills with the attention `[B, H, N, N]` of each layer: vision, text."""
    lists: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    hooks = [
        layer.self_attn.register_forward_hook(lambda _, __, output, attentions=attentions: attentions.append(output[1]))
        for tower, attentions in zip((model.vision_model, model.text_model), lists, strict=True)
        for layer in tower.encoder.layers
    ]
    try:
        yield lists
    finally:
        for hook in hooks:
            hook.remove()


def row_of(attention: list[torch.Tensor], gradients: list[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """`R ← R + Ā R` from the first layer to the last, read at `rows [B]`: `[B, N]`."""
    batch, _, length, _ = attention[0].shape
    relevancy = torch.eye(length).expand(batch, -1, -1)
    for probabilities, gradient in zip(attention, gradients, strict=True):
        relevancy = relevancy + torch.bmm((probabilities * gradient).clamp(min=0).mean(1), relevancy)
    return relevancy[torch.arange(batch), rows]


def load(job: Job) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """A way for `tools.benchmarks.ways`."""
    inputs = {name: torch.from_numpy(value.copy()) for name, value in job["inputs"].items()}
    pixels = inputs.pop("images").permute(0, 3, 1, 2).contiguous()
    ids = inputs.pop("ids").long()
    ends = inputs.pop("eos").long()
    model = read_model(Path(job["folder"]))
    score = functools.partial(scores, model, job["method"], inputs)
    length = ids.shape[1]
    if job["way"] == "torch-per-pair":
        context = model.text_model.embeddings.position_embedding.num_embeddings
        ids = torch.nn.functional.pad(ids, (0, context - length))
        run = functools.partial(one_by_one, model, score, pixels, ids, ends)
    else:
        # Frozen weights; gradients pass because they could be asked for at the first block's input.
        model.requires_grad_(False)
        model.text_model.embeddings.token_embedding.weight.requires_grad_()
        pixels.requires_grad_()
        run = functools.partial(all_at_once, model, score, pixels, ids, ends)

    def first() -> dict[str, Any]:
        vision, text = run()
        text = torch.where(torch.arange(length) < ends[:, None], text[:, :length], 0)
        return {"answer": [vision[:, 1:].numpy(), text.numpy()]}

    return run, first


def scores(
    model: torch.nn.Module, method: str, learnables: dict[str, torch.Tensor], pixels: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """`[B]`: every image with the text of its own."""
    # The texts' tokens are given, so names are only counted.
    names = [""] * len(ids)
    return torch_methods.logits(model, lambda _: ids, method, names, learnables, pixels).diagonal()


def all_at_once(
    model: torch.nn.Module, score: Callable[..., torch.Tensor], pixels: torch.Tensor, ids: torch.Tensor, ends: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps `[B, N]` of both towers from one backward pass."""
    with seen_attention(model) as (vision, text):
        total = score(pixels, ids).sum()
    gradients = torch.autograd.grad(total, [*vision, *text])
    with torch.no_grad():
        first = torch.zeros(len(pixels), dtype=torch.long)
        count = len(vision)
        return row_of(vision, gradients[:count], first), row_of(text, gradients[count:], ends)


def one_by_one(
    model: torch.nn.Module, score: Callable[..., torch.Tensor], pixels: torch.Tensor, ids: torch.Tensor, ends: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same pair by pair and layer by layer."""
    maps = []
    for i in range(len(pixels)):
        with seen_attention(model) as towers:
            total = score(pixels[i : i + 1], ids[i : i + 1]).sum()
        pair = []
        for attention, row in zip(towers, (torch.tensor([0]), ends[i : i + 1]), strict=True):
            gradients = [torch.autograd.grad(total, [layer], retain_graph=True)[0] for layer in attention]
            with torch.no_grad():
                pair.append(row_of(attention, gradients, row))
        maps.append(pair)
    vision, text = zip(*maps, strict=True)
    return torch.cat(vision), torch.cat(text)
