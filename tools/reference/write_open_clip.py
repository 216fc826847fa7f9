"""Writes the model as open_clip does, and as OpenAI did with a traced module; run after `write_hugging_face`.

  pip install torch torchvision open_clip_torch transformers ftfy regex
  python -m tools.reference.write_open_clip

`open_clip` is a repository as `open_clip.push_to_hf_hub` fills it, in float32 and safetensors; `open_clip_half` the
older `.bin` with matrices in float16; `openai` holds a TorchScript archive in mixed precision under OpenAI's names, and
`training` a checkpoint of a distributed training.
"""

import copy
import dataclasses
import logging
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, convert_weights_to_lp
from open_clip.push_to_hf_hub import save_for_hf

from tests.reference import formats, weights
from tools.reference import common

OUTSIDE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def renamed(state: weights.State, name: str) -> np.ndarray:
    """The tensor that open_clip calls `name`."""
    if name in OUTSIDE:
        value = state[OUTSIDE[name]]
        return value.T if name in ("text_projection", "visual.proj") else value
    tower = "vision_model" if name.startswith("visual.") else "text_model"
    layer, _, rest = name.partition("resblocks.")[2].partition(".")
    block = f"{tower}.encoder.layers.{layer}"
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return np.concatenate([state[f"{block}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
    module, _, kind = rest.rpartition(".")
    return state[f"{block}.{INSIDE[module]}.{kind}"]


def geometry(settings: dict) -> dict[str, Any]:
    """The `model_cfg` of an `open_clip_config.json`; what equals open_clip's own default is left out."""
    vision, text = settings["vision_config"], settings["text_config"]
    return {
        "embed_dim": settings["projection_dim"],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": vision["image_size"],
            "layers": vision["num_hidden_layers"],
            "width": vision["hidden_size"],
            "patch_size": vision["patch_size"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
        },
    }


def build(settings: dict, state: weights.State, cast_dtype: torch.dtype | None = None) -> CLIP:
    """open_clip's model with these weights, in float32."""
    sizes = geometry(settings)
    vision = CLIPVisionCfg(**sizes["vision_cfg"])
    text = CLIPTextCfg(**sizes["text_cfg"])
    model = CLIP(sizes["embed_dim"], vision, text, quick_gelu=True, cast_dtype=cast_dtype).eval()
    named = {name: torch.from_numpy(np.array(renamed(state, name))) for name in model.state_dict()}
    model.load_state_dict(named)
    open_clip.model.set_model_preprocess_cfg(model, dataclasses.asdict(open_clip.transform.PreprocessCfg()))
    return model


def features(model: torch.nn.Module, settings: dict) -> tuple[np.ndarray, np.ndarray]:
    """Image and text features of the model's own forward pass, in float32."""
    inputs = formats.inputs(settings)
    pixels = torch.from_numpy(np.array(inputs["images"].transpose(0, 3, 1, 2)))
    with torch.no_grad():
        images = model.encode_image(pixels)
        return images.numpy(), model.encode_text(torch.from_numpy(inputs["tokens"])).numpy()


def drop_debugging(archive: Path) -> None:
    """Takes the places in the source out of a TorchScript archive: they name folders of the machine."""
    with zipfile.ZipFile(archive) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for name, content in members.items():
            if not name.endswith(".debug_pkl"):
                file.writestr(zipfile.ZipInfo(name), content)


def main() -> None:
    logging.disable(logging.WARNING)
    folders = {name: formats.FORMATS / name for name in ("open_clip", "open_clip_half", "openai", "training")}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
    settings = formats.config(folders["openai"])
    shutil.copytree(folders["openai"], folders["training"])
    state = formats.state(settings)
    model = build(settings, state)
    common.record("open_clip", settings, *features(model, settings))
    length = settings["text_config"]["max_position_embeddings"]
    tokenizer = open_clip.tokenizer.HFTokenizer(str(folders["openai"]), context_length=length)
    save_for_hf(model, tokenizer, geometry(settings), folders["open_clip"], safe_serialization=True)

    half = build(settings, state, torch.float16)
    convert_weights_to_lp(half)
    save_for_hf(half, tokenizer, geometry(settings), folders["open_clip_half"], safe_serialization=False)

    # OpenAI's archives carry these three among their buffers.
    for name, value in (
        ("input_resolution", settings["vision_config"]["image_size"]),
        ("context_length", length),
        ("vocab_size", settings["text_config"]["vocab_size"]),
    ):
        if hasattr(half, name):
            delattr(half, name)
        half.register_buffer(name, torch.tensor(value))
    archive = folders["openai"] / "ViT-tiny.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about sizes that it takes for constants
        inputs = formats.inputs(settings)
        pixels = torch.from_numpy(np.array(inputs["images"].transpose(0, 3, 1, 2))).half()
        tokens = torch.from_numpy(inputs["tokens"])
        methods = {"forward": (pixels, tokens), "encode_image": (pixels,), "encode_text": (tokens,)}
        torch.jit.trace_module(half, methods).save(archive)
        drop_debugging(archive)
        reloaded = torch.jit.load(archive)
    widened = build(settings, state)
    shared = {name: value.float() for name, value in reloaded.state_dict().items() if name in widened.state_dict()}
    widened.load_state_dict(shared)
    common.record("openai", settings, *features(widened, settings))

    trained = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
    checkpoint = {
        "epoch": 3,
        "name": "a run",
        "state_dict": {f"module.{name}": value for name, value in trained.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 12},
    }
    torch.save(checkpoint, folders["training"] / "epoch_3.pt")
    torch.save(
        {"logit_scale": torch.ones(())}, formats.FORMATS / "before_zip.bin", _use_new_zipfile_serialization=False
    )
    common.report_sizes()


if __name__ == "__main__":
    main()
