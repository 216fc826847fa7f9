"""Training steps of several methods, and TPT's test of an image, in PyTorch as their authors do.

For `tools.benchmarks`. All texts are encoded anew in each step, at full context length, with whole blocks; gradients by
autograd. CLIP-LoRA: MaxZanella/CLIP-LoRA, which forms `B A` and multiplies the dropped input by it. CoCoOp:
KaiyangZhou/CoOp, which encodes all texts for each image. PromptSRC: muzairkhattak/PromptSRC, which runs the frozen
model on the same images in every step; IVLP and VPT, whose texts are encoded before: its predecessor
muzairkhattak/multimodal-prompt-learning. TPT: azshue/TPT, a step on all views of an image, then the texts once more.
Bias tuning is the paper's equation. Half precision is autocast; steps are compiled on a GPU. Needs PyTorch alone.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.nn import functional

from clipbias.errors import ClipbiasError
from tools.benchmarks.ways import Job, process_memory

Tensors = dict[str, torch.Tensor]
# `(name, x) -> x Wᵀ + b`, of the name of a query, key or value projection.
Project = Callable[[str, torch.Tensor], torch.Tensor]


@dataclasses.dataclass
class Model:
    """A frozen CLIP: weights by Hugging Face's names and its config."""

    state: Tensors
    config: Mapping[str, Any]

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """`x Wᵀ + b`."""
        return functional.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """LayerNorm."""
        return functional.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-5)


