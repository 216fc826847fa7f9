"""The benchmark's datasets in CoOp's folder layout: images, their order and their labels."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from clipbias.checks import check_int
from clipbias.data import catalog, files
from clipbias.data.catalog import CatalogEntry
from clipbias.data.dataset import Dataset
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, read_text

# Paths of a split's images below the image folder, and labels, int32.
SplitListing = tuple[Sequence[str], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetListing:
    """Classes and splits of a dataset, in the benchmark's order; `class_ids` are WordNet ids or empty."""

    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    splits: Mapping[str, SplitListing]


def load(entry: CatalogEntry, data_dir: str | os.PathLike | None, *, template: str | None = None) -> Dataset:
    """Opens a dataset of the catalogue. Default template: the benchmark's.

    `data_dir` is the root of the dataset's folder, or that folder. Raises `ClipbiasError` for missing or damaged files.
    """
    # Lists are read, and no image.
    root = find_root(entry, data_dir)
    images = root / entry.image_folder
    if entry.split_file is not None:
        hint = how_to_fetch(entry, split_alone=True)
        listing = read_split_file(root / entry.split_file, hint=hint, split_names=tuple(entry.sizes))
    elif entry.layout == "variant lists":
        # FGVC-Aircraft has lists of its own, which the benchmark uses.
        listing = read_variant_lists(entry, root)
    else:
        _present(images, entry)
        listing = from_class_folders(
            entry,
            imagenet_names(root),
            lambda folder: files.sub_folders(_present(images / folder, entry)),
            lambda part, folders: (names for names, _ in files.image_files_in_each(images / part, folders)),
            str(images),
        )
    # ImageNet's val is also its test: one `Split` for both, so that its million paths are checked and hashed once.
    opened = {
        key: files.split_of_files(images, paths, labels, listed_in=entry.split_file or "")
        for key, (paths, labels) in {id(each): each for each in listing.splits.values()}.items()
    }
    splits = {name: opened[id(each)] for name, each in listing.splits.items()}
    template = entry.template if template is None else template
    return Dataset(entry.name, listing.class_names, template, splits, listing.class_ids)


def find_root(entry: CatalogEntry, data_dir: str | os.PathLike | None) -> Path:
    """Finds the dataset's folder. Raises `ClipbiasError` with the expected place and the downloads."""
    root = files.existing_folder(data_dir, needed_for=f"dataset {entry.name}")
    if (folder := dataset_folder(entry, root)) is not None:
        return folder
    # Users also give the dataset's folder itself. Its name must fit, since several datasets have a folder "images".
    marks = [mark for mark in (entry.split_file, entry.image_folder, "variants.txt") if mark]
    if any((root / mark).exists() for mark in marks) and (root.name == entry.name or root.name in entry.folders):
        return root
    raise ClipbiasError(f"{entry.name}: there is no folder {root / entry.folder}; {how_to_fetch(entry)}")


def dataset_folder(entry: CatalogEntry, root: Path) -> Path | None:
    """Returns the dataset's folder below `root`, the first of its names that exists, or `None`."""
    return next((root / name for name in entry.folders if (root / name).is_dir()), None)


def how_to_fetch(entry: CatalogEntry, *, split_alone: bool = False) -> str:
    """Returns a clause with the files to download and their addresses: all of a dataset, or its split file alone."""
    downloads = {} if split_alone else dict(entry.fetch)
    if entry.split_file:
        downloads[entry.split_file] = entry.split_url
    return f"put into {entry.folder}/: {'; '.join(f'{place} from {url}' for place, url in downloads.items())}."


def imagenet_names(root: Path) -> dict[str, str]:
    """Returns WordNet id to class name in label order, from the dataset's `classnames.txt`, else CLIP's names."""
    path = root / "classnames.txt"
    return catalog.parse_classes(read_text(path), str(path)) if path.exists() else catalog.imagenet_classes()


def read_split_file(path: Path, *, hint: str, split_names: Sequence[str] = ("train", "val", "test")) -> DatasetListing:
    """Reads `split_zhou_*.json`: {"train": [[path, label, class name], ...], "val": ..., "test": ...}."""
    if not path.exists():
        raise ClipbiasError(f"there is no split file {path}; {hint}")
    content = read_json(path)
    splits: dict[str, SplitListing] = {}
    titles: dict[int, str] = {}
    try:
        for split_name in split_names:
            paths, labels = [], []
            for image, label, name in content[split_name]:
                if not isinstance(image, str) or not isinstance(name, str):
                    raise TypeError("a path or a name is no string")
                paths.append(files.check_relative(image, listed_in=str(path)))
                labels.append(check_int(f"{path}: the label of {image}", label))
                # A file that was edited by hand may rename a class half-way, and every later table would mix two
                # classes.
                if titles.setdefault(label, name) != name:
                    raise ClipbiasError(f"{path}: label {label} is called both {titles[label]!r} and {name!r}.")
            splits[split_name] = (tuple(paths), np.asarray(labels, np.int32))
    except ClipbiasError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ClipbiasError(
            f"{path} is not a split file: expected {', '.join(split_names)} lists of [path, label, class name]; "
            f"fetch it again ({hint})"
        ) from error
    if not titles:
        raise ClipbiasError(f"{path} lists no image; fetch it again ({hint})")
    # Without gaps, a label is the index of a class name.
    if (missing := next((label for label in range(len(titles)) if label not in titles), None)) is not None:
        raise ClipbiasError(f"{path}: label {missing} has no image, but label {max(titles)} has; labels leave a gap.")
    return DatasetListing(tuple(titles[label] for label in range(len(titles))), (), splits)


