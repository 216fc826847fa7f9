"""Class folders and tables in the layouts that people have, and broken ones."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from clipbias import data
from clipbias.data.dataset import Split
from clipbias.data.files import IMAGE_SUFFIXES, image_files
from clipbias.data.folder import divide
from clipbias.errors import ClipbiasError, ClipbiasWarning
from tests.data.pictures import write


def make_classes(root, names, count=10):
    for number, name in enumerate(names):
        for index in range(count):
            write(root / name / f"{index}.png", seed=number * 100 + index, height=6, width=6)


def test_single_level_is_divided_by_file_name(tmp_path, caplog):
    make_classes(tmp_path, ["cat", "Zebra", "ant"])
    (tmp_path / "notes.txt").write_text("not a class")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    with caplog.at_level("INFO"):
        dataset = data.load("folder", data_dir=tmp_path, template="one {}.")
    assert dataset.class_names == ("Zebra", "ant", "cat")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 15, "val": 6, "test": 9}
    assert "15 train, 6 val, 9 test" in caplog.text
    keys = [key for split in dataset.splits.values() for key in split.keys]
    assert len(set(keys)) == 30
    again = data.load("folder", data_dir=str(tmp_path))
    assert again.splits["train"].keys == dataset.splits["train"].keys and again.template == "a photo of a {}."
    for index, key in enumerate(dataset.splits["val"].keys):
        assert dataset.class_names[dataset.splits["val"].labels[index]] == key.split("/")[0]
        assert dataset.splits["val"].read(index) == (tmp_path / key).read_bytes()


def test_splits_are_taken_as_they_are_also_in_capitals_where_they_hold_folders(tmp_path):
    for place, count in (("Train", 4), ("val", 2), ("TESTING", 3)):
        make_classes(tmp_path / "splits" / place, ["a", "b"], count)
    dataset = data.load("folder", data_dir=tmp_path / "splits")
    assert dataset.class_names == ("a", "b") and dataset.splits["test"].keys[0] == "TESTING/a/0.png"
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 8, "val": 4, "test": 6}
    make_classes(tmp_path / "vehicles", ["Bus", "Train"])
    assert data.load("folder", data_dir=tmp_path / "vehicles").class_names == ("Bus", "Train")


def test_missing_splits_are_made_up(tmp_path):
    make_classes(tmp_path / "one" / "train", ["a"], 10)
    make_classes(tmp_path / "one" / "test", ["a"], 3)
    held_out = data.load("folder", data_dir=tmp_path / "one").splits
    assert (len(held_out["train"]), len(held_out["val"]), len(held_out["test"])) == (8, 2, 3)
    make_classes(tmp_path / "two" / "train", ["a"], 10)
    make_classes(tmp_path / "two" / "validation", ["a"], 3)
    same = data.load("folder", data_dir=tmp_path / "two").splits
    assert same["test"].keys == same["val"].keys and len(same["train"]) == 10
    make_classes(tmp_path / "three" / "train", ["a"], 10)
    assert len(data.load("folder", data_dir=tmp_path / "three").splits["test"]) == 3


def test_a_class_may_have_no_folder_of_test_images(tmp_path):
    make_classes(tmp_path / "train", ["a", "b"], 10)
    make_classes(tmp_path / "test", ["b"], 3)
    assert data.load("folder", data_dir=tmp_path).splits["test"].labels.tolist() == [1, 1, 1]


def test_links_and_nested_images(tmp_path):
    write(tmp_path / "elsewhere" / "x" / "deep.png")
    write(tmp_path / "elsewhere" / "y" / "inner" / "deep.JPG")
    (tmp_path / "root").mkdir()
    for name in "xy":
        os.symlink(tmp_path / "elsewhere" / name, tmp_path / "root" / name)
    dataset = data.load("folder", data_dir=tmp_path / "root")
    assert dataset.splits["train"].keys == ("x/deep.png", "y/inner/deep.JPG")


def plain_listing(folder):
    """What `os.walk` and paths say."""
    files = []
    for place, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        visible = (Path(place, name) for name in names if not name.startswith("."))
        files += [p.relative_to(folder).as_posix() for p in visible if p.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(files)


def test_images_are_listed_as_a_plain_walk_lists_them(tmp_path):
    root = tmp_path / "root"
    for name in ("b.jpg", "a.JPEG", "z.webp", "in/a.jpg", "in.jpg/deep/x.TIFF", "é/ü.png", ".in/a.jpg", ".a.jpg"):
        write(root / name)
    for name in ("notes.txt", "jpg", "x.jpg.part", "in/.hidden.png"):
        (root / name).write_bytes(b"")
    (tmp_path / "outside").mkdir()
    write(tmp_path / "outside" / "o.png")
    for name, target in (
        *(("link.png", root / "b.jpg"), ("gone.png", "nowhere"), ("circle.png", "circle.png")),
        *(("folder.png", tmp_path / "outside"), ("linked", tmp_path / "outside")),
    ):
        os.symlink(target, root / name)
    files, _ = image_files(root)
    assert files == plain_listing(root)
    assert {"in.jpg/deep/x.TIFF", "circle.png", "link.png", "gone.png"} < set(files)
    assert not {"folder.png", "linked/o.png"} & set(files)


def test_division_equals_a_plain_rendering():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(6), [1, 2, 3, 5, 20, 41]))
    split = Split([f"{label}/{number}.png" for number, label in enumerate(labels)], labels, lambda index: b"")
    for shares in ((0.2, 0.3), (0.2, 0.0)):
        expected = ([], [], [])
        for label in range(6):
            places = sorted(
                np.flatnonzero(labels == label).tolist(), key=lambda i: hashlib.sha256(split.keys[i].encode()).digest()
            )
            val, test = round(len(places) * shares[0]), round(len(places) * shares[1])
            val = 0 if val + test >= len(places) else val
            test = min(test, len(places) - 1)
            for part, chosen_places in zip(
                expected, (places[val + test :], places[:val], places[val : val + test]), strict=True
            ):
                part.extend(chosen_places)
        assert [part.tolist() for part in divide(split, shares)] == [sorted(part) for part in expected]


def test_names_that_are_not_utf8_are_left_out_by_name(tmp_path, caplog):
    """The other images are read; a class has to have a name."""
    make_classes(tmp_path, ["cat"], 5)
    cat = os.fsencode(tmp_path / "cat")
    try:
        os.rename(cat + b"/0.png", cat + b"/\xff.png")
        os.mkdir(cat + b"/\xfe")
    except OSError:
        pytest.skip("this file system has no such names")
    os.rename(cat + b"/1.png", cat + b"/\xfe/1.png")
    dataset = data.load("folder", data_dir=tmp_path)
    keys = sorted(key for split in dataset.splits.values() for key in split.keys)
    assert keys == ["cat/2.png", "cat/3.png", "cat/4.png"]
    assert f"{tmp_path / 'cat'}: 2 pictures are left out, since their names are not UTF-8 (b'" in caplog.text
    assert r"b'\xff.png'" in caplog.text and r"b'\xfe/1.png'" in caplog.text
    os.rename(cat, os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(ClipbiasError, match="not UTF-8; rename it"):
        data.load("folder", data_dir=tmp_path)


# Tables: CSV, JSON lines and Hugging Face metadata


def write_csv(folder, lines, name="list.csv"):
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_csv_with_splits_and_quotes(tmp_path):
    rows = ['"a, b.png","the ""one""",train', "c.png,two,validation", "d.png,two,test", "e.png,two,train"]
    path = write_csv(tmp_path, ["path,label,split", *rows])
    dataset = data.load("csv", data_dir=path, template="one {}.")
    assert dataset.class_names == ('the "one"', "two") and dataset.template == "one {}."
    assert dataset.splits["train"].keys == ("a, b.png", "e.png")


