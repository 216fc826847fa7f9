"""A labelled image set: class names, a prompt template and up to three splits of encoded images.

`Split` tells two image lists apart; `Descriptions` are texts of classes that replace the template.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from clipbias.checks import shown
from clipbias.data import transforms
from clipbias.data.catalog import name_in_prompt
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.identity import identity, no_effect, parts
from clipbias.io import read_json, shorten, user_path
from clipbias.terminal import printable


@dataclasses.dataclass(frozen=True)
class Descriptions:
    """Texts of each class.

    Attributes:
      texts: by class name; a task takes those of its own classes, whose `_` counts as a space.
      source: what messages call them.
    """

    texts: Mapping[str, Sequence[str]]
    source: str = "the descriptions"

    def __post_init__(self) -> None:
        """Raises `ClipbiasError` for what are not texts by class name."""
        if not isinstance(self.texts, Mapping):
            raise ClipbiasError(f"{self.source} are {shown(self.texts)}; give a list of texts for each class name.")
        for name, texts in self.texts.items():
            if not isinstance(name, str):
                raise ClipbiasError(f"{self.source} name a class {shown(name)}, which is not a text.")
            if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
                raise ClipbiasError(
                    f"{self.source} have {shown(texts)} for the class {shorten(name)!r}; give a list of texts."
                )
            if not texts or not all(text.strip() for text in texts):
                what = "an empty text" if texts else "no text"
                raise ClipbiasError(f"{self.source} have {what} for the class {shorten(name)!r}; write one.")
        # A copy: what its owner changes later changes no task that was made of it.
        object.__setattr__(self, "texts", {name: tuple(texts) for name, texts in self.texts.items()})

    def of(self, class_names: Sequence[str]) -> dict[str, list[str]]:
        """The texts of some classes, by their names. Raises `ClipbiasError` for a class without any."""
        known = {name_in_prompt(name): list(texts) for name, texts in self.texts.items()}
        for name in class_names:
            if name_in_prompt(name) not in known:
                raise ClipbiasError(f"{self.source} have no texts for the class {shorten(name)!r}; add some.")
        return {name: known[name_in_prompt(name)] for name in class_names}


def read_descriptions(path: str | os.PathLike) -> Descriptions:
    """Reads a JSON file of texts by class name. Raises `ClipbiasError` for a file that is not one."""
    texts = read_json(user_path(path), dict, what="a file of descriptions, texts by class name")
    return Descriptions(texts, source=f"the descriptions in {path}")


def as_descriptions(texts: Descriptions | Mapping[str, Sequence[str]] | None) -> Descriptions | None:
    """Descriptions from texts by class name, checked."""
    return texts if texts is None or isinstance(texts, Descriptions) else Descriptions(texts)


_LISTS = itertools.count(1)  # the lists of this process that have no source


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A labelled list of encoded images. Nothing is read before `read` is called.

    An image is its path, the source with the key: images of one path are the same image, in whatever list they are.

    Attributes:
      keys: A stable, readable name of each example (its relative path), unique within the split.
      labels: int32 [n], 0-based.
      read: Example index to encoded image bytes; raises `UnreadableImage`.
      source: Where the keys are: a resolved folder, or a dataset with its version. By default a name that only this
        list and its subsets have, since nothing tells whether another list has the same images.
      upright: Whether images are turned as their EXIF orientation says: a user's own are, those of the benchmark stay
        as its authors read them.
      class_names: What its labels number, where it is of a dataset.
      contents: Paths to values that differ where images differ, such as the sizes of files; `None` reads the images.
    """

    keys: Sequence[str]
    labels: np.ndarray
    read: Callable[[int], bytes] = dataclasses.field(metadata=no_effect("what it reads is what `contents` tells"))
    source: str = dataclasses.field(
        default_factory=lambda: f"list {next(_LISTS)}",
        metadata=no_effect("data that are moved, or mounted elsewhere, are the same data"),
    )
    upright: bool = False
    class_names: tuple[str, ...] | None = dataclasses.field(
        default=None, metadata=no_effect("the classes of a task count by themselves")
    )
    contents: Callable[[Sequence[str]], Sequence[int | str]] | None = dataclasses.field(
        default=None, metadata=no_effect("its answer counts, which `identity` asks for each time")
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))
        object.__setattr__(self, "labels", np.array(self.labels, dtype=np.int32).reshape(-1))
        self.labels.flags.writeable = False
        if len(self.keys) != len(self.labels):
            raise ValueError(f"{len(self.keys)} keys but {len(self.labels)} labels")
        if len(set(self.keys)) < len(self.keys):
            twice = collections.Counter(self.keys).most_common(1)[0][0]
            raise ClipbiasError(f"the image {twice} is listed twice in one split; list it once.")

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {len(np.unique(self.labels))} classes)"

    def path(self, index: int) -> str:
        """What image `index` is called in messages, and known by in memory."""
        return os.path.join(self.source, self.keys[index])

    @property
    def paths(self) -> list[str]:
        """Of every image."""
        return [os.path.join(self.source, key) for key in self.keys]

    def image(self, index: int) -> transforms.Picture:
        """Image `index` for `predict`, which makes the pixels of it that `evaluate` makes. Raises `UnreadableImage`.

        It is uint8 RGB `[h, w, 3]`. With transparency, a palette or ink it is a Pillow image, since the model's
        preprocessing says how that becomes RGB.
        """
        picture = self.decode(self.read(index), index)
        return np.asarray(transforms.as_rgb(picture)) if transforms.is_plain(picture) else picture

    def decode(self, encoded: bytes, index: int) -> Image.Image:
        """The file `encoded` of image `index` as a Pillow image in its own mode. Raises `UnreadableImage`."""
        return transforms.decode_picture(encoded, self.path(index), upright=self.upright)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Split":
        """The examples at `indices`, in that order."""
        numbers = np.asarray(indices, dtype=np.int64).reshape(-1).tolist()
        keys = [self.keys[number] for number in numbers]
        read = self.read
        return dataclasses.replace(
            self, keys=keys, labels=self.labels[numbers], read=lambda index: read(numbers[index])
        )

    def without(self, other: "Split") -> "Split":
        """The examples that are not among those of `other`."""
        others = set(other.paths)
        rest = [index for index, path in enumerate(self.paths) if path not in others]
        return self if len(rest) == len(self) else self.subset(rest)

    @functools.cached_property
    def _parts(self) -> dict[str, str]:
        return parts(self)

    @functools.cached_property
    def digest(self) -> str:
        """Tells this list from others while the process lives: names, labels and orientation, and the place."""
        return identity([self._parts, self.source])

    @property
    def identity(self) -> str:
        """Tells this list from others wherever it lies: names, labels, orientation, and contents as they are now."""
        return identity([self._parts, self.marks()])

    def marks(self) -> list[int | str]:
        """What `contents` tells of the images now; without it the SHA-256 of each, empty for one that is unreadable."""
        if self.contents is not None:
            return list(self.contents(self.paths))
        return [self.content(index) for index in range(len(self))]

    def content(self, index: int) -> str:
        """SHA-256 of the bytes of image `index`; empty where they cannot be read."""
        try:
            return hashlib.sha256(self.read(index)).hexdigest()
        except UnreadableImage:
            return ""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Splits that share one list of classes.

    Attributes:
      name: The name it was loaded by: "eurosat", "folder", "demo/digits".
      class_names: The name of each label, C of them. Names may repeat (ImageNet has two "missile");
        underscores are kept, a prompt replaces them by spaces.
      splits: "train", "val", "test"; a set made for evaluation only has "test" alone.
      class_ids: A second identifier of each class, such as ImageNet's WordNet ids; empty without one.
      descriptions: Texts of each class that replace the template, or `None`.
    """

    name: str
    class_names: tuple[str, ...]
    template: str
    splits: Mapping[str, Split]
    class_ids: tuple[str, ...] = ()
    descriptions: Descriptions | None = None

    def __post_init__(self) -> None:
        check_template(self.template)
        for label, name in enumerate(self.class_names):
            if not isinstance(name, str) or not is_unicode(name):
                raise ClipbiasError(f"{self.name}: class {label} is called {name!r}, which is not a text; correct it.")
        check_told_apart({name: f"class {label}" for label, name in enumerate(self.class_names)}, self.name)
        for split_name, split in self.splits.items():
            beyond = np.flatnonzero((split.labels < 0) | (split.labels >= len(self.class_names)))
            if beyond.size:
                raise ClipbiasError(
                    f"{self.name}: {split.keys[beyond[0]]} in {split_name} has label "
                    f"{split.labels[beyond[0]]}, but there are {len(self.class_names)} classes; "
                    f"labels start at 0 and leave no gaps."
                )
        # A split that is taken out still says what its labels number.
        named = {
            name: split
            if split.class_names == self.class_names
            else dataclasses.replace(split, class_names=self.class_names)
            for name, split in self.splits.items()
        }
        object.__setattr__(self, "splits", named)

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
            subset = split.subset(np.flatnonzero(renumbered[split.labels] >= 0))
            splits[name] = dataclasses.replace(subset, labels=renumbered[subset.labels])
        class_names = tuple(self.class_names[label] for label in labels)
        class_ids = tuple(self.class_ids[label] for label in labels) if self.class_ids else ()
        return dataclasses.replace(self, class_names=class_names, class_ids=class_ids, splits=splits)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can write it: JSON can hold half a surrogate pair, and a file name any bytes."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def check_told_apart(places: Mapping[str, str], what: str) -> None:
    """Raises `ClipbiasError` for two class names of `what` that read as one text; `places` says where each name is.

    A model reads names that differ in white space, case or Unicode's normal form alone as the same text, so that it
    would never predict one of the two classes.
    """
    by_text: dict[str, str] = {}
    for name in places:
        text = " ".join(name_in_prompt(unicodedata.normalize("NFC", name)).casefold().split())
        other = by_text.setdefault(text, name)
        if other != name:
            # Two normal forms look the same on a screen.
            write = ascii if len({unicodedata.normalize("NFC", each) for each in (other, name)}) == 1 else repr
            raise ClipbiasError(
                f"{what}: the class names {write(other)} ({places[other]}) and {write(name)} ({places[name]}) read as "
                "the same text; write them alike if they are one class, else rename one."
            )


def check_template(template: str) -> None:
    """Raises `ClipbiasError` unless `template` has exactly one `{}`, the place of the class name."""
    if not isinstance(template, str) or [template.count(place) for place in ("{}", "{", "}")] != [1, 1, 1]:
        raise ClipbiasError(
            f"the template {template!r} must hold exactly one {{}} for the class name, as 'a photo of a {{}}.' does."
        )
