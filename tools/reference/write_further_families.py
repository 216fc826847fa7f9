r"""Writes small random models of Perception Encoder, BiomedCLIP and Chinese-CLIP with what their owners' code computes.

  pip install torch torchvision timm open_clip_torch transformers
  python -m tools.reference.write_further_families          # the folders of tests/data_files
  python -m tools.reference.write_further_families --check  # three geometries each against clipbias, largest errors

timm and open_clip make Perception Encoder and BiomedCLIP, transformers Chinese-CLIP. Numbers are float64, by hooks on
the owners' modules; the files are as `write_families` writes them.
"""

import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import timm.models.eva
import timm.models.vision_transformer
import torch
import transformers
from open_clip.transformer import TextTransformer
from torch import nn

from tests.further_families import BERT_WORDS, DATA, LABELS, RATE, STEPS, TEXTS, Geometry, check, size_of

Tensors = dict[str, torch.Tensor]
CLIP_TOKENIZER = DATA / "formats" / "openai"
CONTEXT = 2
Change = Callable[[torch.Tensor], torch.Tensor]
GEOMETRIES = {
    "pe": (Geometry(), Geometry(32, 24, 2, 2, 2, 3, 12), Geometry(64, 32, 2, 4, 4, 2, 8)),
    "biomed_clip": (Geometry(), Geometry(24, 16, 2, 4, 2, 4, 12), Geometry(32, 32, 4, 2, 4, 2, 8)),
    "chinese_clip": (Geometry(), Geometry(24, 16, 2, 4, 2, 4, 12), Geometry(32, 32, 4, 2, 4, 2, 8)),
}
JOINT = 10


class Rotation:
    """timm's table of sines and cosines, with rows for prompts that do not turn: sines of 0, cosines of 1."""

    def __init__(self, table: Any) -> None:
        self.table = table
        self.prompts = 0

    def __call__(self, *arguments: Any, **options: Any) -> torch.Tensor:
        table = self.table(*arguments, **options)
        half = torch.zeros(self.prompts, table.shape[1] // 2)
        return torch.cat([table, torch.cat([half, half + 1], 1).to(table)])


@dataclasses.dataclass(frozen=True)
class Owner:
    """An owner's model and the modules that hooks are put on.

    Attributes:
      model: with parameters by the names of its files.
      images, texts: features of pixels `[B, 3, R, R]` and of ids.
      before_prompts: gets vision prompts appended to its input.
      vision_blocks, text_blocks: take tokens first.
      word_embedding: gives token embeddings, whose rows a context replaces.
      kernels: by tower the names of its attention's weights in block `{}`, one or three, outputs first.
      last: takes the tokens without prompts, behind the last block; `None` where those are not all read.
      rotation: of a tower that turns queries and keys.
    """

    model: nn.Module
    images: Callable[[torch.Tensor], torch.Tensor]
    texts: Callable[[torch.Tensor], torch.Tensor]
    before_prompts: nn.Module
    vision_blocks: Any
    text_blocks: Any
    word_embedding: nn.Module
    kernels: dict[str, tuple[str, ...]]
    last: nn.Module | None = None
    rotation: Rotation = dataclasses.field(default_factory=lambda: Rotation(None))


def vision_options(geometry: Geometry) -> dict[str, Any]:
    return dict(
        img_size=geometry.image,
        patch_size=geometry.patch,
        embed_dim=geometry.width,
        depth=geometry.layers,
        num_heads=geometry.heads,
        mlp_ratio=2.0,
    )


class OpenClip(nn.Module):
    """The parts of open_clip's `CustomTextCLIP`."""

    def __init__(self, trunk: nn.Module, head: nn.Module | None, text: nn.Module) -> None:
        super().__init__()
        self.visual = nn.Module()
        self.visual.trunk = trunk
        if head is not None:
            self.visual.head = nn.Sequential()
            self.visual.head.add_module("proj", head)
        self.text = text
        self.logit_scale = nn.Parameter(torch.ones([]))


def perception_encoder(geometry: Geometry, vocabulary: int) -> Owner:
    grid = geometry.image // geometry.patch
    trunk = timm.models.eva.Eva(
        **vision_options(geometry),
        num_classes=JOINT,
        global_pool="map",
        attn_type="rope",
        use_pre_transformer_norm=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(grid, grid),
        rope_grid_offset=1.0,
        rope_grid_indexing="xy",
        attn_pool_num_heads=8,
        attn_pool_mlp_ratio=2.0,
        norm_layer=nn.LayerNorm,
    )
    text = TextTransformer(
        context_length=geometry.length,
        vocab_size=vocabulary,
        width=geometry.text_width,
        heads=geometry.text_heads,
        layers=geometry.layers,
        output_dim=JOINT,
    )
    model = OpenClip(trunk, None, text)
    rotation = Rotation(trunk.rope.get_embed)
    trunk.rope.get_embed = rotation
    return Owner(
        model,
        trunk,
        text,
        trunk.norm_pre,
        trunk.blocks,
        text.transformer.resblocks,
        text.token_embedding,
        {
            "vision": ("visual.trunk.blocks.{}.attn.qkv.weight",),
            "text": ("text.transformer.resblocks.{}.attn.in_proj_weight",),
        },
        trunk.attn_pool,
        rotation,
    )


class Biomed(nn.Module):
    """open_clip's `HFTextEncoder` of a BERT with an MLP head, read at `[CLS]`."""

    def __init__(self, bert: nn.Module, width: int) -> None:
        super().__init__()
        self.transformer = bert
        hidden = (width + JOINT) // 2
        self.proj = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, JOINT, bias=False))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        output = self.transformer(input_ids=ids, attention_mask=(ids != 0).long())
        return self.proj(output.last_hidden_state[:, 0])


