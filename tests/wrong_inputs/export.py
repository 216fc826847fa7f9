"""Forms that an adapter does not take, and folders of PEFT's that cannot be read."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import load, save_file

import clipbias
from clipbias.export import export, onnx_file, read_peft
from clipbias.tuning.adapter import read_adapter, save_adapter
from tests import families
from tests.wrong_inputs.place import Case, Place, case, zeros

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
OWN = "tests.own_methods"
Tensors = dict[str, np.ndarray]


@case
def form(place: Place, method: str, name: str) -> None:
    """A form that an adapter does not take, and nothing is left of it."""
    adapter = read_adapter(place.adapter(method))
    folder = place.tmp_path / "out"
    try:
        export(adapter, place.clip, folder, form=name, own_methods=(method,))
    finally:
        assert not folder.exists()


@case
def of_family(place: Place, family: str, method: str = "clip_lora", name: str = "peft") -> None:
    """A method of a model that folders of a form are not written for."""
    task = clipbias.Task(families.load_first(family), method, families.CLASSES)
    save_adapter(place.tmp_path / "a.safetensors", task, zeros(task))
    export(read_adapter(place.tmp_path / "a.safetensors"), task.clip, place.tmp_path / "out", form=name)


def without_packages(place: Place) -> None:
    place.request.getfixturevalue("monkeypatch").setattr(onnx_file, "PACKAGES", ("numpy", "no_such_package"))
    export(read_adapter(place.adapter()), place.clip, place.tmp_path / "out", form="onnx")


def half(place: Place) -> None:
    adapter = read_adapter(place.adapter())
    clip = clipbias.load(place.model, dtype="bfloat16")
    export(adapter, clip, place.tmp_path / "out")


FILES: dict[str, bytes] = {}  # of PEFT's folder of an adapter, exported once


@case
def peft(place: Place, change: Callable[[Tensors], Tensors] = dict, **settings: Any) -> None:
    """A folder of PEFT's with other settings or tensors."""
    folder = place.tmp_path / "out"
    if not FILES:
        export(read_adapter(place.adapter("clip_lora")), place.clip, folder, form="peft")
        FILES.update({name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)})
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(json.loads(FILES[CONFIG]) | settings))
    save_file(change(load(FILES[WEIGHTS])), folder / WEIGHTS)
    read_peft(folder, place.clip, ("cat", "dog"))


def more(name: str, value: float = 0.0) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: np.full((2, 24), value, np.float32)}


Q = "base_model.model.vision_model.encoder.layers.1.self_attn.q_proj.lora_A.weight"
CASES: list[Case] = [
    form(
        "'vpt' is not changes of weights alone and cannot be folded into a checkpoint; export it as a program",
        "vpt",
        "checkpoint",
    ),
    form("'bias_by_kind' has a bias that differs between tokens and cannot be folded", "bias_by_kind", "checkpoint"),
    form("'bias' changes the image features.*; export it as a checkpoint", "bias", "head"),
    form("export it as a head", "coop", "checkpoint"),
    form("Probe' has a head of its own, which a file of class features cannot hold; exp", f"{OWN}:Probe", "head"),
    form("'tpt_coop' learns of each test image, which no exported file does", "tpt_coop", "program"),
    form("unknown form 'pt'; choose from checkpoint, open_clip, head, program, onnx, peft", "coop", "pt"),
    form("'cocoop' has texts that depend on the image, and an ONNX file holds fixed.* as a program", "cocoop", "onnx"),
    ("needs no_such_package; install them: pip install 'clipbias.onnx.'", without_packages),
    form("holds what CLIP-LoRA learns, and the method is BitFit", "bitfit", "peft"),
    *(
        of_family(f"and this model's is {name}; choose another form", name)
        for name in ("pe", "biomed_clip", "chinese_clip")
    ),
    of_family(
        "tunes another network than CLIP's, which is not written in open_clip's", "pe", method="bias", name="open_clip"
    ),
    ("load it in float32", half),
    # Folders of PEFT's.
    (f"is no adapter of PEFT's: it has no {CONFIG}", lambda place: read_peft(place.tmp_path, place.clip, ("cat",))),
    peft("holds 'IA3' and not LoRA", peft_type="IA3"),
    peft("has use_qalora=True, which CLIP-LoRA here does not have", use_qalora=True),
    peft("has alpha_pattern=", alpha_pattern={"q_proj": 4}),
    peft(r"of shape \(2, .*; expected finite numbers of shape \(3, ", r=3),
    peft(
        "changes the attention's q, k, v and output, fc1 and fc2 alone", more(Q.replace("self_attn.q_proj", "mlp.gate"))
    ),
    peft("expected finite numbers", more(Q, np.nan)),
]
