"""Rows of the table about pictures: however they are given, all functions see the same pixels."""

import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from PIL import Image

import clipbias
from clipbias import data
from clipbias.data.images import pictures as split_images
from clipbias.errors import ClipbiasError
from clipbias.tuning.method import crops_of
from tests.relations.cases import Case, clip_of
from tests.relations.table import (
    COUNT,
    LABELS,
    PICTURES,
    answer,
    close,
    evaluated,
    evaluation,
    logits,
    on_files,
    relation,
    same_accuracy,
)

# Forms of pictures, made of arrays and of their files.
DOORS: dict[str, Callable[[Sequence[np.ndarray], list[str]], Any]] = {
    "a tuple of arrays": lambda pictures, files: tuple(pictures),
    "an array of arrays": lambda pictures, files: _objects(pictures),
    "arrays of JAX": lambda pictures, files: [jnp.asarray(one) for one in pictures],
    "pictures of Pillow": lambda pictures, files: [Image.fromarray(one) for one in pictures],
    "names of files": lambda pictures, files: files,
    "paths": lambda pictures, files: [Path(file) for file in files],
    "an array of names": lambda pictures, files: np.array(files),
    "an array of paths": lambda pictures, files: _objects([Path(file) for file in files]),
    "a column of a table": lambda pictures, files: pd.Series(files),
    "a generator": lambda pictures, files: (one for one in pictures),
    "some of each": lambda pictures, files: [*files[:4], *map(Image.fromarray, pictures[4:8]), *pictures[8:]],
}
if importlib.util.find_spec("torch"):
    DOORS["tensors of torch"] = lambda pictures, files: [
        importlib.import_module("torch").from_numpy(one) for one in pictures
    ]
NO_PICTURES = r"[Tt]he (images|pictures) (are|is)|image \d+ (is|has)|give .*path|there are no images"