def test_spaces_around_labels_and_decimal_points_of_pandas_do_not_count(tmp_path):
    spaced = write_csv(tmp_path, ["path, label, split", 'a.png, "bag", train', "b.png,bag ,train", "c.png, bag, val"])
    assert data.load("csv", data_dir=spaced).class_names == ("bag",)
    rows = ["path,label,split", "a.png,0.0,train", "b.png,1.0,train", "c.png,1.0,val"]
    pandas = write_csv(tmp_path, rows)
    assert data.load("csv", data_dir=pandas).class_names == ("0", "1")
    assert data.load("csv", data_dir=pandas, class_names=["cat", "dog"]).splits["train"].labels.tolist() == [0, 1]
    assert data.load("csv", data_dir=pandas, class_names=["1.0", "0.0"]).splits["train"].labels.tolist() == [1, 0]
    names = write_csv(tmp_path, [*rows, "d.png,1.5,train"])
    assert data.load("csv", data_dir=names).class_names == ("0.0", "1.0", "1.5")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_columns_may_be_separated_otherwise(tmp_path, separator):
    rows = [["path", '"label"', "split"], ["a.png", "x, y", "train"], ["b.png", '"x, y"', "val"]]
    path = write_csv(tmp_path, map(separator.join, rows), "list.tsv")
    assert data.load("csv", data_dir=path).class_names == ("x, y",)


