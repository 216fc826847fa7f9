"""A labelled image set: class names, a prompt template and up to three splits of encoded images."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.data import transforms
from clipbias.data.keys import Keys
from clipbias.errors import ClipbiasError
from clipbias.terminal import printable

TEMPLATE = "a photo of a {}."  # where a dataset has none of its own


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A labelled list of encoded images. Nothing is read before `read` is called.

    Attributes:
      keys: A stable, readable name of each example (its relative path), unique within the split; of any sequence of
        texts a `Keys` is made.
      labels: int32 [n], 0-based.
      read: Example index to encoded image bytes; raises `ClipbiasError` naming the file.
      stamp: Example index to what changes when the example does, as text, and when it changed last, in seconds since
        the epoch; `None` where nothing tells.
      path: Example index to the image's file, where it has one of its own.
      chosen_from: What `origin` tells, where this was chosen from another split, and `read` as it was then.
    """

    keys: Sequence[str]
    labels: np.ndarray
    read: Callable[[int], bytes]
    stamp: Callable[[int], tuple[str, float]] | None = None
    path: Callable[[int], Path] | None = None
    chosen_from: "tuple[Split, np.ndarray, Callable[[int], bytes]] | None" = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        keys = Keys.of(self.keys)
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int32).reshape(-1))
        self.labels.flags.writeable = False
        if len(keys) != len(self.labels):
            raise ValueError(f"{len(keys)} keys but {len(self.labels)} labels")
        if (twice := keys.repeated()) is not None:
            raise ClipbiasError(f"the image {twice} is listed twice in one split; list it once.")

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {len(np.unique(self.labels))} classes)"

    def picture(self, index: int) -> np.ndarray:
        """Image `index` as uint8 RGB `[h, w, 3]`. Raises `ClipbiasError` naming an unreadable file."""
        return transforms.decode(self.read(index), self.keys[index])

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Split":
        """The examples at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        base, places = self.origin()
        places = places[chosen]
        stamp, path = base.stamp, base.path

        def read(index: int) -> bytes:
            return base.read(int(places[index]))

        return Split(
            keys=Keys.of(self.keys).take(chosen),
            labels=self.labels[chosen],
            read=read,
            stamp=None if stamp is None else lambda index: stamp(int(places[index])),
            path=path and (lambda index: path(int(places[index]))),
            chosen_from=(base, places, read),
        )

    def origin(self) -> "tuple[Split, np.ndarray]":
        """The split that this one was chosen from, through others if need be, and where each example stands there.

        The latter is int64 [n]. A split that was chosen from none is its own.
        """
        if self.chosen_from is None or self.chosen_from[2] is not self.read:  # replaced: other images
            return self, np.arange(len(self))
        return self.chosen_from[:2]

    @property
    def digest(self) -> str:
        import hashlib

        found = hashlib.sha256("\n".join(self.keys).encode())
        found.update(np.ascontiguousarray(self.labels).tobytes())
        return found.hexdigest()[:12]

    def digests(self) -> tuple[np.ndarray, np.ndarray]:
        """SHA-256 of the images that this process has read for it, uint8 [n, 32], and which these are, bool [n]."""
        if "_digests" not in self.__dict__:
            self.__dict__["_digests"] = np.zeros((len(self), 32), np.uint8), np.zeros(len(self), bool)
        return self.__dict__["_digests"]


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

    def __repr__(self) -> str:
        splits = ", ".join(f"{len(split)} {name}" for name, split in self.splits.items())
        names = ", ".join(map(printable, self.class_names[:3])) + (", …" if len(self.class_names) > 3 else "")
        return f"Dataset({self.name!r}: {len(self.class_names)} classes ({names}); {splits} images)"

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
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


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
