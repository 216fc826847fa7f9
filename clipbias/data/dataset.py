"""Labelled image sets: `Dataset` (class names, template, splits), `Split` (list of images), `Descriptions` (texts)."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

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
    """Texts by class name (`_` equals a space), which replace a template; a task uses those of its classes."""

    texts: Mapping[str, Sequence[str]]
    source: str = "the descriptions"  # in messages

    def __post_init__(self) -> None:
        """Raises `ClipbiasError` unless `texts` are lists of texts by class name."""
        if not isinstance(self.texts, Mapping):
            raise ClipbiasError(f"{self.source} are {shown(self.texts)}; give a list of texts for each class name.")
        read: dict[str, tuple[str, ...]] = {}
        for name, texts in self.texts.items():
            if not isinstance(name, str):
                raise ClipbiasError(f"{self.source} name a class {shown(name)}, which is not a string.")
            if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
                raise ClipbiasError(f"{self.source} have {shown(texts)} for the class {shorten(name)!r}; give a list.")
            if not texts or not all(text.strip() for text in texts):
                flaw = "an empty text" if texts else "no text"
                raise ClipbiasError(f"{self.source} have {flaw} for the class {shorten(name)!r}; write one.")
            if name_in_prompt(name) in read:
                raise ClipbiasError(f"{self.source} name the class {shorten(name)!r} twice; join its texts.")
            read[name_in_prompt(name)] = tuple(texts)
        # A copy, since tasks count on it: the caller may change the mapping later.
        object.__setattr__(self, "texts", read)

    def of(self, class_names: Sequence[str]) -> dict[str, list[str]]:
        """Returns the texts of some classes, by name. Raises `ClipbiasError` for a class without texts."""
        for name in class_names:
            if name_in_prompt(name) not in self.texts:
                raise ClipbiasError(f"{self.source} have no texts for the class {shorten(name)!r}; add some.")
        return {name: list(self.texts[name_in_prompt(name)]) for name in class_names}


def read_descriptions(path: str | os.PathLike) -> Descriptions:
    """Reads a JSON file of texts by class name. Raises `ClipbiasError` for another file."""
    texts = read_json(user_path(path), dict, what="a file of descriptions, texts by class name")
    return Descriptions(texts, source=f"the descriptions in {path}")


def as_descriptions(given: Descriptions | Mapping[str, Sequence[str]] | None) -> Descriptions | None:
    """Converts texts by class name to `Descriptions`."""
    return given if given is None or isinstance(given, Descriptions) else Descriptions(given)


_LISTS = itertools.count(1)  # numbers the lists without a source


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A labelled list of encoded images, which are read when they are used.

    A path, `source` with a key, identifies an image: equal paths in two lists are the same image.

    Attributes:
      keys: stable, readable names (relative paths), unique within the split.
      labels: int32 `[n]`, from 0 on.
      read: returns the encoded bytes of an image by its index; raises `UnreadableImage`.
      source: a resolved folder, or a dataset with its version. Default: a name that only this list and its subsets
        have, so that no other list is taken for it.
      upright: whether images are turned by their EXIF orientation: a user's are, the benchmark's are not, since its
        authors did not.
      class_names: names of the labels, in a dataset.
      contents: maps paths to values that differ if images differ, such as sizes of files. Default: SHA-256 of bytes.
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
    contents: Callable[[Sequence[str]], Iterable[int | str]] | None = dataclasses.field(
        default=None, metadata=no_effect("its answer counts, which `identity` asks for each time")
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))
        object.__setattr__(self, "labels", np.array(self.labels, dtype=np.int32).reshape(-1))
        self.labels.flags.writeable = False
        if len(self.keys) != len(self.labels):
            raise ValueError(f"{len(self.keys)} keys but {len(self.labels)} labels")
        # Keys identify images, in caches and in lists without copies.
        if len(set(self.keys)) < len(self.keys):
            twice = collections.Counter(self.keys).most_common(1)[0][0]
            raise ClipbiasError(f"the image {twice} is listed twice in one split; list it once.")

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {len(np.unique(self.labels))} classes)"

    def path(self, index: int) -> str:
        """Returns the path of image `index`, for messages and as a key in memory."""
        return os.path.join(self.source, self.keys[index])

    @property
    def paths(self) -> list[str]:
        return [os.path.join(self.source, key) for key in self.keys]

    def image(self, index: int) -> transforms.Picture:
        """Returns image `index`, uint8 RGB `[h, w, 3]`, or in other modes a Pillow image. Raises `UnreadableImage`."""
        picture = self.decode(self.read(index), index)
        # Transparency, palettes and ink become RGB in the model's preprocessing, since libraries differ in it: only so
        # do `predict` and `evaluate` see the same pixels.
        return np.asarray(transforms.as_rgb(picture)) if transforms.is_plain(picture) else picture

    def decode(self, encoded: bytes, index: int) -> Image.Image:
        """Decodes the bytes of image `index` to a Pillow image in its mode. Raises `UnreadableImage`."""
        return transforms.decode_picture(encoded, self.path(index), upright=self.upright)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Split":
        """Returns the images at `indices`, in this order. Raises `ClipbiasError` where there is none of a number."""
        asked = np.asarray(indices).reshape(-1)
        if not _are_numbers_below(asked, len(self)):
            raise ClipbiasError(f"images have the numbers 0 to {len(self) - 1}, but the subset is of {shown(indices)}.")
        # Python's integers, since some readers refuse NumPy's.
        numbers = asked.astype(int).tolist()
        keys = [self.keys[number] for number in numbers]
        read = self.read
        return dataclasses.replace(
            self, keys=keys, labels=self.labels[numbers], read=lambda index: read(numbers[index])
        )

    def without(self, other: "Split") -> "Split":
        """Returns the images that are not in `other`, by path."""
        # By path, not by key: two folders may have files of the same names.
        others = set(other.paths)
        rest = [index for index, path in enumerate(self.paths) if path not in others]
        return self if len(rest) == len(self) else self.subset(rest)

    @functools.cached_property
    def _parts(self) -> dict[str, str]:
        return parts(self)

    @functools.cached_property
    def digest(self) -> str:
        """Hash of names, labels, orientation and source: identifies the list within a process, without reading it."""
        # Within a process the source tells lists apart, and costs no look at the files.
        return identity([self._parts, self.source])

    @property
    def identity(self) -> str:
        """Hash of names, labels, orientation and current contents: identifies the list wherever it lies."""
        # Never cached: files may change while the process lives.
        return identity([self._parts, self.marks()])

    def marks(self) -> list[int | str]:
        """Returns the current value of `contents` for all images, else their SHA-256."""
        if self.contents is not None:
            return list(self.contents(self.paths))
        return [self.content(index) for index in range(len(self))]

    def content(self, index: int) -> str:
        """Computes the SHA-256 of image `index`; empty for an unreadable image."""
        try:
            return hashlib.sha256(self.read(index)).hexdigest()
        except UnreadableImage:
            return ""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Splits that share one list of classes.

    Attributes:
      name: the name for `data.load`: "eurosat", "folder", "demo/digits".
      class_names: names of the `C` labels. Names may repeat (ImageNet has two "missile"); underscores stay here, and
        become spaces in a prompt.
      splits: "train", "val", "test"; a set for evaluation only has "test" alone.
      class_ids: second identifiers of the classes, such as ImageNet's WordNet ids, or empty.
      descriptions: texts of the classes that replace the template, or `None`.
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
                raise ClipbiasError(f"{self.name}: the name {name!r} of class {label} is no Unicode text; correct it.")
        check_told_apart({name: f"class {label}" for label, name in enumerate(self.class_names)}, self.name)
        for split_name, split in self.splits.items():
            if (beyond := np.flatnonzero((split.labels < 0) | (split.labels >= len(self.class_names)))).size:
                raise ClipbiasError(
                    f"{self.name}: {split.keys[beyond[0]]} in {split_name} has label "
                    f"{split.labels[beyond[0]]}, but there are {len(self.class_names)} classes; "
                    f"labels start at 0 and leave no gaps."
                )
        # A split that is used without its dataset still needs the names of its labels.
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
        """Returns a split by name. Raises `ClipbiasError` if there is no such split."""
        if name not in self.splits:
            raise ClipbiasError(f"{self.name} has no {name} images; it has {', '.join(sorted(self.splits))}.")
        return self.splits[name]

    def with_classes(self, kept: Sequence[int]) -> "Dataset":
        """Returns the dataset with only the classes `kept`, by label, renumbered from 0 in this order.

        Raises `ClipbiasError` where there is no class of a label, and for no class or one twice.
        """
        asked, count = np.asarray(kept).reshape(-1), len(self.class_names)
        if not len(asked) or not _are_numbers_below(asked, count) or len(np.unique(asked)) < len(asked):
            raise ClipbiasError(f"classes have the labels 0 to {count - 1}, each once, but {shown(kept)} is given.")
        # -1 marks the classes that are left out, whose images go below.
        renumbered = np.full(count, -1, np.int32)
        renumbered[list(kept)] = np.arange(len(kept))
        splits = {}
        for name, split in self.splits.items():
            subset = split.subset(np.flatnonzero(renumbered[split.labels] >= 0))
            splits[name] = dataclasses.replace(subset, labels=renumbered[subset.labels])
        class_names = tuple(self.class_names[label] for label in kept)
        class_ids = tuple(self.class_ids[label] for label in kept) if self.class_ids else ()
        return dataclasses.replace(self, class_names=class_names, class_ids=class_ids, splits=splits)


def _are_numbers_below(asked: np.ndarray, count: int) -> bool:
    # NumPy would read a mask as the numbers 0 and 1, cut fractions off, and count -1 from the end.
    return not len(asked) or (asked.dtype.kind in "iu" and asked.min() >= 0 and asked.max() < count)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can write a string."""
    # JSON may hold half a surrogate pair, and a file name any bytes.
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def check_told_apart(places: Mapping[str, str], owner: str) -> None:
    """Raises `ClipbiasError` for names (keys of `places`) that differ in space, case or Unicode's normal form alone."""
    # The tokenizer gives such names the same ids, so that the model could never predict one of the classes.
    by_text: dict[str, str] = {}
    for name in places:
        prompt_text = " ".join(name_in_prompt(unicodedata.normalize("NFC", name)).casefold().split())
        if (other := by_text.setdefault(prompt_text, name)) != name:
            # Two normal forms look the same on a screen.
            write = ascii if len({unicodedata.normalize("NFC", each) for each in (other, name)}) == 1 else repr
            raise ClipbiasError(
                f"{owner}: the class names {write(other)} ({places[other]}) and {write(name)} ({places[name]}) read as "
                "the same text; write them alike if they are one class, else rename one."
            )


def check_template(template: str) -> None:
    """Raises `ClipbiasError` unless `template` has exactly one `{}`, for the class name."""
    if not isinstance(template, str) or [template.count(place) for place in ("{}", "{", "}")] != [1, 1, 1]:
        raise ClipbiasError(
            f"the template {template!r} must hold exactly one {{}} for the class name, as 'a photo of a {{}}.' does."
        )