def block(
    model: Model, name: str, heads: int, x: torch.Tensor, project: Project | None, *, causal: bool
) -> torch.Tensor:
    """One residual block; `project` computes queries, keys and values in place of `model.linear`."""
    batch, length, width = x.shape
    normed = model.norm(f"{name}.layer_norm1", x)
    if project is None and f"{name}.in_proj.weight" in model.state:
        three = model.linear(f"{name}.in_proj", normed).chunk(3, dim=-1)
    else:
        three = [(project or model.linear)(f"{name}.self_attn.{part}_proj", normed) for part in "qkv"]
    query, key, value = (part.view(batch, length, heads, width // heads).transpose(1, 2) for part in three)
    attended = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    x = x + model.linear(f"{name}.self_attn.out_proj", attended.transpose(1, 2).reshape(batch, length, width))
    hidden = model.linear(f"{name}.mlp.fc1", model.norm(f"{name}.layer_norm2", x))
    return x + model.linear(f"{name}.mlp.fc2", hidden * torch.sigmoid(1.702 * hidden))


def image_features(
    model: Model,
    pixels: torch.Tensor,
    prompts: Sequence[torch.Tensor] = (),
    project: Project | None = None,
    bias: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """[B, d] of `pixels` [B, 3, R, R]; `prompts` [depth, V, Dv], each row in place of the last block's prompts.

    `bias` [L, Dv]: added to all tokens behind each block.
    """
    sizes = model.config["vision_config"]
    batch = len(pixels)
    kernel = model.state["vision_model.embeddings.patch_embedding.weight"]
    patches = functional.conv2d(pixels, kernel, stride=sizes["patch_size"]).flatten(2).transpose(1, 2)
    cls = model.state["vision_model.embeddings.class_embedding"].expand(batch, 1, -1)
    x = torch.cat([cls, patches], dim=1) + model.state["vision_model.embeddings.position_embedding.weight"]
    length = x.shape[1]
    if len(prompts):
        x = torch.cat([x, prompts[0].expand(batch, -1, -1)], dim=1)
    x = model.norm("vision_model.pre_layrnorm", x)
    for l in range(sizes["num_hidden_layers"]):
        if 0 < l < len(prompts):
            x = torch.cat([x[:, :length], prompts[l].expand(batch, -1, -1)], dim=1)
        x = block(model, f"vision_model.encoder.layers.{l}", sizes["num_attention_heads"], x, project, causal=False)
        x = x + bias[l] if len(bias) else x
    pooled = model.norm("vision_model.post_layernorm", x[:, 0])
    return pooled @ model.state["visual_projection.weight"].T


def text_features(
    model: Model,
    ids: torch.Tensor,
    ends: torch.Tensor,
    prompts: Sequence[torch.Tensor] = (),
    project: Any = None,
    bias: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """[C, d] of tokens [C, N]; `prompts` [depth, T, Dt]: the first in place of embeddings, the others of the tokens."""
    sizes = model.config["text_config"]
    classes = len(ids)
    x = model.state["text_model.embeddings.token_embedding.weight"][ids]
    if len(prompts):
        x = torch.cat([x[:, :1], prompts[0].expand(classes, -1, -1), x[:, 1 + len(prompts[0]) :]], dim=1)
    x = x + model.state["text_model.embeddings.position_embedding.weight"]
    for l in range(sizes["num_hidden_layers"]):
        if 0 < l < len(prompts):
            x = torch.cat([x[:, :1], prompts[l].expand(classes, -1, -1), x[:, 1 + len(prompts[l]) :]], dim=1)
        x = block(model, f"text_model.encoder.layers.{l}", sizes["num_attention_heads"], x, project, causal=True)
        x = x + bias[l] if len(bias) else x
    read = model.norm("text_model.final_layer_norm", x)[torch.arange(classes, device=x.device), ends]
    return read @ model.state["text_projection.weight"].T


def unit(x: torch.Tensor) -> torch.Tensor:
    """Rows of length 1."""
    return x / x.norm(dim=-1, keepdim=True)


# CLIP-LoRA


def lora_project(model: Model, learnables: Tensors, scale: float, drop: Callable[[str, torch.Tensor], Any]) -> Project:
    """`h Wᵀ + b + γ · drop(h) (B A)ᵀ`."""

    def project(name: str, x: torch.Tensor) -> torch.Tensor:
        plain = model.linear(name, x)
        if f"{name}.A" not in learnables:
            return plain
        return plain + drop(name, x) @ (learnables[f"{name}.B"] @ learnables[f"{name}.A"]).T * scale

    return project


def random_dropout(name: str, x: torch.Tensor, rate: float = 0.25) -> torch.Tensor:
    """A new mask for each projection."""
    return functional.dropout(x, rate)


def lora_learnables(model: Model, rank: int = 2) -> Tensors:
    """`A` uniform ±1/√D and `B` zero for queries, keys and values of all blocks."""
    matrices = {}
    for tower in ("vision", "text"):
        sizes = model.config[f"{tower}_config"]
        width = sizes["hidden_size"]
        for l in range(sizes["num_hidden_layers"]):
            for part in "qkv":
                name = f"{tower}_model.encoder.layers.{l}.self_attn.{part}_proj"
                like = model.state["logit_scale"]
                matrices[f"{name}.A"] = like.new_empty(rank, width).uniform_(-(width**-0.5), width**-0.5)
                matrices[f"{name}.B"] = like.new_zeros(width, rank)
    return matrices


def lora_losses(
    model: Model,
    learnables: Tensors,
    inputs: Tensors,
    *,
    alpha: float = 1.0,
    drop: Callable[[str, torch.Tensor], torch.Tensor] = random_dropout,
) -> Tensors:
    """Cross-entropy of `100 · cos`."""
    rank = next(len(value) for name, value in learnables.items() if name.endswith(".A"))
    project = lora_project(model, learnables, alpha / math.sqrt(rank), drop)
    texts = unit(text_features(model, inputs["ids"], inputs["eos"], project=project))
    images = unit(image_features(model, inputs["pixels"], project=project))
    return {"cross_entropy": functional.cross_entropy(100 * images @ texts.T, inputs["labels"])}


# CoOp, VPT, IVLP, bias tuning and PromptSRC


def tuned(model: Model, learnables: Tensors, inputs: Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit features of images and texts, and logits; the texts of `inputs["teacher"]` where none is learned."""
    texts = [learnables["text_context"]] if "text_context" in learnables else []
    texts += [*learnables.get("text_prompts", ())]
    text_bias, vision_bias = (learnables.get(f"{tower}_bias", ()) for tower in ("text", "vision"))
    images = unit(image_features(model, inputs["pixels"], learnables.get("vision_prompts", ()), bias=vision_bias))
    if texts or len(text_bias):
        classes = unit(text_features(model, inputs["ids"], inputs["eos"], texts, bias=text_bias))
    else:
        classes = inputs["teacher"]
    return images, classes, model.state["logit_scale"].exp() * images @ classes.T


def tuned_losses(model: Model, learnables: Tensors, inputs: Tensors) -> Tensors:
    """Cross-entropy of the tuned logits."""
    return {"cross_entropy": functional.cross_entropy(tuned(model, learnables, inputs)[2], inputs["labels"])}


def promptsrc_losses(model: Model, learnables: Tensors, inputs: Tensors) -> Tensors:
    """PromptSRC's four terms; the teacher's texts `inputs["teacher"]` [C, d] were encoded before the training."""
    with torch.no_grad():
        teacher = unit(image_features(model, inputs["pixels"]))
        plain = model.state["logit_scale"].exp() * teacher @ inputs["teacher"].T
    images, texts, logits = tuned(model, learnables, inputs)
    divergence = functional.kl_div(
        functional.log_softmax(logits, dim=1), functional.log_softmax(plain, dim=1), reduction="sum", log_target=True
    )
    return {
        "cross_entropy": functional.cross_entropy(logits, inputs["labels"]),
        "text": 25 * functional.l1_loss(texts, inputs["teacher"]),
        "image": 10 * functional.l1_loss(images, teacher),
        "kl": divergence / logits.numel(),
    }


# CoCoOp


def cocoop_losses(model: Model, learnables: Tensors, inputs: Tensors) -> Tensors:
    """Cross-entropy of logits whose texts each image shifts."""
    images = unit(image_features(model, inputs["pixels"]))
    units = functional.relu(images @ learnables["text_hidden_kernel"] + learnables["text_hidden_bias"])
    shifts = units @ learnables["text_output_kernel"] + learnables["text_output_bias"]
    contexts = learnables["text_context"] + shifts[:, None]
    rows = []
    for image, context in zip(images, contexts, strict=True):
        classes = unit(text_features(model, inputs["ids"], inputs["eos"], [context]))
        rows.append(model.state["logit_scale"].exp() * image @ classes.T)
    return {"cross_entropy": functional.cross_entropy(torch.stack(rows), inputs["labels"])}


# TPT


def tpt_context(context: torch.Tensor, logits: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The context after a step of a new AdamW, on the entropy of the surest views' mean probabilities."""
    learned = context.detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([learned], lr=5e-3)
    each = functional.log_softmax(logits(learned), dim=1)
    entropy = -(each * each.exp()).sum(1)
    surest = torch.argsort(entropy)[: max(1, int(len(each) * 0.1))]
    mean = torch.logsumexp(each[surest], dim=0) - math.log(len(surest))
    (-(mean * mean.exp()).sum()).backward()
    optimizer.step()
    return learned.detach()


def tpt_logits(model: Model, learnables: Tensors, inputs: Tensors) -> torch.Tensor:
    """[B, C] of images with their views `inputs["pixels"]` [B, 1 + V, 3, R, R], one after another."""

    def texts(context: torch.Tensor) -> torch.Tensor:
        return unit(text_features(model, inputs["ids"], inputs["eos"], [context]))

    rows = []
    scale = model.state["logit_scale"].exp()
    for views in inputs["pixels"]:
        with torch.no_grad():
            images = unit(image_features(model, views))

        def logits(context: torch.Tensor, images: torch.Tensor = images) -> torch.Tensor:
            return scale * images @ texts(context).T

        context = tpt_context(learnables["text_context"], logits)
        with torch.no_grad():
            rows.append(scale * images[0] @ texts(context).T)
    return torch.stack(rows)


# Benchmark


def adamw(learnables: Iterator[torch.Tensor]) -> torch.optim.Optimizer:
    """CLIP-LoRA's."""
    return torch.optim.AdamW(learnables, lr=2e-4, weight_decay=1e-2, betas=(0.9, 0.999))


def sgd(learnables: Iterator[torch.Tensor]) -> torch.optim.Optimizer:
    """That of the others; the learning rate is IVLP's and PromptSRC's."""
    return torch.optim.SGD(learnables, lr=0.0025, momentum=0.9, weight_decay=5e-4)


METHODS: dict[str, tuple[Callable[..., Tensors], Callable[..., torch.optim.Optimizer]]] = {
    "clip_lora": (lora_losses, adamw),
    "cocoop": (cocoop_losses, sgd),
    **dict.fromkeys(("coop", "vpt", "ivlp", "bias"), (tuned_losses, sgd)),
    "promptsrc": (promptsrc_losses, sgd),
}


def read_model(folder: Path) -> Model:
    """Weights and config from a folder."""
    state = {name: value.clone() for name, value in safetensors.torch.load_file(folder / "model.safetensors").items()}
    return Model(state, json.loads((folder / "config.json").read_text(encoding="utf-8")))


def join_projections(model: Model) -> None:
    """Keeps queries', keys' and values' weights as one array of each block, as `MultiheadAttention` does."""
    for name in [name for name in model.state if ".self_attn.q_proj." in name]:
        layer = name.split(".self_attn.")[0]
        kind = name.rsplit(".", 1)[1]
        parts = [model.state.pop(f"{layer}.self_attn.{part}_proj.{kind}") for part in "qkv"]
        model.state[f"{layer}.in_proj.{kind}"] = torch.cat(parts)


def step(
    losses: Callable[[Tensors, Tensors], Tensors],
    optimizer: torch.optim.Optimizer,
    learnables: Tensors,
    inputs: Tensors,
) -> float:
    """One step of training; the loss before it."""
    optimizer.zero_grad()
    loss = sum(losses(learnables, inputs).values())
    loss.backward()
    optimizer.step()
    return loss.item()


def in_type(dtype: str, device: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` in a compute type, weights staying in float32; on a GPU compiled."""
    torch.set_float32_matmul_precision("high" if dtype == "tensorfloat32" else "highest")
    if device == "cuda":
        function = torch.compile(function)

    def run(*arguments: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return function(*arguments)

    return run


def memory() -> tuple[int, int]:
    """Bytes in use, now and at most: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    return process_memory()


def load(job: Job) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """A way for `tools.benchmarks.ways`: one training step, or the test of images with their views."""
    if job["method"] not in (*METHODS, "tpt"):
        raise ClipbiasError(f"there is no PyTorch step of {job['method']}; choose one of {', '.join(METHODS)}, tpt.")
    folder = Path(job["folder"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = read_model(folder)
    model.state = {name: value.to(device) for name, value in model.state.items()}
    inputs = {name: torch.from_numpy(value.copy()).to(device) for name, value in job["inputs"].items()}
    inputs |= {name: inputs[name].long() for name in ("ids", "eos", "labels")}
    inputs["pixels"] = inputs.pop("images").movedim(-1, -3).contiguous()
    if job["method"] == "clip_lora":
        learnables = lora_learnables(model)
    else:
        learnables = {name: inputs.pop(name) for name in [*inputs] if name.startswith(("text_", "vision_"))}
        join_projections(model)
    if job["method"] == "tpt":
        test = functools.partial(tpt_logits, model, learnables, inputs)
        return test, lambda: {"answer": [test().numpy()]}
    function, make_optimizer = METHODS[job["method"]]
    learnables = {name: value.requires_grad_() for name, value in learnables.items()}
    optimizer = make_optimizer(learnables.values())
    losses = in_type(job["dtype"], device, functools.partial(function, model))
    run = functools.partial(step, losses, optimizer, learnables, inputs)

    def first() -> dict[str, Any]:
        loss = run()
        return {"loss": loss, "answer": [[loss]]}

    return run, first
