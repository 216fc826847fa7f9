"""What the catalogue says of a dataset."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

from clipbias.data import class_names


@dataclasses.dataclass(frozen=True)
class Tfds:
    """What the stock builder of tensorflow-datasets offers, and how its records map to the benchmark's files.

    Attributes:
      builder: Builder name, with its configuration.
      splits: The builder's split to the benchmark's.
      id_feature: The feature that identifies a record; None where there is none.
      path: The benchmark's path, formed from `{id}`, `{label}` (label name) and `{split}` (the benchmark's split).
      version: The lowest version whose records carry the identifier.
      ignore_case: Whether paths match without regard to case.
      drop: Label names that the benchmark leaves out.
      may_lack: How many of the benchmark's images the builder may have left out as undecodable.
      difference: What a reader of the builder's own splits must know.
    """

    builder: str
    splits: Mapping[str, str]
    id_feature: str | None = None
    path: str = "{id}"
    version: str = "0.0.0"
    ignore_case: bool = False
    drop: tuple[str, ...] = ()
    may_lack: int = 0
    difference: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One dataset.

    Attributes:
      name: What the user writes.
      title: Its name in papers' tables.
      folder: Folder below the data root; `other_folders` are names that forks use.
      images: Folder of the images below `folder`, "" for `folder` itself; paths in split files start here.
      layout: How splits and labels are found: "split file", "variant lists", "imagenet" (train and val folders of
        WordNet ids), "class folders" (WordNet ids, test only) or "numbered folders" (ImageNet labels, test only).
      split_file: The frozen split, for the layout "split file".
      template: The prompt.
      classes, train, val, test: Sizes; 0 where there is no such split.
      sizes_from: How the sizes are known: "counted", "derived" from the split rule, or "official" figures.
      class_name: A label name of the archive or of TFDS to the benchmark's class name.
      fetch: What to fetch: (place below `folder`, address).
      tfds: The stock builder, if any.
      golden: Seed to the first 16 hex digits of sha256 over the paths of the 16-shot training and the 4-shot
        validation picks, joined by newlines.
      note: What to know besides.
    """

    name: str
    title: str
    folder: str
    images: str
    layout: str
    template: str
    classes: int
    train: int
    val: int
    test: int
    sizes_from: str
    fetch: tuple[tuple[str, str], ...]
    split_file: str | None = None
    other_folders: tuple[str, ...] = ()
    class_name: Callable[[str], str] = class_names.unchanged
    tfds: Tfds | None = None
    golden: Mapping[int, tuple[str, str]] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    note: str = ""

    @property
    def sizes(self) -> dict[str, int]:
        """Images per split, for the splits there are."""
        return {key: count for key in ("train", "val", "test") if (count := getattr(self, key))}
