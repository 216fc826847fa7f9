"""Folders of PEFT's: names and shapes always; PEFT's own logits where it is installed."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import clipbias
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.export import export, read_peft
from clipbias.tuning import CONSTANTS
from clipbias.tuning.adapter import read_adapter
from clipbias.tuning.tuned import Tuned
from tests.export import models

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "some": {
        "parts": ("v", "o", "fc1"),
        "towers": ("text",),
        "first_block": 2,
        "last_block": 2,
        "rank": 3,
        "alpha": 1.5,
    },
}


def tuned_lora(clip: Clip, folder: Path, **options: Any) -> Tuned:
    tuned = models.tuned(clip, "clip_lora", folder, **options)
    if CONSTANTS in tuned.task.shapes:  # which blocks are changed is not drawn at random
        constants = {CONSTANTS: jax.device_get(tuned.task.init()[CONSTANTS])}
        return dataclasses.replace(tuned, learnables={**tuned.learnables, **constants})
    return tuned


@pytest.mark.parametrize("name", OPTIONS)
def test_names_shapes_and_the_way_back(name, clip, tmp_path):
    options = OPTIONS[name]
    tuned = tuned_lora(clip, tmp_path, **options)
    assert export(tuned, tmp_path / "out", form="peft") == "peft"
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    parts = options.get("parts", "qkv")
    rank = options.get("rank", 2)
    modules = set()
    names = {"o": ("self_attn.out_proj", "out"), "fc1": ("mlp.fc1", "fc1")}
    for tower in options.get("towers", ("vision", "text")):
        for block, l in enumerate((1,) if name == "some" else range(3)):
            for number, part in enumerate(parts):
                place = number if name == "all" else 0
                module, product = names.get(part, (f"self_attn.{part}_proj", "qkv"))
                module = f"{tower}_model.encoder.layers.{l}.{module}"
                pair = tuned.learnables[tower][product]
                down, up = (tensors.pop(f"base_model.model.{module}.lora_{x}.weight") for x in "AB")
                np.testing.assert_array_equal(down, pair["down"][block, place].T)
                np.testing.assert_array_equal(up, pair["up"][block, place].T)
                modules.add(module)
    assert not tensors
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert set(config["target_modules"]) == modules
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": options.get("alpha", 1), "use_rslora": True}
    assert (settings | {"bias": "none", "base_model_name_or_path": clip.source}).items() <= config.items()
    back = read_peft(tmp_path / "out", clip, models.CLASS_NAMES)
    assert back.task.options() == tuned.task.options()
    jax.tree.map(np.testing.assert_array_equal, back.learnables, dict(tuned.learnables))


def test_plain_lora_is_scaled_by_its_rank(clip, tmp_path):
    export(tuned_lora(clip, tmp_path, rank=4, alpha=3.0), tmp_path / "out", form="peft")
    path = tmp_path / "out" / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": False}))
    back = read_peft(tmp_path / "out", clip, ("cat", "dog"), template="a {}")
    assert back.task.options()["alpha"] / 4**0.5 == pytest.approx(3 / 4)
    assert back.task.texts == ("a cat", "a dog")


@pytest.mark.parametrize("clip_scale", [False, True])
def test_cosines_are_scaled_as_in_training(clip, clip_scale, tmp_path):
    scaled = dataclasses.replace(clip, params={**clip.params, "logit_scale": np.float32(3.0)})
    export(tuned_lora(scaled, tmp_path, clip_scale=clip_scale), tmp_path / "out", form="peft")
    back = read_peft(tmp_path / "out", scaled, models.CLASS_NAMES)
    assert back.task.options()["clip_scale"] is clip_scale


@pytest.fixture(scope="module")
def exported(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PEFT's."""
    folder = tmp_path_factory.mktemp("peft")
    export(tuned_lora(clip, folder), folder / "out", form="peft")
    return folder / "out"


def test_a_folder_without_its_adapter(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "peft")
    assert read_adapter(tmp_path / "peft").method == "clip_lora"  # this project's own file lies there
    (tmp_path / "peft" / "adapter.safetensors").unlink()
    with pytest.raises(ClipbiasError, match=r"read it with clipbias\.export\.read_peft"):
        read_adapter(tmp_path / "peft")


DATA = Path(__file__).parents[1] / "data_files"


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", OPTIONS)
def test_peft_computes_the_same(name, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    import transformers

    base = DATA / "tiny_gelu"
    clip = clipbias.load(base)
    tuned = tuned_lora(clip, tmp_path, **OPTIONS[name])
    export(tuned, tmp_path / "out", form="peft")
    images = models.pictures(clip, 3)
    pixels = torch.tensor(np.asarray(clip.preprocessing.normalize(images)).transpose(0, 3, 1, 2))
    tokens = transformers.AutoTokenizer.from_pretrained(base)(
        [f"a photo of a {name.replace('_', ' ')}." for name in models.CLASS_NAMES], return_tensors="pt", padding=True
    )

    def logits(model: Any) -> np.ndarray:
        with torch.no_grad():
            output = model(**tokens, pixel_values=pixels)
        return 100 * (output.image_embeds @ output.text_embeds.T).numpy()

    plain = transformers.CLIPModel.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "out").eval()
    models.assert_close(logits(model), models.logits(tuned, images))

    # And what PEFT itself writes, plain LoRA with another scale.
    fresh = transformers.CLIPModel.from_pretrained(base)
    config = peft.LoraConfig(r=3, lora_alpha=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj", "out_proj"])
    tuned_there = peft.get_peft_model(fresh, config).eval()
    for key, value in tuned_there.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.1)
    shutil.rmtree(tmp_path / "out")
    tuned_there.save_pretrained(tmp_path / "out")
    back = read_peft(tmp_path / "out", clip, models.CLASS_NAMES)
    assert back.task.options()["parts"] == ("q", "v", "o")
    models.assert_close(models.logits(back, images), logits(tuned_there))
