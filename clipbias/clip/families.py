"""The families of models: the names of their configuration and weights, and the functions that read them.

A further family needs a reader of its configuration, in `describe`, and a table of its tensors' names in `tables`.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from clipbias.checks import shown
from clipbias.clip import open_clip
from clipbias.clip.config import MODELS, ClipConfig, from_hugging_face, other_network
from clipbias.clip.preprocess import Preprocessing, read_preprocessor
from clipbias.clip.tokenizer import import_transformers
from clipbias.errors import ClipbiasError
from clipbias.io import check_file, read_json, shorten

# Files of weights that need no configuration: their owners' own, and where they have none of those below.
NATIVE = re.compile(r"PE-Core-(?!G)\w+-\d+\.pt|clip_cn_vit\S*\.pt")
# Geometry, preprocessing, and whether the file says which activation the model has.
Description = tuple[ClipConfig, Preprocessing, bool]


class Family(NamedTuple):
    """One way in which models lie on the hub and in folders.

    Weights are in the order of preference; each file may also be in shards with an index.
    """

    configuration: str
    weights: tuple[str, ...]


HUGGING_FACE = Family("config.json", ("model.safetensors", "flax_model.msgpack", "pytorch_model.bin"))
OPEN_CLIP = Family(
    "open_clip_config.json",
    ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
)
FAMILIES = (HUGGING_FACE, OPEN_CLIP)


def _refusal(path: Path) -> ClipbiasError | None:
    """Of a `config.json` that is none of `MODELS`: other libraries use that name, too."""
    if path.name != HUGGING_FACE.configuration:
        return None
    raw = read_json(path, dict, what="a CLIP configuration")
    classes = raw.get("architectures")
    own_code = classes[0] if isinstance(classes, list) and classes and "auto_map" in raw else None
    if own_code is not None:  # a network of its publisher's, whatever family it names
        return other_network(str(path), f"code of its own, {shown(own_code)}")
    if raw.get("model_type") in [*MODELS]:
        return None
    if "model_type" not in raw and {"text_config", "vision_config"} & raw.keys():
        return None
    key = "architecture" if "model_type" not in raw and "architecture" in raw else "model_type"  # timm's, or none
    return other_network(str(path), f"{key} {shown(raw.get(key))}")


def describe(path: Path) -> Description:
    """Reads a configuration of any family. Raises `ClipbiasError` if it is damaged, or describes another network."""
    check_file(path)
    if path.name == OPEN_CLIP.configuration:  # its reader knows the other networks
        return open_clip.read_config(path)
    if refusal := _refusal(path):
        raise refusal
    raw = read_json(path, dict, what="a CLIP configuration")
    try:
        kind = MODELS[raw.get("model_type", "clip")].removesuffix("Model")
        if kind == "Siglip":  # its texts' ends lie outside the vocabulary by default, and nothing reads them
            raw["text_config"] = {**(raw.get("text_config") or {}), "bos_token_id": None, "eos_token_id": None}
        config = from_hugging_face(getattr(import_transformers(), f"{kind}Config")(**raw))
    except ClipbiasError as error:
        raise ClipbiasError(f"{path}: {error}") from error
    except Exception as error:  # whatever the configuration library raises on content of another kind
        reason = shorten(" ".join(str(error).split()), 300)
        raise ClipbiasError(f"{path} is not a configuration of a model ({reason}); fetch it again.") from error
    return config, read_preprocessor(path.parent, config), True


def choose(folder: Path, names: Collection[str] | None = None, *, where: str = "") -> tuple[str, str | None]:
    """Chooses the weights and the configuration of a model from `names`, by default those of the folder's files.

    Hugging Face's names come before open_clip's, safetensors before msgpack, msgpack before torch's `.bin`; of one
    format, the single file comes before shards. Weights count where the configuration of their family is there.

    Returns the file of weights, or the index of its shards, and the configuration, `None` for a file that needs none.
    Raises `ClipbiasError` if there are no weights that clipbias reads, or they are another network's.
    """
    where = where or str(folder)
    if names is None:
        names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    complaints: list[ClipbiasError] = []
    for family in FAMILIES:
        candidates = [file for name in family.weights for file in (name, f"{name}.index.json") if file in names]
        if not candidates:
            continue
        if family.configuration not in names:
            missing = f"{where} has {candidates[0]} but no {family.configuration}; fetch that too."
            complaints.append(ClipbiasError(missing))
        elif refusal := _refusal(folder / family.configuration):
            complaints.append(refusal)
        else:
            return candidates[0], family.configuration
    native = sorted(filter(NATIVE.fullmatch, names))
    if len(native) == 1:
        return native[0], None
    if complaints:
        raise complaints[0]
    readable = ", ".join(name for family in FAMILIES for name in family.weights)
    listed = shorten(", ".join(sorted(names)), 200) or "nothing"
    raise ClipbiasError(f"{where} holds no CLIP weights that clipbias reads ({readable}); it holds {listed}.")
