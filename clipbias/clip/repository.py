"""Where a model lies, and which files of its repository or folder are read."""

import dataclasses
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from clipbias.clip import hub
from clipbias.clip.tensors import shard_names, shards
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, shorten, user_path

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


# Small files that may belong to a model, taken where they are there.
COMPANIONS = (
    "added_tokens.json",
    "config.json",
    "merges.txt",
    "open_clip_config.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


@dataclasses.dataclass(frozen=True)
class Found:
    """A model's place.

    Attributes:
      path: its folder, or a single file of weights.
      name: what it is found by again from everywhere: "demo", a hub name, or a whole path.
      revision: the commit, of a model from the hub.
    """

    path: Path
    name: str
    revision: str | None = None


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

    @property
    def is_sharded(self) -> bool:
        """Whether the first file is an index, which names all others."""
        return self.files[0].endswith(".index.json")


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


def choose_in(folder: Path, names: Collection[str] | None = None) -> WeightFiles:
    """Chooses the weight file in a folder, as `choose` does, where `config.json` may be another library's.

    Beside open_clip's files lies a `config.json` of timm's in many repositories, with the weights of an image tower.

    Args:
      folder: holds the configurations.
      names: the names to choose from; by default those of the folder's files.

    Raises:
      ClipbiasError: as `choose`.
    """
    names = [path.name for path in folder.iterdir() if path.is_file()] if names is None else names
    chosen = choose(names, where=str(folder))
    if chosen.naming == "hugging_face":
        configuration = read_json(folder / chosen.configuration, dict, what="a CLIP configuration")
        if "model_type" not in configuration and not {"text_config", "vision_config"} & configuration.keys():
            if CONFIGURATION["open_clip"] in names:
                return choose(names, naming="open_clip", where=str(folder))
            kind = shorten(repr(configuration.get("architecture", "unnamed")))
            raise ClipbiasError(
                f"{folder / chosen.configuration} describes a {kind} model, another network; clipbias loads CLIP."
            )
    return chosen


def find(source: str | os.PathLike, *, check: Callable[[Path, WeightFiles], None] | None = None) -> Found:
    """Finds a model, and downloads it from the hub if it has to be.

    Args:
      source: "demo", a local folder or file, or a hub name such as "openai/clip-vit-base-patch16", optionally
        with "@revision" behind and "hf-hub:" before it.
      check: called before the weights of a hub model are downloaded, with the folder of its configuration; raises
        `ClipbiasError` for what is another network.

    Raises:
      ClipbiasError: there is nothing, or it cannot be downloaded (see `hub.fetch`).
    """
    if source == "demo":
        return Found(Path(str(resources.files("clipbias") / "assets" / "demo")), "demo")
    path = user_path(source)
    if path.exists():
        return Found(path, str(path.resolve()))
    name = hub.parse(str(source))
    if name is None:
        raise ClipbiasError(
            f"no folder {shorten(str(source))!r}; give a local folder, a file of weights, a hub name such as "
            "'openai/clip-vit-base-patch16', or 'demo'."
        )

    def wanted(names: Collection[str], folder: Path) -> Iterator[Sequence[str]]:
        choose(names, where=repr(str(name)))
        yield [file for file in COMPANIONS if file in names]
        chosen = choose_in(folder, names)
        if check is not None:
            check(folder, chosen)
        yield chosen.files[:1]
        if chosen.is_sharded:
            yield [file for file in shard_names(folder / chosen.files[0]) if file in names]

    folder, commit = hub.fetch(name, wanted, is_complete)
    return Found(folder, str(name), commit)


def is_complete(folder: Path) -> bool:
    """Whether a folder of the cache holds a whole model, so that nothing has to be asked of the hub."""
    try:
        chosen = choose_in(folder)
        if chosen.is_sharded:
            shards(folder / chosen.files[0])
    except ClipbiasError:
        return False
    # open_clip's own repositories may have none; Hugging Face's always do, and another program may have left it out.
    tokenizer = [(folder / name).is_file() for name in ("tokenizer.json", "vocab.json")]
    return any(tokenizer) or chosen.naming == "open_clip"