def test_integer_labels_sort_as_numbers_and_may_be_named(tmp_path):
    path = write_csv(tmp_path, ["path,label,split", *(f"{n}.png,{n},train" for n in (10, 2, 1)), "x.png,2,val"])
    assert data.load("csv", data_dir=path).class_names == ("1", "2", "10")
    names = [f"class {number}" for number in range(11)]
    dataset = data.load("csv", data_dir=path, class_names=names)
    assert dataset.class_names == tuple(names) and dataset.splits["train"].labels.tolist() == [10, 2, 1]
    # Digits that are names are taken as names, as labels in Python are.
    dataset = data.load("csv", data_dir=path, class_names=["1", "2", "10"])
    assert dataset.splits["train"].labels.tolist() == [2, 1, 0]


def test_a_folder_with_metadata_is_divided_as_class_folders_are(tmp_path):
    """With metadata in folders of splits, `tests/relations` compares it with class folders."""
    records = [{"file_name": f"im {n}.png", "label": "bA"[n % 2]} for n in range(10)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    for record in records:
        write(tmp_path / record["file_name"])
    dataset = data.load("folder", data_dir=tmp_path)
    assert dataset.class_names == ("A", "b") and [len(split) for split in dataset.splits.values()] == [4, 2, 4]
    for split in dataset.splits.values():
        assert split.read(1) == (tmp_path / split.keys[1]).read_bytes()


def write_rows(folder, *rows):
    """Writes `metadata.jsonl` of (path, split, or None) and the images."""
    records = [{"file_name": path, "label": "a", **({"split": split} if split else {})} for path, split in rows]
    for path, _ in rows:
        write(folder / path)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))


def test_a_split_in_a_row_decides_where_no_folder_has_its_name(tmp_path):
    write_rows(tmp_path / "val", ("train/0.png", "train"), ("train/1.png", "val"), ("test/2.png", None))
    splits = data.load("folder", data_dir=tmp_path / "val").splits
    assert {name: split.keys for name, split in splits.items()} == {
        **{"train": ("train/0.png",), "val": ("train/1.png",), "test": ("test/2.png",)}
    }
    # Classes may have the names of splits where the rows say the split.
    write_rows(tmp_path / "classes", ("train/0.png", "test"), ("bus/1.png", "train"), ("test/2.png", "train"))
    assert len(data.load("folder", data_dir=tmp_path / "classes").splits["test"]) == 1
    # A folder "train" among others may be a class.
    write_rows(tmp_path / "class", *((f"{name}/{n}.png", None) for name in ("train", "bus") for n in range(5)))
    assert sum(len(split) for split in data.load("folder", data_dir=tmp_path / "class").splits.values()) == 10


def test_pictures_without_a_row_are_counted_once(tmp_path):
    write_rows(tmp_path / "train", ("a/0.png", None), ("a/1.png", None))
    for name in ("test/a/2.png", "train/new.png", "train/a/new.png", "test/new.png", "more/new.png"):
        write(tmp_path / name)
    with pytest.warns(ClipbiasWarning) as warned:
        dataset = data.load("folder", data_dir=tmp_path)
    (sentence,) = [str(each.message) for each in warned]
    assert "4 pictures without a row in the metadata are left out (more/new.png, test/new.png, train/a/" in sentence
    # A folder "test" beside pictures without a split is no split.
    write_rows(tmp_path / "single", *((f"{n}.png", None) for n in range(10)))
    write(tmp_path / "single" / "test" / "0.png")
    with pytest.warns(ClipbiasWarning, match=r"1 picture without .* is left out \(test/0.png\)"):
        assert sum(map(len, data.load("folder", data_dir=tmp_path / "single").splits.values())) == 10
    assert warned[0].filename == __file__ and sum(map(len, dataset.splits.values())) == 3


def test_whole_numbers_are_one_label_however_json_writes_them(tmp_path):
    labels = [0, 0.0, "0", 1, 1.0, "1"]
    records = [{"path": f"{n}.png", "label": label, "split": "train"} for n, label in enumerate(labels)]
    records.append({**records[0], "path": "v", "split": "val"})
    (tmp_path / "list.jsonl").write_text("\n\n".join(map(json.dumps, records)))
    for class_names in (None, ["cat", "dog"]):
        dataset = data.load("csv", data_dir=tmp_path / "list.jsonl", class_names=class_names)
        assert dataset.splits["train"].labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert dataset.class_names == (("0", "1") if class_names is None else ("cat", "dog"))


def test_negative_numbers_are_names_where_they_are_named(tmp_path):
    path = write_csv(tmp_path, ["path,label,split", "0.png,-1,train", "1.png,1,train", "2.png,1,val"])
    dataset = data.load("csv", data_dir=path, class_names=["-1", "1"])
    assert dataset.splits["train"].labels.tolist() == [0, 1]
