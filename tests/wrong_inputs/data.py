"""Wrong names, folders, tables, split files, records, protocols and pictures."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from clipbias import data
from clipbias.data import catalog, demo, pipeline, protocols, transforms
from clipbias.data.dataset import Dataset, Split
from clipbias.data.held_out import hold_out_a_shot
from clipbias.data.sources import open_images
from clipbias.data.transforms import Resizing
from clipbias.data.user_images import image_list
from tests.data import miniatures
from tests.data.pictures import encoded, picture, write
from tests.wrong_inputs.place import Case, Place, case, pure


def load(name: str, inside: str = "", **options: Any) -> Callable[[Path], Any]:
    """Loads a dataset from a place in the folder."""
    return lambda folder: data.load(name, data_dir=folder / inside, **options)


@case
def made(place: Place, call: Callable[[Path], Any], files: Mapping[str, Any] = {}) -> None:
    """Files are miniatures (a dataset's name and `...`), removed (`...`), images (`None`), folders, texts or bytes."""
    for name, content in files.items():
        path = place.tmp_path / name
        if content is ... and name in catalog.ENTRIES:
            miniatures.make(place.tmp_path, name)
        elif content is ...:
            path.unlink()
        elif content is None:
            write(path)
        elif name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    call(place.tmp_path)


def classes(words: str, *images: str) -> Case:
    return made(words, load("folder"), dict.fromkeys(images))


def table(words: str, content: str | bytes, name: str = "a.csv", **options: Any) -> Case:
    return made(words, load("csv", name, **options), {name: content})


def metadata(words: str, *images: str, root: str = "", **by_folder: str) -> Case:
    """Images, and a `metadata.jsonl` in the folder or in split folders of it."""
    tables = {f"{name}/metadata.jsonl": content for name, content in by_folder.items()}
    tables |= {"metadata.jsonl": root} if root else {}
    return made(words, load("folder"), tables | {name: None if name.endswith(".png") else "" for name in images})


def row(file_name: str, **more: Any) -> str:
    """A line of `metadata.jsonl`."""
    return json.dumps({"file_name": file_name, "label": "cat"} | more) + "\n"


TRAINED = row("0.png")


def benchmark(words: str, name: str, path: str = "", content: Any = "", **options: Any) -> Case:
    """A miniature with another file in it."""
    return made(words, load(name, **options), {name: ..., **({f"{name}/{path}": content} if path else {})})


def split_file(words: str, **more: list[Any]) -> Case:
    """EuroSAT whose split file has more entries."""
    content = miniatures.split_content("eurosat")
    for part, item in more.items():
        content[part].append(item)
    return benchmark(words, "eurosat", SPLIT_FILE, json.dumps(content))


def plan(words: str, protocol: str, name: str, *targets: str) -> Case:
    """A protocol on miniatures."""
    options: dict[str, Any] = dict(shots=1, targets=targets) if targets else {}
    call = lambda folder: protocols.make_protocol(protocol, name, lambda name: load(name)(folder), **options)  # noqa: E731
    return made(words, call, dict.fromkeys((name, *targets), ...))


def split(*keys: str, labels: tuple[int, ...] = (0, 0)) -> Split:
    return Split(keys, labels[: len(keys)], lambda index: b"")


SINGLE = Dataset("s", ("a",), "{}", {"train": split("a", "b"), "test": split("c")})
SPLIT_FILE = "split_zhou_EuroSAT.json"
PIXELS = picture(0, 8, 8)
FRAME = pandas.DataFrame({"path": ["x.png"], "label": ["a"]})
JPEG = encoded(picture(0, 64, 64), "JPEG")
FIRST = miniatures.split_content("eurosat")["train"][0]
CASES: list[Case] = [
    made("no dataset 'eurosta'; did you mean eurosat", load("eurosta")),
    pure(r"demo/flowers.*demo/digits", demo.load, "demo/flowers"),
    benchmark("dataset dtd takes no option 'shots'", "dtd", shots=4),
    # A folder of class folders.
    made("no folder .*nowhere", load("folder", "nowhere")),
    classes("no sub-folder"),
    made("empty has no image", load("folder"), {"empty/": "", "cat/0.png": None}),
    classes("class folder 'cat', which the train folder has not", "test/cat/0.png", "train/dog/0.png"),
    classes("test has 1 picture, but neither class folders nor", "train/cat/0.png", "train/dog/0.png", "test/0.png"),
    classes("has train/ and training/, which both hold train images", "train/cat/0.png", "training/cat/1.png"),
    classes("in dog/ beside train/, .*; move them into train/dog/", "train/cat/0.png", "dog/0.png"),
    classes("has test but no train folder; add one", "cat/0.png", "dog/0.png", "test/cat/1.png"),
    classes(r"'big cat' .*/big cat. and 'big_cat' .*/big_cat. read as the same text", "big_cat/0.png", "big cat/0.png"),
    # Tables.
    table("line 1: not valid JSON", '{"path": "x.png", "label"\n', "a.jsonl"),
    table("not UTF-8", b"\xff\xfe", "a.jsonl"),
    table(r"line 2, lists the path '\.\./x\.png'", "path,label\n../x.png,a\n"),
    table("no value for 'path'; the columns are image, label", "image,label\nx.png,a\n"),
    table("line 2: no value for 'label'", "path,label\nx.png,\n"),
    table("some images have a split and some have none", "path,label,split\nx.png,a,train\ny.png,a,\n"),
    table("0.png is listed twice, in .*line 2 and in .*line 4", "path,label\n0.png,a\n1.png,a\n./0.png,a\n"),
    table("several columns 'label'; keep one", "path,label,label\n0.png,a,b\n"),
    table("line 3: there are more values than columns", "path,label\n0.png,a\n1.png,cat, black\n"),
    table("'cat' .*line 2. and 'Cat' .*line 3. read as the same text", "path,label\n0.png,cat\n1.png,Cat\n"),
    *(
        table(f"the label '{label}' .*line 3. stands for a missing one", f"path,label\n0.png,a\n1.png,{label}\n")
        for label in ("NaN", "<NA>", "None")
    ),
    table("line 1: no value for 'label'", '{"path": "x.png", "label": NaN}', "a.jsonl"),
    table("class_names is {'a'}; give a list", "path,label\nx.png,0\n", class_names={"a"}),
    table(
        "line 2: the label '10' does not fit class_names, which is for numbered labels: .* from 0 to 1",
        "path,label\nx.png,10\ny.png,1\n",
        class_names=["a", "b"],
    ),
    table("line 3: the label '0' does not fit", "path,label\nx.png,a\ny.png,0\n", class_names=["a", "b"]),
    table("line 3 has the label -1, which is no", "path,label\nx.png,1\ny.png,-1\n", class_names=["a", "b"]),
    *(
        table(f"line 2{words}", f'{{"path": "x.png", "label": 1}}\n{{"path": "y.png", "label": {label}}}', "a.jsonl")
        for label, words in (
            ("-1.0", " has the label -1, which is no class"),
            ("1.5", ": the label is 1.5; it must be a name or a whole number"),
            ("true", ": the label is True; it must be"),
            ("[1]", r": the label is \[1\]; it must be"),
        )
    ),
    # A folder with metadata.
    metadata("test has 1 picture, but neither class folders nor a metadata.jsonl", "test/0.png", train=TRAINED),
    metadata("test/dog: no training image has the class 'dog' of these test", "test/dog/0.png", train=TRAINED),
    metadata("line 1: no training image has the class 'cat' of these test", "train/dog/0.png", test=TRAINED),
    metadata("train/dog has no image", "train/dog/0.txt", test=TRAINED),
    metadata(
        "line 1: the split of test/0.png is train, but it lies in test/ beside",
        test=row("0.png", split="train"),
        train=TRAINED,
    ),
    metadata(
        "line 2: the split of test/0.png is train, but", root=row("train/0.png") + row("test/0.png", split="train")
    ),
    metadata(
        "line 3: 2.png lies outside of the folders of train and val images",
        root=row("train/0.png") + row("valid/1.png") + row("2.png"),
    ),
    metadata("has test images but none for train", root=row("test/0.png")),
    # CoOp's layout: missing and broken files.
    made(r"eurosat: there is no folder .*eurosat; put into eurosat/: 2750 from http", load("eurosat")),
    benchmark(r"no split file .*split_zhou_EuroSAT\.json; .*drive\.google", "eurosat", SPLIT_FILE, ...),
    split_file("label 3 has no image, but label 5 has", train=["a.jpg", 5, "Highway"]),
    split_file("label 1 is called both 'Forest' and 'Woods'", test=["a.jpg", 1, "Woods"]),
    split_file("not a split file", train=["a.jpg", 1]),
    split_file("listed twice", train=FIRST),
    benchmark("val/n99999999 .* belongs to no class", "imagenet", "images/val/n99999999/"),
    made(
        r"cannot read .*zigzagged_0004.*, listed in split_zhou_D.*: No such file",
        lambda folder: [*map(load("dtd")(folder).splits["train"].read, range(5))],
        {"dtd": ..., "dtd/images/zigzagged/zigzagged_0004.jpg": ...},
    ),
    # Prepared records.
    made(r"not prepared under .*pip install 'clipbias\[tensorflow\]'", load("tfds/oxford_pets")),
    # Protocols.
    plan("no protocol 'zero'; there are few_shot, imbalanced, full", "zero", "dtd"),
    plan("stays within one dataset", "base_to_new", "dtd", "eurosat"),
    plan("eurosat has the class 'Annual Crop Land', which dtd has not", "domain_generalization", "dtd", "eurosat"),
    plan("imagenet_r has no train images", "few_shot", "imagenet_r"),
    # Datasets made in memory.
    *(
        pure("exactly one", Dataset, "set", ("a",), template, {})
        for template in ("a photo.", "{} and {}", "a {0}.", "{")
    ),
    (
        "no class of s has a second training image, so no shot can be held out; take more --config.shots",
        lambda place: hold_out_a_shot(protocols.few_shot(SINGLE, shots=1, seed=1), 1),
    ),
    pure(r"1\.jpg in val has label 5", Dataset, "s", ("a",), "{}", {"val": split("1.jpg", labels=(5,))}),
    pure(r"x\.jpg is listed twice", split, "x.jpg", "x.jpg"),
    pure("has 2 images and|there are 2 images and 3 labels", data.from_arrays, [PIXELS, PIXELS], ["a", "b", "c"]),
    pure("'cat' .of image 0. and 'Cat ' .of image 2. read", data.from_arrays, 3 * [PIXELS], ["cat", "a", "Cat "]),
    *(
        pure("image 1 has no label", data.from_arrays, 2 * [PIXELS], ["a", label])
        for label in (None, " ", np.float32("nan"), pandas.NA, pandas.NaT, np.datetime64("NaT"))
    ),
    pure("image 1 has no label", data.from_arrays, 2 * [PIXELS], pandas.Categorical(["a", None])),
    pure(
        "the label 'nan' .of image 1. stands for a missing one", data.from_arrays, [PIXELS], np.array(["a", math.nan])
    ),
    pure(r"a table with the columns \['path', 'label'\]; give its column", data.from_arrays, ["x.png"], FRAME),
    pure(r"a table with the columns \['path', 'label'\]", open_images, FRAME),
    pure(r"the labels \[1, 2\] may be names", data.from_arrays, 2 * [PIXELS], [1, 2], ["1", "2", "3"]),
    pure(r"the images are the dataset s; give a split of it: dataset.split\('test'\)", image_list, SINGLE),
    pure("image 1 has no label .nan", data.from_arrays, 2 * [PIXELS], np.array([0, math.nan]), ["a", "b"]),
    pure("give numbers or names, not both", data.from_arrays, 2 * [PIXELS], ["a", 1]),
    pure(r"x/a\.png is listed twice, as images", data.from_arrays, ["x/a.png", "b.png", "x/./a.png"], ["a", "b", "a"]),
    pure(r"\[3, 8, 9\].* 3 grey pictures.* give image\.transpose\(1, 2", image_list, np.zeros((3, 8, 9), np.uint8)),
    pure("the images are {'x'}; give a path", image_list, {"x"}),
    pure("leave `labels` out", image_list, split("a"), [0], ["a"]),
    pure("class names 'cat' .class 0. and 'CAT' .class 1. read as the same", Dataset, "s", ("cat", "CAT"), "{}", {}),
    pure("splits is 'train'; give one of train, val and test", data.from_arrays, [PIXELS], ["a"], splits="train"),
    # Pictures and batches of them.
    pure(r"(?s)^(?!.*0x).*pets/cat\.jpg", transforms.decode_picture, JPEG[: len(JPEG) // 2], "pets/cat.jpg"),
    pure(
        "choose from raise, skip", pipeline.test_batches, split(), resizing=Resizing(8), batch_size=4, on_error="ignore"
    ),
]
