"""open_clip's configurations, and files without any."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clipbias
from clipbias.clip import checkpoint, tables
from clipbias.errors import ClipbiasError
from tests import torch_files

FORMATS = Path(__file__).parents[1] / "data_files" / "formats"
WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FORMATS / "open_clip", tmp_path / "model"))


def change(folder: Path, edit: Callable[[dict], object]) -> None:
    content = json.loads((folder / CONFIG).read_text())
    edit(content)
    (folder / CONFIG).write_text(json.dumps(content))


def rewrite(folder: Path, edit: Callable[[dict], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_what_a_configuration_says(folder):
    def edit(content: dict) -> None:
        content["model_cfg"]["vision_cfg"] |= {
            "norm_kwargs": {"eps": 1e-6},
            "patch_dropout": 0.5,
            "image_size": [16, 16],
        }
        content["model_cfg"]["quick_gelu"] = False
        content["preprocess_cfg"] = {"mean": [0.5, 0.5, 0.25], "std": [0.5, 0.25, 0.5]}

    change(folder, edit)
    clip = clipbias.load(folder)
    assert clip.config.vision.activation == clip.config.text.activation == "gelu"
    assert clip.config.vision.layer_norm_epsilon == 1e-6 and clip.config.text.layer_norm_epsilon == 1e-5
    assert (clip.preprocessing.mean, clip.preprocessing.std) == ((0.5, 0.5, 0.25), (0.5, 0.25, 0.5))
    assert clip.config.text.eos_token_id == clip.tokenizer.eos_token_id
    assert clipbias.load(folder, activation="quick_gelu").config.text.activation == "quick_gelu"


@pytest.mark.parametrize(
    ("name", "setting", "activation"),
    [
        ("/cache/hub/models--apple--DFN2B-CLIP-ViT-B-16/snapshots/0", None, "quick_gelu"),
        ("apple/DFN2B-CLIP-ViT-B-16", False, "gelu"),
        ("/data/pineapple/DFN2B-CLIP-ViT-B-16", None, "gelu"),
        ("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", None, "gelu"),
    ],
)
def test_an_activation_that_is_left_out(folder, monkeypatch, name, setting, activation):
    change(folder, lambda content: content["model_cfg"].pop("quick_gelu", None))
    if setting is not None:
        change(folder, lambda content: content["model_cfg"].update(quick_gelu=setting))
    location = checkpoint.ModelLocation(folder, name, "0" * 40)
    monkeypatch.setattr(checkpoint, "find", lambda source: location)
    assert clipbias.load(name).config.vision.activation == activation


def test_names_of_a_text_tower_of_its_own_and_a_scale_in_a_list(folder):
    whole = clipbias.load(folder)

    def edit(tensors: dict) -> None:
        for name in [name for name in tensors if not name.startswith("visual.") and name != "logit_scale"]:
            tensors[f"text.{name}"] = tensors.pop(name)
        tensors["logit_scale"] = tensors["logit_scale"].reshape(1)

    rewrite(folder, edit)
    assert clipbias.load(folder).fingerprint == whole.fingerprint


def test_a_type_that_numpy_lacks(folder):
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    first, last = header["ln_final.bias"]["data_offsets"]
    header["ln_final.bias"] |= {"dtype": "F8_E4M3", "shape": [last - first]}
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(ClipbiasError, match=r"wrong type: ln_final\.bias is F8_E4M3"):
        clipbias.load(folder)


def bare(folder: Path, name: str = "epoch_1.pt", **more: np.ndarray) -> Path:
    """The model's tensors alone in a file, with its tokenizer beside it."""
    torch_files.save(folder / name, load_file(folder / WEIGHTS) | more)
    (folder / WEIGHTS).unlink()
    return folder / name


def test_a_training_checkpoint_is_described_by_what_lies_beside_it(folder):
    whole = clipbias.load(folder)
    path = bare(folder)
    assert clipbias.load(path).fingerprint == whole.fingerprint
    (folder / CONFIG).unlink()
    with pytest.raises(ClipbiasError, match=r"does not name its model.s activation"):
        clipbias.load(path)
    clip = clipbias.load(path, activation="quick_gelu")
    assert (clip.fingerprint, clip.config, clip.name) == (whole.fingerprint, whole.config, str(path.resolve()))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ClipbiasError, match="has no tokenizer"):
        clipbias.load(path, activation="gelu")
    assert clipbias.load(path, activation="gelu", tokenizer=FORMATS / "open_clip").config.text.activation == "gelu"


def test_wide_towers_need_a_configuration(folder):
    """Their heads are 80 wide or more, which no shape tells: numbers would be wrong without a word."""
    path = bare(folder, **{"visual.conv1.weight": np.zeros((1280, 3, 4, 4), np.float16)})
    (folder / CONFIG).unlink()
    with pytest.raises(ClipbiasError, match="whose number of heads is not in the shapes"):
        clipbias.load(path, activation="gelu")


def test_openais_own_file_has_quick_gelu(folder):
    change(folder, lambda content: content["model_cfg"].update(quick_gelu=False))  # of another model in that folder
    path = bare(folder, **{name: np.asarray(1, np.int64) for name in tables.OPENAI_BUFFERS})
    assert clipbias.load(path).config.vision.activation == "quick_gelu"


@pytest.mark.parametrize(("format", "file"), [("torch", "pytorch_model.bin"), ("flax", "flax_model.msgpack")])
def test_hugging_face_names_in_a_file(tmp_path, format, file):
    path = Path(shutil.copytree(FORMATS / format, tmp_path / "m")) / file
    whole = clipbias.load(path)
    path.with_name("config.json").unlink()
    clip = clipbias.load(path, activation="quick_gelu")
    assert (clip.fingerprint, clip.config) == (whole.fingerprint, whole.config)


def test_what_is_saved_is_what_open_clip_wrote(tmp_path):
    clipbias.load(FORMATS / "open_clip").save(tmp_path, format="open_clip")
    written, saved = (load_file(folder / WEIGHTS) for folder in (FORMATS / "open_clip", tmp_path))
    assert saved.keys() == written.keys()
    for name, value in written.items():
        np.testing.assert_array_equal(saved[name], value.reshape(saved[name].shape), err_msg=name)