def bert_settings(geometry: Geometry, vocabulary: int) -> dict[str, Any]:
    return dict(
        vocab_size=vocabulary,
        hidden_size=geometry.text_width,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.text_heads,
        intermediate_size=2 * geometry.text_width,
        max_position_embeddings=geometry.length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def biomed_clip(geometry: Geometry, vocabulary: int) -> Owner:
    trunk = timm.models.vision_transformer.VisionTransformer(**vision_options(geometry), num_classes=0)
    settings = transformers.BertConfig(**bert_settings(geometry, vocabulary))
    bert = transformers.BertModel(settings, add_pooling_layer=False)
    text = Biomed(bert, geometry.text_width)
    model = OpenClip(trunk, nn.Linear(geometry.width, JOINT, bias=False), text)
    attention = "text.transformer.encoder.layer.{}.attention.self."
    return Owner(
        model,
        lambda pixels: model.visual.head(trunk(pixels)),
        text,
        trunk.norm_pre,
        trunk.blocks,
        bert.encoder.layer,
        bert.embeddings.word_embeddings,
        {
            "vision": ("visual.trunk.blocks.{}.attn.qkv.weight",),
            "text": tuple(f"{attention}{part}.weight" for part in ("query", "key", "value")),
        },
    )


def chinese_clip(geometry: Geometry, vocabulary: int) -> Owner:
    vision = dict(
        hidden_size=geometry.width,
        intermediate_size=2 * geometry.width,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        image_size=geometry.image,
        patch_size=geometry.patch,
    )
    settings = transformers.ChineseCLIPConfig(
        text_config=bert_settings(geometry, vocabulary), vision_config=vision, projection_dim=JOINT
    )
    model = transformers.ChineseCLIPModel(settings)

    def features(outputs: Any) -> torch.Tensor:
        return getattr(outputs, "pooler_output", outputs)

    def texts(ids: torch.Tensor) -> torch.Tensor:
        return features(model.get_text_features(input_ids=ids, attention_mask=(ids != 0).long()))

    return Owner(
        model,
        lambda pixels: features(model.get_image_features(pixel_values=pixels)),
        texts,
        model.vision_model.pre_layrnorm,
        model.vision_model.encoder.layers,
        model.text_model.encoder.layer,
        model.text_model.embeddings.word_embeddings,
        {
            "vision": tuple(f"vision_model.encoder.layers.{{}}.self_attn.{part}_proj.weight" for part in "qkv"),
            "text": tuple(
                f"text_model.encoder.layer.{{}}.attention.self.{part}.weight" for part in ("query", "key", "value")
            ),
        },
    )


OWNERS = {"pe": perception_encoder, "biomed_clip": biomed_clip, "chinese_clip": chinese_clip}


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


def add(row: torch.Tensor) -> Change:
    """Adds a bias to all tokens."""
    return lambda x: x + row


@contextmanager
def adapted(owner: Owner, added: Tensors) -> Iterator[None]:
    """Puts biases behind blocks, and prompts into both towers."""
    hooks = Hooks()
    if "vision_prompts" in added:
        first, *others = added["vision_prompts"]
        count = len(first)
        hooks.change_first(owner.before_prompts, lambda x: torch.cat([x, first.expand(len(x), -1, -1)], 1))
        for block, rows in zip(list(owner.vision_blocks)[1:], others, strict=True):
            hooks.change_first(block, put(rows, slice(-count, None)))
        if owner.last is not None:
            hooks.change_first(owner.last, lambda x: x[:, :-count])
            owner.rotation.prompts = count
    places = slice(1, 1 + CONTEXT)
    if "text_context" in added:
        hooks.change_output(owner.word_embedding, put(added["text_context"], places))
    for number, rows in enumerate(added.get("text_prompts", ()), 1):
        hooks.change_first(owner.text_blocks[number], put(rows, places))
    for tower, blocks in (("vision", owner.vision_blocks), ("text", owner.text_blocks)):
        for number, row in enumerate(added.get(f"{tower}_bias", ())):
            hooks.change_output(blocks[number], add(row))
    try:
        yield
    finally:
        for handle in hooks.handles:
            handle.remove()
        owner.rotation.prompts = 0


def low_rank(owner: Owner, added: Tensors) -> Tensors:
    """The attention's kernels with changes of low rank."""
    weights = dict(owner.model.named_parameters())
    changed = {}
    for tower, names in owner.kernels.items():
        if f"lora.{tower}.down" not in added:
            continue
        for block, (down, up) in enumerate(zip(added[f"lora.{tower}.down"], added[f"lora.{tower}.up"], strict=True)):
            parts = [(one @ other).T for one, other in zip(down, up, strict=True)]
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
    changed = {f"model.{name}": value for name, value in low_rank(owner, added).items()}
    with adapted(owner, added):
        features = torch.func.functional_call(Features(owner), changed, (pixels, ids))
    image, text = (x / x.norm(dim=-1, keepdim=True) for x in features)
    scale = torch.tensor(100.0).double() if changed else owner.model.logit_scale.exp()
    return scale * image @ text.T


def shapes_of(geometry: Geometry) -> dict[str, dict[str, tuple[int, ...]]]:
    """Of the learnables of each method, and under "" of one adaptation with all parts."""
    widths = {"vision": geometry.width, "text": geometry.text_width}
    depth = geometry.layers
    biases: dict[str, tuple[int, ...]] = {f"{tower}_bias": (depth, width) for tower, width in widths.items()}
    prompts: dict[str, tuple[int, ...]] = {"text_context": (CONTEXT, widths["text"])}
    prompts["text_prompts"] = (depth - 1, CONTEXT, widths["text"])
    prompts["vision_prompts"] = (depth, 2, widths["vision"])
    pairs: dict[str, tuple[int, ...]] = {}
    for tower, width in widths.items():
        pairs |= {f"lora.{tower}.down": (depth, 3, width, 2), f"lora.{tower}.up": (depth, 3, 2, width)}
    return {"": biases | prompts, "bias": biases, "ivlp": prompts, "clip_lora": pairs}


def save_tokenizer(family: str, folder: Path) -> Any:
    if family == "pe":
        for name in ("merges.txt", "vocab.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(CLIP_TOKENIZER / name, folder / name)
        return transformers.CLIPTokenizer.from_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n")
    tokenizer = transformers.BertTokenizer(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_model(family: str, geometry: Geometry, owner: Owner, folder: Path) -> None:
    if family == "chinese_clip":
        owner.model.save_pretrained(folder)
        return
    state = {name: value.numpy().copy() for name, value in owner.model.state_dict().items()}
    state = {name: value for name, value in state.items() if not name.endswith(("rope.pos_embed", "attn_mask"))}
    safetensors.numpy.save_file(state, folder / "open_clip_model.safetensors")
    core = "pe_core_" if family == "pe" else ""
    name = f"vit_{core}{size_of(geometry)}_patch{geometry.patch}_{geometry.image}"
    vision = {"image_size": geometry.image, "timm_model_name": name, "timm_pool": "map" if core else ""}
    text: dict[str, Any] = {
        "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": geometry.length,
    }
    if core:
        text = {"context_length": geometry.length, "vocab_size": vocabulary_of(owner), "width": geometry.text_width}
        text |= {"heads": geometry.text_heads, "layers": geometry.layers}
    half = [0.5, 0.5, 0.5]
    pixels = {"mean": half, "std": half, "interpolation": "bilinear", "resize_mode": "squash"} if core else {}
    model = {"embed_dim": JOINT, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    content = {"model_cfg": model, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(content, indent=1))


def vocabulary_of(owner: Owner) -> int:
    return owner.word_embedding.weight.shape[0]


def random_owner(family: str, geometry: Geometry, vocabulary: int) -> Owner:
    """A model with random weights, larger than those that training starts from, so that every part counts."""
    torch.manual_seed(7)
    owner = OWNERS[family](geometry, vocabulary)
    owner.model.eval()
    with torch.no_grad():
        for name, parameter in owner.model.named_parameters():
            parameter.normal_(0, 0.3)
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "LayerNorm.weight", "norm_pre.weight")):
                parameter.add_(1)
            if name.endswith("trunk.head.bias"):
                parameter.zero_()
        owner.model.logit_scale.fill_(2.0)
    return owner


def trained(run: Callable[[Tensors], torch.Tensor], start: dict[str, np.ndarray]) -> tuple[Tensors, torch.Tensor]:
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


def write(family: str, geometry: Geometry, folder: Path) -> None:
    """One folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer = save_tokenizer(family, folder)
    owner = random_owner(family, geometry, max(tokenizer.get_vocab().values()) + 1)
    save_model(family, geometry, owner, folder)
    ids = tokenizer([*TEXTS], padding="max_length", max_length=geometry.length, return_tensors="pt")["input_ids"]
    random = np.random.default_rng(3)
    images = random.normal(size=(len(LABELS), geometry.image, geometry.image, 3)).astype(np.float32)
    owner.model.double().requires_grad_(False)
    pixels = torch.from_numpy(images).double().permute(0, 3, 1, 2)

    def run(added: Tensors) -> torch.Tensor:
        return logits(owner, pixels, ids, added)

    def draw(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        return {key: random.normal(scale=0.3, size=shape).astype(np.float32) for key, shape in shapes.items()}

    outputs: dict[str, Any] = {"tokens": ids, "logits": run({})}
    outputs |= {"image_features": owner.images(pixels), "text_features": owner.texts(ids)}
    shapes = shapes_of(geometry)
    added = draw(shapes.pop(""))
    leaves = {key: torch.from_numpy(value).double().requires_grad_() for key, value in added.items()}
    changed = run(leaves)
    loss = nn.functional.cross_entropy(changed, torch.tensor(LABELS))
    loss.backward()
    outputs |= {"adapted.logits": changed, "adapted.loss": loss} | {f"gradient.{k}": x.grad for k, x in leaves.items()}
    for method, own in shapes.items():
        start = draw(own)
        leaves, loss = trained(run, start)
        outputs |= {f"{method}.loss": loss} | {f"{method}.before.{k}": torch.from_numpy(v) for k, v in start.items()}
        outputs |= {f"{method}.after.{key}": value for key, value in leaves.items()}
    arrays = {key: value.detach().numpy() for key, value in outputs.items()}
    arrays = {key: np.array(x, x.dtype if x.dtype.kind == "i" else np.float32, order="C") for key, x in arrays.items()}
    arrays |= {"images": images, **{f"added.{key}": value for key, value in added.items()}}
    safetensors.numpy.save_file(arrays, folder / "expected.safetensors")
    print(f"{folder.name}: {sum(path.stat().st_size for path in folder.iterdir()) / 1024:.0f} KB")


def main() -> None:
    for family, geometries in GEOMETRIES.items():
        if "--check" not in sys.argv:
            write(family, geometries[0], DATA / family)
            continue
        for geometry in geometries:
            with tempfile.TemporaryDirectory() as folder:
                write(family, geometry, Path(folder) / family)
                print(geometry, check(Path(folder) / family, geometry))


if __name__ == "__main__":
    main()
