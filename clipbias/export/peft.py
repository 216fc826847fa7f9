"""Writes CLIP-LoRA as a folder that PEFT loads onto transformers' CLIPModel, and reads such a folder as an adapter.

For each changed kernel the folder has `lora_A [r, D]` and `lora_B [D, r]`. PEFT adds `α/√r · B A` if `use_rslora` is
set, else `α/r · B A`. The folder has no class names, no template and no logit scale.
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
from clipbias.clip.config import MODELS
from clipbias.clip.formats import open_safetensors_file
from clipbias.clip.hub import parse
from clipbias.constants import HEAD_FILE, TOWERS
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, user_path, write_tensors, write_text
from clipbias.tuning import CONSTANTS, Learnables, Task
from clipbias.tuning.features import COSINE_SCALE
from clipbias.tuning.methods.clip_lora import PRODUCTS, ClipLora
from clipbias.tuning.tuned import Tuned

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PEFT_FAMILIES = ("clip", "metaclip_2", "siglip")  # families with equal names of attention's products in both towers
METHOD = "clip_lora"
MODULE = "{}_model.encoder.layers.{}.{}"
PROJECTIONS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
PLACE = MODULE.format("(vision|text)", r"(\d+)", f"({'|'.join(PROJECTIONS.values())})").replace(".", r"\.")
TENSOR = re.compile(rf"base_model\.model\.{PLACE}\.lora_[AB]\.weight")
# Settings of PEFT that change the result without a tensor in the file: ignoring them would give wrong numbers silently.
UNSUPPORTED = (
    "alpha_pattern",
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)


def write_peft(folder: Path, task: Task, learnables: Learnables, base: str) -> None:
    """Writes a folder for the model `base`. Raises `ClipbiasError` for another method than CLIP-LoRA."""
    method = task.method
    if not isinstance(method, ClipLora):
        raise ClipbiasError(
            f"PEFT has the learnables of CLIP-LoRA, and the method is {type(method).__name__}; choose another form."
        )
    if (family := task.clip.config.family) not in PEFT_FAMILIES:
        raise ClipbiasError(
            f"PEFT reads the families {', '.join(PEFT_FAMILIES)}, and this model's is {family}; choose another form."
        )
    # Base weights are named by repository and revision, as PEFT looks for them.
    views = _views(method, jax.device_get(learnables))
    name = parse(base)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": {
            "base_model_class": MODELS[family],
            "parent_library": f"transformers.models.{family}.modeling_{family}",
        },
        "base_model_name_or_path": name.repository if name else base,
        "revision": name.revision if name else None,
        "r": method.rank,
        "lora_alpha": int(method.alpha) if float(method.alpha).is_integer() else method.alpha,
        "lora_dropout": method.dropout,
        # CLIP-LoRA scales by α/√r, as PEFT does with this setting.
        "use_rslora": True,
        "target_modules": sorted({key.removeprefix("base_model.model.").partition(".lora_")[0] for key in views}),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    tensors = {key: np.array(view, np.float32, order="C") for key, view in views.items()}
    write_tensors(folder / ADAPTER_WEIGHTS, tensors, {"format": "pt"})
    write_text(folder / ADAPTER_CONFIG, json.dumps(config, indent=2) + "\n")


def read_peft(
    folder: str | os.PathLike,
    clip: Clip,
    class_names: Sequence[str],
    *,
    template: str | None = None,
    descriptions: Mapping[str, Sequence[str]] | None = None,
    free_text: bool = False,
) -> Tuned:
    """Reads a PEFT folder as a tuned model of the method CLIP-LoRA; `clip` is its base model.

    Texts of the classes are as for `Task`; default template: CLIP-LoRA's "a photo of a {}.". Raises `ClipbiasError` for
    other content than low-rank changes of equal kernels in neighbouring blocks.
    """
    # The user names the base model: nothing in the folder proves it.
    folder = user_path(folder)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ClipbiasError(f"{folder} is no PEFT adapter: it has no {name}.")
    with open_safetensors_file(folder / ADAPTER_WEIGHTS) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    config = read_json(folder / ADAPTER_CONFIG, dict, what="PEFT's configuration")
    # The file decides the method's options, so that the learnables have its shapes.
    options = _scale(config, folder) | _places(tensors, clip, folder)
    # PEFT has no scale of the cosines; the head that `export` writes beside it does.
    if (folder / HEAD_FILE).is_file():
        with open_safetensors_file(folder / HEAD_FILE) as file:
            options["clip_scale"] = not bool(np.isclose(np.exp(file.get_tensor("logit_scale")), COSINE_SCALE))
    if template is not None:
        options["templates"] = (template,)
    task = Task(clip, METHOD, class_names, template=template, descriptions=descriptions, free_text=free_text, **options)
    assert isinstance(task.method, ClipLora)
    learnables = jax.tree.map(np.array, jax.device_get(task.init()))
    views = _views(task.method, learnables)
    # PEFT may change any module by itself; CLIP-LoRA's stacked learnables cover a range of blocks.
    if views.keys() != tensors.keys():
        # The least name, so that the message does not depend on the order of a set.
        odd = min(views.keys() ^ tensors.keys())
        raise ClipbiasError(
            f"{folder} changes different kernels by block or tower ({odd}); CLIP-LoRA changes the same."
        )
    for key, view in views.items():
        tensor = np.asarray(tensors[key], np.float32)
        # Writing into a view would broadcast a smaller tensor.
        if tensor.shape != view.shape or not np.isfinite(tensor).all():
            raise ClipbiasError(
                f"{folder} has {key} of shape {tensor.shape}; expected finite numbers of shape {view.shape}: it is "
                "damaged, or for another model."
            )
        view[...] = tensor
    return Tuned(task, learnables)


def _views(method: ClipLora, learnables: Learnables) -> dict[str, np.ndarray]:
    """Returns `lora_A [r, D]` and `lora_B [D, r]` by PEFT's names, as views of the learnables."""
    # Views serve both ways: reading copies them into the file, loading writes through them into the learnables.
    views = {}
    for tower in (name for name in learnables if name != CONSTANTS):
        for product, pair in learnables[tower].items():
            parts = [part for part in PRODUCTS[product] if part in method.parts]
            for letter, stacked in (("A", pair["down"]), ("B", pair["up"])):
                for block, number in np.ndindex(stacked.shape[:2]):
                    module = MODULE.format(tower, block + method.first_block - 1, PROJECTIONS[parts[number]])
                    views[f"base_model.model.{module}.lora_{letter}.weight"] = stacked[block, number].T
    return views


