"""What methods add to a model, by hooks on its owner's modules, and three steps of training."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.families import LABELS, RATE, STEPS
from tools.reference.owners import Owner

Tensors = Mapping[str, torch.Tensor]
Change = Callable[[torch.Tensor], torch.Tensor]
CONTEXT = 2


class Hooks:
    """Hooks on an owner's modules, to be removed."""

    def __init__(self) -> None:
        self.handles: list[Any] = []

    def change_first(self, module: nn.Module, change: Change) -> None:
        """Changes the first input."""

        def hook(module: nn.Module, inputs: tuple, options: dict) -> tuple:
            return (change(inputs[0]), *inputs[1:]), options

        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def change_output(self, module: nn.Module, change: Change) -> None:
        """Changes the output, or its first part."""

        def hook(module: nn.Module, inputs: tuple, output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        self.handles.append(module.register_forward_hook(hook))


def put(rows: torch.Tensor, places: slice) -> Change:
    """Replaces rows of tokens."""

    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, places] = rows
        return x

    return change


def add(rows: torch.Tensor, pooled: torch.Tensor) -> Change:
    """Adds a bias to tokens: `[D]`, or by kind `[1, D]`, or `[2, D]` with the first at `pooled` of each sequence."""

    def change(x: torch.Tensor) -> torch.Tensor:
        if rows.ndim == 1 or len(rows) == 1:
            return x + rows
        is_pooled = torch.arange(x.shape[1]) == pooled.expand(len(x))[:, None]
        return x + torch.where(is_pooled[..., None], rows[0], rows[1])

    return change


@contextmanager
def adapted(owner: Owner, added: Tensors, pooled: torch.Tensor) -> Iterator[None]:
    """Puts biases behind blocks, and prompts into both towers. `pooled`: the positions of texts' features."""
    hooks = Hooks()
    if "vision_prompts" in added:
        first, *others = added["vision_prompts"]
        count = len(first)
        hooks.change_first(owner.before_prompts, lambda x: torch.cat([x, first.expand(len(x), -1, -1)], 1))
        for block, rows in zip(list(owner.vision_blocks)[1:], others, strict=False):
            hooks.change_first(block, put(rows, slice(-count, None)))
        if owner.last is not None:
            hooks.change_first(owner.last, lambda x: x[:, :-count])
            owner.rotation.prompts = count
    places = slice(owner.first_word, owner.first_word + CONTEXT)
    if "text_context" in added:
        hooks.change_output(owner.word_embedding, put(added["text_context"], places))
    for number, rows in enumerate(added.get("text_prompts", ()), 1):
        hooks.change_first(owner.text_blocks[number], put(rows, places))
    for number, rows in enumerate(added.get("vision_bias", ())):
        hooks.change_output(owner.vision_blocks[number], add(rows, torch.zeros(1)))
    for number, rows in enumerate(added.get("text_bias", ())):
        hooks.change_output(owner.text_blocks[number], add(rows, pooled))
    try:
        yield
    finally:
        for handle in hooks.handles:
            handle.remove()
        owner.rotation.prompts = 0


def low_rank(owner: Owner, added: Tensors) -> dict[str, torch.Tensor]:
    """The attention's kernels with changes of low rank."""
    weights = dict(owner.model.named_parameters())
    changed = {}
    for tower, names in (("vision", owner.vision_kernels), ("text", owner.text_kernels)):
        if f"lora.{tower}.down" not in added:
            continue
        for block, (down, up) in enumerate(zip(added[f"lora.{tower}.down"], added[f"lora.{tower}.up"], strict=True)):
            parts = [(left @ right).T for left, right in zip(down, up, strict=True)]
            changes = [torch.cat(parts)] if len(names) == 1 else parts
            for name, change in zip(names, changes, strict=True):
                changed[name.format(block)] = weights[name.format(block)] + change
    return changed


class Features(nn.Module):
    """Both features in one call, so that weights can be replaced for it."""

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self.model = owner.model
        self.owner = (owner,)

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.owner[0].images(pixels), self.owner[0].texts(ids)


def logits(owner: Owner, pixels: torch.Tensor, ids: torch.Tensor, added: Tensors) -> torch.Tensor:
    """`[B, C]` of a model with what a method adds: of CLIP-LoRA with 100 in place of the model's own scale."""
    changed = {f"model.{name}": value for name, value in low_rank(owner, added).items()}
    with adapted(owner, added, owner.pooled(ids)):
        images, texts = torch.func.functional_call(Features(owner), changed, (pixels, ids))
    texts = texts + 0.5 * added.get("text_residual", torch.zeros(()))  # of TaskRes, before features are normalised
    image, text = (x / x.norm(dim=-1, keepdim=True) for x in (images, texts))
    model: Any = owner.model
    scale = torch.tensor(100.0).double() if changed else model.logit_scale.exp()
    bias = getattr(model, "logit_bias", None)
    return scale * image @ text.T + (0 if bias is None else bias)


def trained(
    run: Callable[[Tensors], torch.Tensor], start: Mapping[str, np.ndarray]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What three steps of SGD make of learnables, and the last loss."""
    leaves = {key: torch.from_numpy(value).double().requires_grad_() for key, value in start.items()}
    optimizer = torch.optim.SGD(leaves.values(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    loss = torch.zeros(())
    for _ in range(STEPS):
        optimizer.zero_grad()
        # `up` holds γ = α / √r beside what is learned.
        scaled = {key: x / 2**0.5 if key.endswith(".up") else x for key, x in leaves.items()}
        loss = nn.functional.cross_entropy(run(scaled), torch.tensor(LABELS))
        loss.backward()
        optimizer.step()
    return leaves, loss
