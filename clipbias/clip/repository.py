"""Which files of a CLIP repository, or of a folder in the same layout, are read."""

import dataclasses
import re
from collections.abc import Collection
from typing import Literal

from clipbias.errors import ClipbiasError
from clipbias.files import shorten

Format = Literal["safetensors", "flax", "torch"]
Naming = Literal["hugging_face", "open_clip"]

CONFIGURATION: dict[Naming, str] = {"hugging_face": "config.json", "open_clip": "open_clip_config.json"}

# In the order of preference: the first that lies there is read, and no other.
WEIGHTS: list[tuple[Naming, Format, str]] = [
    ("hugging_face", "safetensors", "model.safetensors"),
    ("hugging_face", "flax", "flax_model.msgpack"),
    ("hugging_face", "torch", "pytorch_model.bin"),
    ("open_clip", "safetensors", "open_clip_model.safetensors"),
    ("open_clip", "safetensors", "open_clip_pytorch_model.safetensors"),
    ("open_clip", "torch", "open_clip_pytorch_model.bin"),
]


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The files from which a model's weights are read.

    Attributes:
      format: how tensors are written: "safetensors", "flax" (msgpack) or "torch" (a pickle in a zip archive).
      naming: whose names the tensors have.
      files: the one weight file, or the index of a sharded one followed by its shards, as far as these have the usual
        names; the index has the last word.
      configuration: the file with the model's geometry.
    """

    format: Format
    naming: Naming
    files: tuple[str, ...]
    configuration: str


def choose(
    names: Collection[str], *, naming: Naming | None = None, where: str = "the model's repository"
) -> WeightFiles:
    """Chooses the weight file of a model from the names of all files that lie beside it.

    Hugging Face names come before open_clip's, safetensors before msgpack, msgpack before torch's `.bin`; of one
    format, the single file comes before shards. A weight file counts where the configuration of its naming is there.

    Args:
      names: file names, relative to the folder or repository.
      naming: considers only weights of this naming.
      where: the folder or repository, for messages.

    Raises:
      ClipbiasError: no weight file that clipbias reads is there, or none with its configuration.
    """
    present = set(names)
    alone = []
    for its_naming, its_format, name in WEIGHTS:
        files = _with_shards(name, present)
        if not files or naming not in (None, its_naming):
            continue
        configuration = CONFIGURATION[its_naming]
        if configuration in present:
            return WeightFiles(its_format, its_naming, files, configuration)
        alone.append((files[0], configuration))
    if alone:
        weights, configuration = alone[0]
        raise ClipbiasError(f"{where} has {weights} but no {configuration}, which describes the model; fetch it too.")
    wanted = ", ".join(name for its_naming, _, name in WEIGHTS if naming in (None, its_naming))
    listed = shorten(", ".join(sorted(present)), 200) or "nothing"
    raise ClipbiasError(f"{where} holds no CLIP weights that clipbias reads ({wanted}); it holds {listed}.")


def _with_shards(name: str, present: set[str]) -> tuple[str, ...]:
    if name in present:
        return (name,)
    index = f"{name}.index.json"
    if index not in present:
        return ()
    stem, _, suffix = name.rpartition(".")
    shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+\.{suffix}")
    return (index, *sorted(other for other in present if shard.fullmatch(other)))