def _scale(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns rank, α and dropout as options. Raises `ClipbiasError` unless the configuration is plain LoRA."""
    if config.get("peft_type") != "LORA":
        raise ClipbiasError(f"{folder} holds {shown(config.get('peft_type'))}; only LoRA can be read here.")
    for name in filter(config.get, UNSUPPORTED):
        raise ClipbiasError(f"{folder} has {name}={shown(config[name])}, which CLIP-LoRA here does not have.")
    rank = check_int("PEFT's r", config.get("r"), lowest=1)
    alpha = check_number("PEFT's lora_alpha", config.get("lora_alpha"))
    # CLIP-LoRA scales by α/√r, as `use_rslora` does; plain LoRA scales by α/r.
    if not config.get("use_rslora"):
        alpha = alpha / rank**0.5
    dropout = check_number("PEFT's lora_dropout", config.get("lora_dropout", 0.0), lowest=0, highest=0.99)
    return {"rank": rank, "alpha": float(alpha), "dropout": float(dropout)}


def _places(names: Collection[str], clip: Clip, folder: Path) -> dict[str, Any]:
    """Returns the changed towers, parts and blocks (of the first changed tower) as options."""
    # A name outside of the pattern is a module that would be lost silently.
    matches = {name: TENSOR.fullmatch(name) for name in names}
    places = [match.groups() for match in matches.values() if match]
    if len(places) < len(matches) or not places:
        odd = next((name for name, match in matches.items() if match is None), "nothing")
        raise ClipbiasError(
            f"{folder} has {shown(odd)}; CLIP-LoRA changes the attention's q, k, v and output, fc1 and fc2 alone."
        )
    towers = tuple(tower for tower in TOWERS if any(tower == place[0] for place in places))
    blocks = [int(number) for tower, number, _ in places if tower == towers[0]]
    last = max(blocks) + 1
    return {
        "towers": towers,
        "parts": tuple(part for part, name in PROJECTIONS.items() if any(name == place[2] for place in places)),
        "first_block": min(blocks) + 1,
        "last_block": None if last == getattr(clip.config, towers[0]).layers else last,
    }