def _objects(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


for door, make in DOORS.items():

    @relation(f"Pictures as {door} are the same pictures.", over=(), few=1, refusals=(NO_PICTURES,))
    def _(case: Case, folder: Path, make: Any = make) -> None:
        def given() -> Any:
            return make(PICTURES, on_files(folder))

        close(case.model.clip.preprocess(given()), case.model.clip.preprocess(PICTURES))
        close(logits(case.model, given()), answer(case), case.tolerance)
        same_accuracy(evaluation(case.model, given()), evaluated(case))
        splits = ["train", "val", *["test"] * (COUNT - 2)]
        split = data.from_arrays(given(), LABELS, case.texts.classes, splits=splits).split("test")
        for number, picture in enumerate(PICTURES[2:]):
            np.testing.assert_array_equal(split.image(number), picture)


@relation("One array of pictures is its pictures, and one with channels first is refused.", over=(), few=1)
def _(case: Case, folder: Path) -> None:
    pictures = np.stack([picture[:8, :8] for picture in PICTURES])
    expected = logits(case.model, list(pictures))
    close(logits(case.model, pictures), expected, case.tolerance)
    close(logits(case.model, pictures[0]), expected[:1], case.tolerance)
    for wrong in (pictures.transpose(0, 3, 1, 2), pictures[0].transpose(2, 0, 1)):
        for ask in (case.model.predict, case.model.clip.preprocess):
            try:
                found = ask(wrong)
            except ClipbiasError:
                continue
            raise AssertionError(f"{list(wrong.shape)} is {len(found)} pictures")


@relation("Pictures that are changed after a dataset or a split was made of them change nothing in it.", over=(), few=1)
def _(case: Case, folder: Path) -> None:
    pictures: list[Any] = [picture.copy() for picture in PICTURES]
    pictures[:3] = [Image.fromarray(picture) for picture in pictures[:3]]
    labels = LABELS.copy()
    dataset = data.from_arrays(pictures, labels, case.texts.classes, splits=["train", *["test"] * (COUNT - 1)])
    before = dataset.split("test").identity
    labels[:] = 0
    for number, picture in enumerate(pictures):
        if isinstance(picture, Image.Image):
            picture.paste((0, 0, 0), (0, 0, *picture.size))
        else:
            picture[:] = 0
        pictures[number] = PICTURES[0]
    accuracy = case.model.evaluate(dataset, batch_size=7)
    np.testing.assert_array_equal(accuracy.predicted, evaluated(case).predicted[1:])
    np.testing.assert_array_equal(accuracy.labels, LABELS[1:])
    assert dataset.split("test").identity == before


# Modes of Pillow, by its own list.
OTHER_PIXELS = r"mode|colou?r|levels|bits|cannot be (decoded|converted|read)|uint8"


def of_mode(mode: str) -> Image.Image | None:
    """The first picture in a mode of Pillow; `None` where it makes none."""
    picture = Image.fromarray(np.kron(PICTURES[0], np.ones((2, 2, 1), np.uint8)))
    if mode == "LAB":
        from PIL import ImageCms

        space = ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(picture, ImageCms.createProfile("sRGB"), space, outputMode="LAB")
    for step in ((), ("L",), ("I",), ("RGBA",), ("LA",)):
        try:
            found = picture
            for between in step:
                found = found.convert(between)
            return found.convert(mode)
        except (ValueError, OSError):
            continue
    return None


for mode in [each for each in Image.MODES if of_mode(each) is not None]:

    @relation(
        f'A picture of mode "{mode}" has the same pixels for `predict`, `evaluate` and a dataset.',
        over=(),
        few=1,
        refusals=(OTHER_PIXELS,),
        applies=lambda case: not crops_of(case.kind),
    )
    def _(case: Case, folder: Path, mode: str = mode) -> None:
        picture, model = of_mode(mode), case.model
        dataset = data.from_arrays([picture], [0], case.texts.classes, splits=["train"])
        images = split_images(dataset.split("train"), [0], model.clip.preprocessing.resizing)
        expected = logits(model, images)
        for given in (picture, dataset.split("train").image(0)):
            close(logits(model, [given]), expected, case.tolerance)


def grey_files(folder: Path) -> dict[str, Path]:
    """A grey picture with 16 and 32 bits and in floating point, as files."""
    grey = np.asarray(Image.fromarray(PICTURES[0]).convert("L"))
    wide = grey.astype(np.uint16) * 257
    files = {name: folder / name for name in ("16.png", "16.pgm", "16.tiff", "32.tiff", "float.tiff")}
    Image.fromarray(grey).save(folder / "8.png")
    for name in ("16.png", "16.tiff"):
        Image.fromarray(wide).save(files[name])
    files["16.pgm"].write_bytes(b"P5 %d %d 65535\n" % grey.shape[::-1] + wide.astype(">u2").tobytes())
    Image.fromarray(wide.astype(np.int32)).save(files["32.tiff"])
    Image.fromarray(grey.astype(np.float32) / 255).save(files["float.tiff"])
    return files


for name in ("16.png", "16.pgm", "16.tiff", "32.tiff", "float.tiff"):

    @relation(f'A file "{name}" of grey levels is the picture in 8 bits.', over=(), few=1, refusals=(OTHER_PIXELS,))
    def _(case: Case, folder: Path, name: str = name) -> None:
        clip, file = case.model.clip, grey_files(folder)[name]
        expected = clip.preprocessing.levels(clip.preprocess(folder / "8.png")).astype(int)
        off = np.abs(clip.preprocessing.levels(clip.preprocess(file)) - expected).max()
        assert off <= 2, f"off by {off} levels"


def refused(ask: Callable[[], object]) -> str:
    """The sentence that refuses a call, or ""."""
    try:
        ask()
    except ClipbiasError as error:
        return str(error)
    return ""


# Names of classes that read alike.
ALIKE = {
    "a space behind": ("cat", "cat "),
    "two spaces": ("big bird", "big  bird"),
    "another normal form": ("café", "cafe\u0301"),
    "another case": ("cat", "Cat"),
    "an underscore": ("big bird", "big_bird"),
}
for what, names in ALIKE.items():

    @relation(f"Two classes that differ in {what} are refused by a task and by a dataset.", over=(), few=1)
    def _(case: Case, folder: Path, names: tuple[str, str] = names) -> None:
        clip = clip_of(case.family)
        assert refused(lambda: clipbias.Task(clip, "zero_shot", (*names, "golden dog"))), "a task takes them"
        labels = [names[number % 2] for number in range(COUNT)]
        dataset = None
        if not refused(lambda: data.from_arrays(PICTURES, labels)):
            dataset = data.from_arrays(PICTURES, labels)
        taken = dataset is not None and not refused(lambda: clipbias.Task(clip, "zero_shot", dataset))
        assert not taken, "a dataset takes them"


def folder_of(root: Path, kinds: dict[str, str]) -> Path:
    """The pictures of `table.py` in split folders: a folder per class, with metadata beside it, or at the root."""
    names = ("cat", "dog", "bird")
    listed: list[str] = []
    for split, kind in kinds.items():
        rows = []
        for number, (pixels, label) in enumerate(zip(PICTURES, LABELS, strict=True)):
            path = root / split / names[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            place = path.relative_to(root if kind == "at the root" else root / split)
            rows.append(json.dumps({"file_name": str(place), "label": names[label]}))
        if kind == "metadata":
            (root / split / "metadata.jsonl").write_text("\n".join(rows))
        listed += rows if kind == "at the root" else []
    if listed:
        (root / "metadata.jsonl").write_text("\n".join(listed))
    return root


@relation("A row with the label -1 is refused in CSV, in JSON lines and in metadata.", over=(), few=1)
def _(case: Case, folder: Path) -> None:
    Image.fromarray(PICTURES[0]).save(folder / "0.png")
    (folder / "list.csv").write_text("path,label\n0.png,-1\n")
    for name, column in (("list.jsonl", "path"), ("metadata.jsonl", "file_name")):
        (folder / name).write_text(json.dumps({column: "0.png", "label": -1}))
    for given in (folder / "list.csv", folder / "list.jsonl", folder):
        words = refused(lambda given=given: clipbias.fit(case.model.clip, "zero_shot", given))
        assert "has the label -1, which is no class; leave such rows out." in words, given


FOLDERS = "class folders"
for kinds in (("metadata", "metadata"), ("metadata", FOLDERS), (FOLDERS, "metadata"), ("at the root", "at the root")):

    @relation(
        f"A folder whose train/ has {kinds[0]} and whose test/ has {kinds[1]} is that folder with class folders.",
        over=(),
        few=1,
    )
    def _(case: Case, folder: Path, kinds: tuple[str, str] = kinds) -> None:
        made, expected = (
            data.load("folder", data_dir=folder_of(folder / name, {"train": train, "test": test}))
            for name, (train, test) in (("made", kinds), ("expected", (FOLDERS, FOLDERS)))
        )
        assert made.class_names == expected.class_names and made.splits.keys() == expected.splits.keys()
        for name, split in made.splits.items():
            other = expected.split(name)
            order = [split.keys.index(key) for key in other.keys]
            assert len(split) == len(other) and split.labels[order].tolist() == other.labels.tolist()
            for at, number in enumerate(order):
                np.testing.assert_array_equal(split.image(number), other.image(at))
