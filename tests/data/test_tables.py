"""Tables of own images: CSV, JSON lines and Hugging Face metadata."""

import errno
import json
import os
from pathlib import Path

import pytest

from clipbias import data
from clipbias.errors import ClipbiasError
from tests.data.pictures import write


def write_csv(folder, lines, name="list.csv"):
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_csv_without_splits_is_divided(tmp_path):
    rows = [f"{label}/{index}.png,{label}" for label in ("zebra", "Ant") for index in range(10)]
    for row in rows:
        write(tmp_path / row.split(",")[0])
    dataset = data.load("csv", data_dir=write_csv(tmp_path, ["path,label", *rows]))
    assert dataset.class_names == ("Ant", "zebra") and dataset.template == "a photo of a {}."
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 10, "val": 4, "test": 6}
    train = dataset.splits["train"]
    assert train.read(0) == (tmp_path / train.keys[0]).read_bytes()


def test_a_folder_that_may_not_be_looked_into(tmp_path, monkeypatch):
    """Played, since nothing is closed to the user that tests may run as."""

    def closed(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    write(tmp_path / "train" / "cat" / "0.png")
    monkeypatch.setattr(Path, "is_file", closed)
    with pytest.raises(ClipbiasError, match=r"cannot read the folder .*: Permission denied; check its permissions\."):
        data.load("folder", data_dir=tmp_path)


def test_csv_with_splits_quotes_and_other_columns(tmp_path):
    rows = ['"a, b.png","the ""one""",train', "c.png,two,validation", "d.png,two,test", "e.png,two,train"]
    path = write_csv(tmp_path, ["file,kind,split", *rows])
    dataset = data.load("csv", data_dir=path, path_column="file", label_column="kind", template="one {}.")
    assert dataset.class_names == ('the "one"', "two")
    assert dataset.splits["train"].keys == ("a, b.png", "e.png")
    assert dataset.splits["val"].labels.tolist() == [1]


def test_integer_labels_sort_as_numbers_and_may_be_named(tmp_path):
    path = write_csv(tmp_path, ["path,label,split", *(f"{n}.png,{n},train" for n in (10, 2, 1)), "x.png,2,val"])
    assert data.load("csv", data_dir=path).class_names == ("1", "2", "10")
    names = [f"class {number}" for number in range(11)]
    dataset = data.load("csv", data_dir=path, class_names=names)
    assert dataset.class_names == tuple(names) and dataset.splits["train"].labels.tolist() == [10, 2, 1]
    with pytest.raises(ClipbiasError, match="class_names goes with labels 0 to 1, found '10'"):
        data.load("csv", data_dir=path, class_names=["a", "b"])


def test_json_lines(tmp_path):
    records = [{"path": f"{n}.png", "label": "ab"[n % 2], "split": "train" if n < 4 else "test"} for n in range(6)]
    path = tmp_path / "list.jsonl"
    path.write_text("\n\n".join(json.dumps(record) for record in records))
    dataset = data.load("csv", data_dir=path)
    assert len(dataset.splits["test"]) == 2 and len(dataset.splits["train"]) + len(dataset.splits["val"]) == 4


@pytest.mark.parametrize("places", [("",), ("train", "validation", "test")])
def test_metadata_folders(tmp_path, places):
    for place in places:
        (tmp_path / place).mkdir(exist_ok=True)
        records = [{"file_name": f"im {n}.png", "label": "ab"[n % 2]} for n in range(10)]
        (tmp_path / place / "metadata.jsonl").write_text("\n".join(json.dumps(record) for record in records))
        for record in records:
            write(tmp_path / place / record["file_name"])
    dataset = data.load("folder", data_dir=tmp_path)
    assert dataset.class_names == ("a", "b")
    if len(places) == 3:
        assert [len(split) for split in dataset.splits.values()] == [10, 10, 10]
        assert dataset.splits["val"].keys[1] == "validation/im 1.png"
    assert dataset.splits["val"].read(0)


BAD = {
    "climbing": (["path,label", "../x.png,a"], r"line 2, lists the path '\.\./x\.png'"),
    "absolute": (["path,label", "/etc/x.png,a"], "not a plain path"),
    "no column": (["image,label", "x.png,a"], "no value for 'path'; the columns are image, label"),
    "no label": (["path,label", "x.png,"], "line 2: no value for 'label'"),
    "bad split": (["path,label,split", "x.png,a,dev"], "the split is 'dev'; it must be train, val or test"),
    "half split": (["path,label,split", "x.png,a,train", "y.png,a,"], "some images have a split and some have none"),
    "only test": (["path,label,split", "x.png,a,test"], "has test images but none for train"),
    "empty": (["path,label"], "lists no image"),
    "twice": (["path,label", "x.png,a", "x.png,b"], "listed twice"),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_bad_tables(tmp_path, kind):
    lines, message = BAD[kind]
    with pytest.raises(ClipbiasError, match=message):
        data.load("csv", data_dir=write_csv(tmp_path, lines))


def test_bad_files(tmp_path):
    with pytest.raises(ClipbiasError, match="needs data_dir"):
        data.load("csv")
    with pytest.raises(ClipbiasError, match=r"no file .*absent\.csv"):
        data.load("csv", data_dir=tmp_path / "absent.csv")
    path = tmp_path / "list.jsonl"
    path.write_text('{"path": "x.png", "label"\n')
    with pytest.raises(ClipbiasError, match="line 1: not valid JSON"):
        data.load("csv", data_dir=path)
    path.write_text("[1]\n")
    with pytest.raises(ClipbiasError, match="line 1: expected an object"):
        data.load("csv", data_dir=path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ClipbiasError, match="not UTF-8"):
        data.load("csv", data_dir=path)
