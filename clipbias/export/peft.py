"""CLIP-LoRA as a folder that PEFT loads onto transformers' CLIPModel, and such a folder as an adapter.

PEFT holds for each changed kernel `lora_A [r, D]` and `lora_B [D, r]`, and adds `α/√r · B A` where `use_rslora` is set,
else `α/r · B A`. Neither the classes, nor their template, nor the number 100 are in such a folder.
"""

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipbias.checks import check_int, check_number, shown
from clipbias.clip import Clip
from clipbias.clip.hub import parse
from clipbias.clip.tensors import open_safetensors_file
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, user_path, write_tensors, write_text
from clipbias.tuning import CONSTANTS, Learnables, Task
from clipbias.tuning.adapter import Adapter
from clipbias.tuning.frozen_weights import TOWERS
from clipbias.tuning.methods.clip_lora import QKV, ClipLora

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
METHOD = "clip_lora"
NAME = re.compile(
    r"base_model\.model\.((vision|text)_model\.encoder\.layers\.(\d{1,4})\.self_attn\.(q|k|v|out)_proj)\.lora_[AB]\.weight"
)
PARTS = {"q": "q", "k": "k", "v": "v", "o": "out"}
# Settings of PEFT's that ask for more than pairs of low rank, with what asks for nothing besides an empty value.
OTHERS: dict[str, Any] = {"bias": "none"} | dict.fromkeys(
    (
        *("rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "target_parameters"),
        *("trainable_token_indices", "alora_invocation_tokens", "fan_in_fan_out", "lora_bias"),
        *("use_dora", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config"),
    )
)


def write_peft(folder: Path, task: Task, learnables: Learnables, base: str) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`.

    Args:
      folder: where.
      task: of the method CLIP-LoRA.
      learnables: of one run.
      base: what the frozen model is loaded from.

    Raises:
      ClipbiasError: the task's method is another one.
    """
    method = task.method
    if not isinstance(method, ClipLora):
        raise ClipbiasError(
            f"a folder of PEFT's holds what CLIP-LoRA learns, and the method is {type(method).__name__}; choose "
            "another form."
        )
    tensors = {
        key: np.array(view, np.float32, order="C") for key, view in _views(method, jax.device_get(learnables)).items()
    }
    name = parse(base)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": {
            "base_model_class": "CLIPModel",
            "parent_library": "transformers.models.clip.modeling_clip",
        },
        "base_model_name_or_path": name.repository if name else base,
        "revision": name.revision if name else None,
        "r": method.rank,
        "lora_alpha": int(method.alpha) if float(method.alpha).is_integer() else method.alpha,
        "lora_dropout": method.dropout,
        "use_rslora": True,
        "target_modules": sorted({NAME.fullmatch(key)[1] for key in tensors}),  # type: ignore[index]
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def read_peft(
    folder: str | os.PathLike, clip: Clip, class_names: Sequence[str], *, template: str | None = None
) -> Adapter:
    """A folder of PEFT's as an adapter of the method CLIP-LoRA, to be saved, evaluated or exported as any other.

    Args:
      folder: with `adapter_config.json` and `adapter_model.safetensors`, for transformers' CLIPModel.
      clip: the model that it is for, which nothing in the folder proves.
      class_names: the classes to tell apart.
      template: with `{}` for the class name; `None` for CLIP-LoRA's "a photo of a {}.".

    Raises:
      ClipbiasError: the files are missing or damaged, or hold something else than low-rank changes of the same of q, k,
        v and the attention's output in neighbouring blocks.
    """
    folder = user_path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ClipbiasError(f"{folder} is no adapter of PEFT's: it has no {name}.")
    options = _settings(read_json(folder / CONFIG, dict, what="PEFT's configuration"), folder)
    with open_safetensors_file(folder / WEIGHTS) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    options |= _places(tensors, clip, folder)
    if template is not None:
        options["templates"] = (template,)
    task = Task(clip, METHOD, class_names, **options)
    assert isinstance(task.method, ClipLora)
    learnables = jax.tree.map(np.array, jax.device_get(task.init()))
    views = _views(task.method, learnables)
    if views.keys() != tensors.keys():
        odd = min(views.keys() ^ tensors.keys())
        raise ClipbiasError(
            f"{folder} does not change the same kernels in every block and tower that it changes (see {odd}), and the "
            "method here does."
        )
    for key, view in views.items():
        tensor = np.asarray(tensors[key], np.float32)
        if tensor.shape != view.shape or not np.isfinite(tensor).all():
            raise ClipbiasError(
                f"{folder} has {key} of shape {tensor.shape}; expected finite numbers of shape {view.shape}: it is "
                "damaged, or for another model."
            )
        view[...] = tensor
    return Adapter(
        learnables=learnables,
        method=METHOD,
        options=task.options(),
        class_names=task.class_names,
        template=task.template,
        base=clip.source,
        base_fingerprint=clip.fingerprint,
    )


def _views(method: ClipLora, learnables: Learnables) -> dict[str, np.ndarray]:
    """`lora_A [r, D]` and `lora_B [D, r]` by PEFT's names, as views of the learnables."""
    found = {}
    for tower in (name for name in learnables if name != CONSTANTS):
        for product, pair in learnables[tower].items():
            parts = [part for part in (QKV if product == "qkv" else ("o",)) if part in method.parts]
            for letter, stacked in (("A", pair["down"]), ("B", pair["up"])):
                for block, number in np.ndindex(stacked.shape[:2]):
                    layer = f"{tower}_model.encoder.layers.{block + method.first_block - 1}"
                    module = f"{layer}.self_attn.{PARTS[parts[number]]}_proj"
                    found[f"base_model.model.{module}.lora_{letter}.weight"] = stacked[block, number].T
    return found


def _settings(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Rank, α and dropout. Raises `ClipbiasError` for what is no plain LoRA."""
    if config.get("peft_type") != "LORA":
        raise ClipbiasError(f"{folder} holds {shown(config.get('peft_type'))} and not LoRA, which cannot be read here.")
    for name, value in config.items():
        if value and name in OTHERS and value != OTHERS[name]:
            raise ClipbiasError(f"{folder} has {name}={shown(value)}, which the method CLIP-LoRA here does not have.")
    rank = check_int("PEFT's r", config.get("r"), lowest=1)
    alpha = check_number("PEFT's lora_alpha", config.get("lora_alpha"))
    if not config.get("use_rslora"):  # α/r, not α/√r
        alpha = alpha / rank**0.5
    dropout = check_number("PEFT's lora_dropout", config.get("lora_dropout", 0.0), lowest=0, highest=0.99)
    return {"rank": rank, "alpha": float(alpha), "dropout": float(dropout)}


def _places(names: Collection[str], clip: Clip, folder: Path) -> dict[str, Any]:
    """Which towers, parts and blocks have changes."""
    layers: dict[str, set[int]] = {}
    parts = set()
    for name in names:
        place = NAME.fullmatch(name)
        if place is None:
            raise ClipbiasError(
                f"{folder} has {shown(name)}, and the method here changes the attention's q, k, v and output alone."
            )
        layers.setdefault(place[2], set()).add(int(place[3]))
        parts.add(place[4])
    if not layers:
        raise ClipbiasError(f"{folder} changes no kernel.")
    depths = {tower: getattr(clip.config, tower).layers for tower in layers}
    firsts = {min(found) + 1 for found in layers.values()}
    lasts = {(max(found) + 1) % depths[tower] for tower, found in layers.items()}  # 0 for a tower's last block
    if len(firsts) > 1 or len(lasts) > 1:
        raise ClipbiasError(
            f"{folder} changes other blocks in one tower than in the other, and the method here does not."
        )
    return {
        "towers": tuple(tower for tower in TOWERS if tower in layers),
        "parts": tuple(part for part, name in PARTS.items() if name in parts),
        "first_block": firsts.pop(),
        "last_block": lasts.pop(),
    }
