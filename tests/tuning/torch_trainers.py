"""Modules of torch with the names and the forward passes of CoOp, CoCoOp, VPT, IVLP, MaPLe and PromptSRC.

Written after the authors' `trainers/*.py` and `clip/model.py` (docs of each method name the papers), in one set of
modules. `save` writes what Dassl does: the state dictionary beside an optimiser and a scheduler that is an object.
"""

import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

State = Mapping[str, np.ndarray]


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """`VPT_shallow` replaces the tokens 1 … T of a text, or the last V of an image, at the block's input."""

    def __init__(self, width: int, heads: int, hidden: int, mask: torch.Tensor | None, prompts: int = 0) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, hidden)), ("gelu", QuickGELU()), ("c_proj", nn.Linear(hidden, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(width)
        self.attn_mask = mask
        if prompts:
            self.VPT_shallow = nn.Parameter(torch.empty(prompts, width))

    def forward(self, x: torch.Tensor, prompts: torch.Tensor | None = None) -> torch.Tensor:
        prompts = getattr(self, "VPT_shallow", None) if prompts is None else prompts
        if prompts is not None:
            rows = prompts[:, None].expand(-1, x.shape[1], -1)
            if self.attn_mask is None:
                x = torch.cat([x[: -len(rows)], rows])
            else:
                x = torch.cat([x[:1], rows, x[1 + len(rows) :]])
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=self.attn_mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, sizes: Mapping[str, Any], mask: torch.Tensor | None, prompts: int, depth: int) -> None:
        super().__init__()
        shared = sizes["hidden_size"], sizes["num_attention_heads"], sizes["intermediate_size"], mask
        counts = [prompts if 0 < layer < depth else 0 for layer in range(sizes["num_hidden_layers"])]
        self.resblocks = nn.Sequential(*(Block(*shared, count) for count in counts))

    def forward(self, x: torch.Tensor, deeper: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        for number, block in enumerate(self.resblocks):
            x = block(x, deeper[number - 1] if 0 < number <= len(deeper) else None)
        return x


class ImageEncoder(nn.Module):
    def __init__(self, config: Mapping[str, Any], prompts: int = 0, depth: int = 0) -> None:
        super().__init__()
        sizes = config["vision_config"]
        width, patch = sizes["hidden_size"], sizes["patch_size"]
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((sizes["image_size"] // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(sizes, None, prompts, depth)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, config["projection_dim"]))
        if prompts:
            self.VPT = nn.Parameter(torch.empty(prompts, width))

    def forward(
        self, x: torch.Tensor, first: torch.Tensor | None = None, deeper: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        first = getattr(self, "VPT", None) if first is None else first
        if first is not None:
            x = torch.cat([x, first.expand(len(x), -1, -1)], 1)
        x = self.transformer(self.ln_pre(x).transpose(0, 1), deeper).transpose(0, 1)
        return self.ln_post(x[:, 0]) @ self.proj


class TextEncoder(nn.Module):
    def __init__(self, config: Mapping[str, Any], prompts: int = 0, depth: int = 0) -> None:
        super().__init__()
        sizes = config["text_config"]
        width, length = sizes["hidden_size"], sizes["max_position_embeddings"]
        mask = torch.full((length, length), float("-inf")).triu(1)
        self.transformer = Transformer(sizes, mask, prompts, depth)
        self.positional_embedding = nn.Parameter(torch.empty(length, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, config["projection_dim"]))

    def forward(self, prompts: torch.Tensor, ids: torch.Tensor, deeper: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        x = self.transformer((prompts + self.positional_embedding).transpose(0, 1), deeper).transpose(0, 1)
        return self.ln_final(x)[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection


class PromptLearner(nn.Module):
    """`ctx` and the buffers of what stands before and behind it; the others as the trainer has them.

    Attributes:
      kind: the trainer.
    """

    def __init__(self, kind: str, config: Mapping[str, Any], embedded: torch.Tensor, tokens: int, depth: int) -> None:
        super().__init__()
        classes, _, width = embedded.shape
        vision = config["vision_config"]["hidden_size"]
        self.kind = kind
        self.ctx = nn.Parameter(torch.empty(*((classes,) if kind == "coop_specific" else ()), tokens, width))
        self.register_buffer("token_prefix", embedded[:, :1].clone())
        self.register_buffer("token_suffix", embedded[:, 1 + tokens :].clone())
        if kind == "cocoop":
            joint = config["projection_dim"]
            layers = [("linear1", nn.Linear(joint, max(1, joint // 16))), ("relu", nn.ReLU(inplace=True))]
            layers.append(("linear2", nn.Linear(max(1, joint // 16), width)))
            self.meta_net = nn.Sequential(OrderedDict(layers))
        if kind == "maple":
            self.proj = nn.Linear(width, vision)
            self.compound_prompts_text = nn.ParameterList(
                nn.Parameter(torch.empty(tokens, width)) for _ in range(depth - 1)
            )
            self.compound_prompt_projections = nn.ModuleList(nn.Linear(width, vision) for _ in range(depth - 1))

    def prompts(self, ctx: torch.Tensor) -> torch.Tensor:
        if ctx.dim() == 2:
            ctx = ctx.expand(len(self.token_prefix), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], 1)


class CustomCLIP(nn.Module):
    """A model of one of the trainers: "coop", "coop_specific", "cocoop", "vpt", "ivlp", "promptsrc" or "maple"."""

    def __init__(
        self, kind: str, config: Mapping[str, Any], state: State, ids: np.ndarray, tokens: int = 4, depth: int = 2
    ) -> None:
        super().__init__()
        deep = kind in ("ivlp", "promptsrc")
        embedded = torch.from_numpy(state["text_model.embeddings.token_embedding.weight"][ids]).float()
        if kind != "vpt":
            self.prompt_learner = PromptLearner(kind, config, embedded, tokens, depth)
        self.image_encoder = ImageEncoder(config, 3 if deep or kind == "vpt" else 0, depth)
        self.text_encoder = TextEncoder(config, tokens if deep else 0, depth + 1 if deep else 0)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.kind = kind
        self.ids = torch.from_numpy(ids)
        self.embedded = embedded  # no buffer: VPT keeps its texts elsewhere
        if kind == "promptsrc":
            self.prompt_learner.ZS_image_encoder = ImageEncoder(config)
        self._fill(state)

    def _fill(self, state: State) -> None:
        """CLIP's weights, and random learnables."""
        plain = openai_names(state)
        own = {"image_encoder.": "visual.", "prompt_learner.ZS_image_encoder.": "visual.", "text_encoder.": ""}
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, value in self.named_parameters():
                prefix = next((prefix for prefix in own if name.startswith(prefix)), "")
                known = plain.get(own.get(prefix, "") + name.removeprefix(prefix))
                if known is None:
                    value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
                else:
                    value.copy_(torch.from_numpy(np.array(known)))

    def learner_or_self(self) -> nn.Module:
        """What the trainer saves."""
        return self.prompt_learner if self.kind in ("coop", "coop_specific", "cocoop") else self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.kind == "vpt":
            return self._logits(self.image_encoder(images), self.text_encoder(self.embedded, self.ids))
        learner = self.prompt_learner
        if self.kind == "maple":
            deeper = list(learner.compound_prompts_text)
            maps = learner.compound_prompt_projections
            text = self.text_encoder(learner.prompts(learner.ctx), self.ids, deeper)
            visual = [layer(row) for layer, row in zip(maps, deeper, strict=True)]
            return self._logits(self.image_encoder(images, learner.proj(learner.ctx), visual), text)
        features = self.image_encoder(images)
        if self.kind != "cocoop":
            return self._logits(features, self.text_encoder(learner.prompts(learner.ctx), self.ids))
        rows = []
        for feature in features / features.norm(dim=-1, keepdim=True):
            context = learner.ctx + learner.meta_net(feature)
            rows.append(self._logits(feature[None], self.text_encoder(learner.prompts(context), self.ids)))
        return torch.cat(rows)

    def _logits(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        images, texts = (x / x.norm(dim=-1, keepdim=True) for x in (images, texts))
        return self.logit_scale.exp() * images @ texts.T


def openai_names(state: State) -> dict[str, np.ndarray]:
    """A Hugging Face state dictionary under OpenAI's names."""
    renamed = {
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    norms = {"visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm"}
    norms |= {"ln_final": "text_model.final_layer_norm"}
    named = {ours: state[theirs] for ours, theirs in renamed.items()}
    named |= {f"{a}.{kind}": state[f"{b}.{kind}"] for a, b in norms.items() for kind in ("weight", "bias")}
    named |= {"visual.proj": state["visual_projection.weight"].T, "text_projection": state["text_projection.weight"].T}
    parts = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    parts |= {"ln_1": "layer_norm1", "ln_2": "layer_norm2"}
    for tower, prefix in (("vision", "visual."), ("text", "")):
        count = len({name for name in state if name.startswith(f"{tower}_model") and name.endswith("layer_norm1.bias")})
        for layer in range(count):
            ours, theirs = f"{prefix}transformer.resblocks.{layer}", f"{tower}_model.encoder.layers.{layer}"
            for kind in ("weight", "bias"):
                named |= {f"{ours}.{a}.{kind}": state[f"{theirs}.{b}.{kind}"] for a, b in parts.items()}
                rows = [state[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                named[f"{ours}.attn.in_proj_{kind}"] = np.concatenate(rows)
    return named


class ConstantWarmupScheduler(torch.optim.lr_scheduler.LRScheduler):
    """Dassl's: the scheduler behind the warm-up is an attribute, and so in the state dictionary, an object."""

    def __init__(self, optimizer: torch.optim.Optimizer, successor: torch.optim.lr_scheduler.LRScheduler) -> None:
        self.successor = successor
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [1e-5 for _ in self.base_lrs]


def save(path: Path, module: nn.Module, *, half: bool = False, wrapped: bool = False) -> None:
    """As Dassl's `save_checkpoint` writes a module after a step of its optimiser."""
    parameters = [value for value in module.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.002, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have the optimiser step first
        inner = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10.0)
        scheduler = ConstantWarmupScheduler(optimizer, inner)
    for value in parameters:
        value.grad = torch.zeros_like(value)
    optimizer.step()
    state = module.state_dict()
    if half:
        state = OrderedDict((name, value.half()) for name, value in state.items())
    if wrapped:
        state = OrderedDict((f"module.{name}", value) for name, value in state.items())
    content = {
        "state_dict": state,
        "epoch": 5,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "val_result": 71.2,
    }
    torch.save(content, path)
