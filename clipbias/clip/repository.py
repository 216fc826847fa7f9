"""Locates a model: in this package, in a folder or file, or on the hub, from which the needed files are downloaded."""

import dataclasses
import os
from importlib import resources
from pathlib import Path

from clipbias.clip import families, hub
from clipbias.clip.preprocess_files import FILES as PREPROCESSING_FILES
from clipbias.clip.tensors import shard_names
from clipbias.clip.tokenizer_files import FILES as TOKENIZER_FILES
from clipbias.errors import ClipbiasError
from clipbias.io import shorten, user_path

# Small files of a model, downloaded if the repository has them.
CONFIGURATIONS = tuple(family.configuration for family in families.FAMILIES)
SMALL = (*CONFIGURATIONS, *PREPROCESSING_FILES, *TOKENIZER_FILES)


@dataclasses.dataclass(frozen=True)
class ModelLocation:
    """Where a model's files lie.

    Attributes:
      path: its folder, or a single file of weights.
      name: a name that locates it from any working folder: one of `EMBEDDED`, a hub name, or an absolute path.
      revision: the commit, if the model is from the hub.
    """

    path: Path
    name: str
    revision: str | None = None


EMBEDDED = ("demo", "demo-siglip")  # folders of `assets`: a small CLIP, and a SigLIP trained on the same pictures


def find(source: str | os.PathLike) -> ModelLocation:
    """Locates a model, and downloads its files if it is on the hub.

    Args:
      source: one of `EMBEDDED`, a local folder or file, a hub name such as "openai/clip-vit-base-patch16", optionally
        with "@revision" behind and "hf-hub:" before it, or a name of OpenAI's such as "ViT-B/16".

    Raises:
      ClipbiasError: there is no such model, it is another network, or it cannot be downloaded.
    """
    if source in EMBEDDED:
        return ModelLocation(Path(str(resources.files("clipbias") / "assets" / source)), str(source))
    path = user_path(source)
    if path.exists():
        return ModelLocation(path, str(path.resolve()))
    name = hub.parse(str(source))
    if name is None:
        raise ClipbiasError(
            f"no folder {shorten(str(source))!r}; give a local folder, a file of weights, a hub name such as "
            "'openai/clip-vit-base-patch16', or 'demo'."
        )
    folder = _download(name)
    return ModelLocation(folder, str(name), folder.name)


def _download(name: hub.HubName) -> Path:
    folder = hub.download_small(name, SMALL)
    try:
        weights, _ = families.choose(folder)  # there already
    except ClipbiasError:
        names = hub.list_files(name, folder.name)
        weights, configuration = families.choose(folder, names, where=repr(str(name)))
        if configuration is not None:
            families.describe(folder / configuration)  # another network is refused before its weights are fetched
        hub.download(name, weights, folder.name)
    if weights.endswith(".index.json"):
        for shard in shard_names(folder / weights):
            hub.download(name, shard, folder.name)
    return folder
