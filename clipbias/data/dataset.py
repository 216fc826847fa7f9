"""A labelled image set: class names, a prompt template and up to three splits of encoded images."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.errors import ClipbiasError

TEMPLATE = "a photo of a {}."  # where a dataset has none of its own


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A labelled list of encoded images. Nothing is read before `read` is called.

    Attributes:
      keys: A stable, readable name of each example (its relative path), unique within the split.
      labels: int32 [n], 0-based.
      read: Example index to encoded image bytes; raises `ClipbiasError` naming the file.
      stamp: Example index to what changes when the example does, as text, and when it changed last, in seconds since
        the epoch; `None` where nothing tells.
      path: Example index to the image's file, where it has one of its own.
    """

    keys: tuple[str, ...]
    labels: np.ndarray
    read: Callable[[int], bytes]
    stamp: Callable[[int], tuple[str, float]] | None = None
    path: Callable[[int], Path] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int32).reshape(-1))
        self.labels.flags.writeable = False
        if len(self.keys) != len(self.labels):
            raise ValueError(f"{len(self.keys)} keys but {len(self.labels)} labels")
        if len(set(self.keys)) != len(self.keys):
            twice = next(key for key, count in Counter(self.keys).items() if count > 1)
            raise ClipbiasError(f"the image {twice} is listed twice in one split; list it once.")

    def __len__(self) -> int:
        return len(self.keys)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Split":
        """The examples at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        read, stamp, path = self.read, self.stamp, self.path
        return Split(
            keys=tuple(self.keys[index] for index in chosen),
            labels=self.labels[chosen],
            read=lambda index: read(int(chosen[index])),
            stamp=None if stamp is None else lambda index: stamp(int(chosen[index])),
            path=path and (lambda index: path(int(chosen[index]))),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Splits that share one list of classes.

    Attributes:
      name: What the user asked for: "eurosat", "folder", "demo/digits".
      class_names: The name of each label, C of them. Names may repeat (ImageNet has two "missile");
        underscores are kept, a prompt replaces them by spaces.
      template: The prompt with one `{}` for the class name.
      splits: "train", "val", "test"; a set made for evaluation only has "test" alone.
      class_ids: What identifies each class beside its name, such as ImageNet's WordNet ids; empty where nothing does.
      descriptions: Texts by class name in place of the template (`tuning.Descriptions`), or `None`.
    """

    name: str
    class_names: tuple[str, ...]
    template: str
    splits: Mapping[str, Split]
    class_ids: tuple[str, ...] = ()
    descriptions: Any = None

    def __post_init__(self) -> None:
        check_template(self.template)
        for label, name in enumerate(self.class_names):
            if not isinstance(name, str) or not is_unicode(name):
                raise ClipbiasError(f"{self.name}: class {label} is called {name!r}, which is not a text; correct it.")
        for split_name, split in self.splits.items():
            beyond = np.flatnonzero((split.labels < 0) | (split.labels >= len(self.class_names)))
            if beyond.size:
                raise ClipbiasError(
                    f"{self.name}: {split.keys[beyond[0]]} in {split_name} has label "
                    f"{split.labels[beyond[0]]}, but there are {len(self.class_names)} classes; "
                    f"labels start at 0 and leave no gaps."
                )

    def split(self, name: str) -> Split:
        """The split called `name`. Raises `ClipbiasError` where this dataset has none."""
        if name not in self.splits:
            raise ClipbiasError(f"{self.name} has no {name} images; it has {', '.join(sorted(self.splits))}.")
        return self.splits[name]

    def with_classes(self, labels: Sequence[int]) -> "Dataset":
        """The same dataset with only the classes `labels`, renumbered from 0 in the given order."""
        renumbered = np.full(len(self.class_names), -1, np.int32)
        renumbered[list(labels)] = np.arange(len(labels))
        splits = {}
        for name, split in self.splits.items():
            kept = np.flatnonzero(renumbered[split.labels] >= 0)
            subset = split.subset(kept)
            splits[name] = dataclasses.replace(subset, labels=renumbered[subset.labels])
        class_names, class_ids = (
            tuple(names[label] for label in labels) if names else () for names in (self.class_names, self.class_ids)
        )
        return dataclasses.replace(self, class_names=class_names, class_ids=class_ids, splits=splits)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can write it: JSON can hold half a surrogate pair, and a file name any bytes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def check_template(template: str) -> None:
    """Raises `ClipbiasError` unless `template` has exactly one `{}`, the place of the class name."""
    if (
        not isinstance(template, str)
        or template.count("{}") != 1
        or template.count("{") != 1
        or template.count("}") != 1
    ):
        raise ClipbiasError(
            f"the template {template!r} must hold exactly one {{}} for the class name, as 'a photo of a {{}}.' does."
        )