def read_variant_lists(entry: CatalogEntry, root: Path) -> DatasetListing:
    """Reads FGVC-Aircraft's `variants.txt` and its three lists of `<image id> <variant>`."""
    names = tuple(_lines(root / "variants.txt", entry))
    # The order of the list is the numbering of the benchmark; a sort would give other labels.
    labels_of = {name: label for label, name in enumerate(names)}
    splits: dict[str, SplitListing] = {}
    for split_name in ("train", "val", "test"):
        path = root / f"images_variant_{split_name}.txt"
        paths, labels = [], []
        for line in _lines(path, entry):
            image, _, name = line.partition(" ")
            if name not in labels_of:
                raise ClipbiasError(f"{path} names the variant {name!r}, which variants.txt has not.")
            paths.append(files.check_relative(f"{image}.jpg", listed_in=str(path)))
            labels.append(labels_of[name])
        splits[split_name] = (tuple(paths), np.asarray(labels, np.int32))
    return DatasetListing(names, (), splits)


def from_class_folders(
    entry: CatalogEntry,
    name_of_label: Mapping[str, str],
    folders_in: Callable[[str], Sequence[str]],
    images_in: Callable[[str, Sequence[str]], Iterable[Sequence[str]]],
    place: str,
) -> DatasetListing:
    """Lists ImageNet or a variant from folders of WordNet ids or, for V2, of label numbers.

    `name_of_label` has class names by WordNet id, in label order. `folders_in` lists the folders in a folder, of a disk
    or of an archive's index; `images_in` the sorted images of several folders in it. `place` is for messages.
    """
    parts = {"train": "train/", "val": "val/"} if entry.layout == "imagenet" else {"test": ""}
    ids = tuple(name_of_label)
    is_numbered = entry.layout == "numbered folders"
    if not is_numbered:
        ids = tuple(sorted(folders_in(parts.get("train", ""))))
        unknown = [identifier for identifier in ids if identifier not in name_of_label]
        if not ids or unknown:
            example = unknown[0] if unknown else "no folder"
            raise ClipbiasError(
                f"{entry.name}: {place} should hold folders named by WordNet ids such as n01440764, found {example}."
            )
    # ImageNet-V2 names its folders by label, other variants by WordNet id.
    labels_of = {str(label) if is_numbered else identifier: label for label, identifier in enumerate(ids)}
    splits: dict[str, SplitListing] = {}
    for split_name, prefix in parts.items():
        # Numbers in numeric order: a string sort would put 10 before 2.
        folders = sorted(folders_in(prefix), key=lambda name: (len(name), name) if name.isdigit() else (0, name))
        for folder in folders:
            if folder not in labels_of:
                raise ClipbiasError(f"{entry.name}: the folder {prefix}{folder} in {place} belongs to no class.")
        images_by_folder = list(images_in(prefix, folders))
        keys = [
            f"{prefix}{folder}/{image}"
            for folder, images in zip(folders, images_by_folder, strict=True)
            for image in images
        ]
        if not keys:
            raise ClipbiasError(f"{entry.name}: {place}/{prefix} has no image in class folders; {how_to_fetch(entry)}")
        folder_labels = np.asarray([labels_of[folder] for folder in folders], np.int32)
        splits[split_name] = (keys, np.repeat(folder_labels, [len(images) for images in images_by_folder]))
    if entry.layout == "imagenet":
        # ImageNet's test labels were never published, so the literature tests on its validation images.
        splits["test"] = splits["val"]
    return DatasetListing(tuple(name_of_label[identifier] for identifier in ids), ids, splits)


def _lines(path: Path, entry: CatalogEntry) -> list[str]:
    return list(filter(None, map(str.strip, read_text(_present(path, entry)).splitlines())))


def _present(path: Path, entry: CatalogEntry) -> Path:
    """Returns `path`, a list or a folder, if it exists. Raises `ClipbiasError` with its download."""
    is_list = path.suffix == ".txt"
    if not (path.is_file() if is_list else path.is_dir()):
        missing = "file" if is_list else "folder"
        raise ClipbiasError(f"{entry.name}: there is no {missing} {path}; {how_to_fetch(entry)}")
    return path
