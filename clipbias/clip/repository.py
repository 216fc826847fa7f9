"""Where a model lies: in this package, a folder, a file, or a repository of the hub, of which a part is fetched."""

import dataclasses
import os
from importlib import resources
from pathlib import Path

from clipbias.clip import families, hub
from clipbias.clip.tensors import shard_names
from clipbias.errors import ClipbiasError
from clipbias.io import shorten, user_path

# Small files that may belong to a model, taken where they are there.
SMALL = (
    *(family.configuration for family in families.FAMILIES),
    *("added_tokens.json", "merges.txt", "preprocessor_config.json", "special_tokens_map.json", "tokenizer.json"),
    *("tokenizer_config.json", "vocab.json", "spiece.model"),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """A model's place.

    Attributes:
      path: its folder, or a single file of weights.
      name: what it is found by again from everywhere: of `EMBEDDED`, a hub name, or a whole path.
      revision: the commit, of a model from the hub.
    """

    path: Path
    name: str
    revision: str | None = None


EMBEDDED = ("demo", "demo-siglip")  # folders of `assets`: a small CLIP, and a SigLIP trained on the same pictures


def find(source: str | os.PathLike) -> Found:
    """Finds a model, and downloads it from the hub if it has to be.

    Args:
      source: one of `EMBEDDED`, a local folder or file, a hub name such as "openai/clip-vit-base-patch16", optionally
        with "@revision" behind and "hf-hub:" before it, or a name of OpenAI's such as "ViT-B/16".

    Raises:
      ClipbiasError: there is nothing, it is another network, or it cannot be downloaded.
    """
    if source in EMBEDDED:
        return Found(Path(str(resources.files("clipbias") / "assets" / source)), str(source))
    path = user_path(source)
    if path.exists():
        return Found(path, str(path.resolve()))
    name = hub.parse(str(source))
    if name is None:
        raise ClipbiasError(
            f"no folder {shorten(str(source))!r}; give a local folder, a file of weights, a hub name such as "
            "'openai/clip-vit-base-patch16', or 'demo'."
        )
    folder = _download(name)
    return Found(folder, str(name), folder.name)


def _download(name: hub.HubName) -> Path:
    folder = hub.download_small(name, SMALL)
    try:
        weights, _ = families.choose(folder)  # there already
    except ClipbiasError:
        names = hub.list_files(name, folder.name)
        weights, configuration = families.choose(folder, names, where=repr(str(name)))
        families.describe(folder / configuration)  # another network is refused before its weights are fetched
        hub.download(name, weights, folder.name)
    if weights.endswith(".index.json"):
        for shard in shard_names(folder / weights):
            hub.download(name, shard, folder.name)
    return folder
