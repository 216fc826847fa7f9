"""The catalogue's facts about a dataset."""

import dataclasses
from collections.abc import Callable, Mapping

from clipbias.constants import DEFAULT_TEMPLATE
from clipbias.data import class_names


@dataclasses.dataclass(frozen=True)
class TfdsBuilder:
    """The stock builder of tensorflow-datasets, and how its records map to the benchmark's files.

    Attributes:
      builder: Builder name, with its configuration.
      splits: The builder's split to the benchmark's.
      id_feature: The feature that identifies a record, or None.
      path: The benchmark's path, formed from `{id}`, `{label}` (label name) and `{split}` (the benchmark's split).
      version: The lowest version whose records carry the identifier.
      ignore_case: Whether paths match without regard to case.
      drop: Label names that the benchmark leaves out.
      may_lack: How many of the benchmark's images the builder may have left out as undecodable.
      difference: How the builder's splits differ from the benchmark's; empty if they do not.
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
class CatalogEntry:
    """One dataset.

    Attributes:
      name: The name in commands and `data.load`.
      title: Its name in papers' tables.
      folder: Folder below the data root; `other_folders` are names that forks use.
      images: Folder of the images below `folder`, "" for `folder` itself; paths in split files start here.
      layout: How splits and labels are found: "split file", "variant lists", "imagenet" (train and val folders of
        WordNet ids), "class folders" (WordNet ids, test only) or "numbered folders" (ImageNet labels, test only).
      split_file: The frozen split, for the layout "split file", and `split_url`, its address.
      template: The prompt.
      classes: Number of classes.
      sizes: Images per split, for the splits there are.
      class_name: A label name of the archive or of TFDS to the benchmark's class name.
      fetch: Further downloads: (place below `folder`, address).
      tfds: The stock builder, if any.
    """

    name: str
    title: str
    folder: str
    images: str
    classes: int
    sizes: Mapping[str, int]
    fetch: tuple[tuple[str, str], ...]
    layout: str = "split file"
    template: str = DEFAULT_TEMPLATE
    split_file: str | None = None
    split_url: str = ""
    other_folders: tuple[str, ...] = ()
    class_name: Callable[[str], str] = class_names.unchanged
    tfds: TfdsBuilder | None = None

    @property
    def folders(self) -> tuple[str, ...]:
        """All names that the folder may have."""
        return (self.folder, *self.other_folders)
