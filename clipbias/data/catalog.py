"""The catalogue of datasets. To add a dataset, add an entry to `assets/datasets.toml` and its name to docs/datasets.md.

Its first fifteen are the CoOp benchmark: splits, templates and class names of Zhou et al. 2022 (arXiv 2109.01134).
"""

import dataclasses
import importlib.resources
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from clipbias.checks import check_choice
from clipbias.constants import DEFAULT_TEMPLATE
from clipbias.errors import ClipbiasError

_CALTECH101 = {"airplanes": "airplane", "faces": "face", "leopards": "leopard", "motorbikes": "motorbike"}


def imagenet(label: str) -> str:
    """Looks up a WordNet id: "n01440764" to "tench"."""
    names = imagenet_classes()
    # A folder that is no class would shift all labels behind it.
    if label not in names:
        raise ClipbiasError(f"{label!r} is not one of ImageNet's 1000 WordNet ids; remove that folder or label.")
    return names[label]


_CLASS_NAMES: dict[str, Callable[[str], str]] = {
    # Plural folders, some with capitals: "Faces" is "face".
    "caltech101": lambda label: _CALTECH101.get(label.lower(), label),
    "imagenet": imagenet,
    "oxford_flowers": lambda label: label.rstrip("?"),  # TFDS writes one name with a question mark
    "oxford_pets": str.lower,
    # The year comes first: "Audi TTS Coupe 2012" is "2012 Audi TTS Coupe".
    "stanford_cars": lambda label: " ".join(label.rsplit(" ", 1)[::-1]),
    # Without the folder of the first letter, and reversed: "/a/apse/indoor" is "indoor apse".
    "sun397": lambda label: " ".join(label.strip("/").split("/")[:0:-1]),
    # Camel case: "ApplyEyeMakeup" is "Apply_Eye_Makeup".
    "ucf101": lambda label: "_".join(re.findall(r"[A-Z][^A-Z]*", label)),
}


def imagenet_classes() -> dict[str, str]:
    """Returns WordNet id to class name of ImageNet's 1000 classes, in label order; CLIP's names, some of them twice."""
    text = importlib.resources.files("clipbias").joinpath("assets", "imagenet_classes.txt").read_text("utf-8")
    return parse_classes(text, "imagenet_classes.txt")


def parse_classes(text: str, place: str) -> dict[str, str]:
    """Reads the lines `<WordNet id> <name>` of a `classnames.txt`."""
    names = {}
    for number, line in enumerate(text.splitlines(), start=1):
        identifier, _, name = line.strip().partition(" ")
        if not name:
            raise ClipbiasError(f"{place}, line {number}: expected '<WordNet id> <class name>', found {line!r}.")
        names[identifier] = name.strip()
    return names


def name_in_prompt(name: str, spaces: str = "_") -> str:
    """Formats a class name for a prompt: `spaces` become spaces. Raises `ClipbiasError` if it is no string."""
    if not isinstance(name, str):
        raise ClipbiasError(f"the class name {name!r} is not a string; write it in quotes.")
    return name.translate({ord(character): " " for character in spaces})


@dataclasses.dataclass(frozen=True)
class TfdsBuilder:
    """A builder of tensorflow-datasets, and how its records become the benchmark's; see `assets/datasets.toml`."""

    builder: str
    splits: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"train": "train", "validation": "val", "test": "test"}
    )
    id_feature: str = "file_name"
    path: str = "{id}"
    version: str = "0.0.0"
    ignore_case: bool = False
    drop: Sequence[str] = ()
    may_lack: int = 0
    difference: str = ""


@dataclasses.dataclass(frozen=True)
class CatalogEntry:
    """A dataset of the benchmark; `assets/datasets.toml` explains the fields."""

    name: str
    title: str
    group: str
    folder: str
    classes: int
    sizes: Mapping[str, int]
    fetch: Mapping[str, str]
    image_folder: str = "images"
    layout: str = "split file"
    template: str = DEFAULT_TEMPLATE
    split_file: str | None = None
    split_url: str = ""
    other_folders: Sequence[str] = ()
    picks: Sequence[Sequence[str]] = ()
    class_name: Callable[[str], str] = str
    tfds: TfdsBuilder | None = None

    @property
    def folders(self) -> tuple[str, ...]:
        """All possible names of the folder."""
        return (self.folder, *self.other_folders)


ELEVEN_DATASETS, IMAGENET_VARIANTS, OTHER = DATASET_GROUPS = ("eleven", "imagenet variants", "other")


def _read(name: str, fields: dict[str, Any]) -> CatalogEntry:
    renamed = fields.pop("renamed", {})  # labels to class names
    check_choice(f"the group of {name} in datasets.toml", fields.get("group"), DATASET_GROUPS)
    # Class names are the benchmark's: accuracies depend on the words of a prompt.
    function = fields.pop("class_name", None)
    class_name = _CLASS_NAMES[function] if function else lambda label: renamed.get(label, label)
    builder = TfdsBuilder(**fields.pop("tfds")) if "tfds" in fields else None
    return CatalogEntry(name, **fields, class_name=class_name, tfds=builder)


# Read at import, since names and defaults of settings come from it; it is a small file.
_DATASETS = importlib.resources.files("clipbias").joinpath("assets", "datasets.toml").read_text("utf-8")
ENTRIES: Mapping[str, CatalogEntry] = MappingProxyType(
    {name: _read(name, fields) for name, fields in tomllib.loads(_DATASETS).items()}
)
# The names of both comparisons, in the order of the literature's tables.
ELEVEN = tuple(name for name, entry in ENTRIES.items() if entry.group == ELEVEN_DATASETS)
VARIANTS = tuple(name for name, entry in ENTRIES.items() if entry.group == IMAGENET_VARIANTS)
