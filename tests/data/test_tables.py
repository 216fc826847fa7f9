"""Tables of own images: CSV, JSON lines and Hugging Face metadata."""

import json

import pytest

from clipbias import data
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


def test_csv_with_splits_and_quotes(tmp_path):
    rows = ['"a, b.png","the ""one""",train', "c.png,two,validation", "d.png,two,test", "e.png,two,train"]
    path = write_csv(tmp_path, ["path,label,split", *rows])
    dataset = data.load("csv", data_dir=path, template="one {}.")
    assert dataset.class_names == ('the "one"', "two")
    assert dataset.splits["train"].keys == ("a, b.png", "e.png")
    assert dataset.splits["val"].labels.tolist() == [1]


def test_integer_labels_sort_as_numbers_and_may_be_named(tmp_path):
    path = write_csv(tmp_path, ["path,label,split", *(f"{n}.png,{n},train" for n in (10, 2, 1)), "x.png,2,val"])
    assert data.load("csv", data_dir=path).class_names == ("1", "2", "10")
    names = [f"class {number}" for number in range(11)]
    dataset = data.load("csv", data_dir=path, class_names=names)
    assert dataset.class_names == tuple(names) and dataset.splits["train"].labels.tolist() == [10, 2, 1]


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
