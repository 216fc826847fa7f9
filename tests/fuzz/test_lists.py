"""Files that list images: split files, tables, JSON lines, index files and the lists of FGVC-Aircraft and ImageNet."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from clipbias import data
from tests.bad_files import DEEP
from tests.data import miniatures
from tests.fuzz.answers import ANYTHING, EXTREME, answered, corrupted, mutated


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    for name in ("eurosat", "fgvc_aircraft", "imagenet", "imagenet_v2"):
        miniatures.make(place, name)
    return place


def use(name: str, place: Path, **options: object) -> None:
    """Opens a dataset and touches all that is in it."""
    dataset = data.load(name, data_dir=place, **options)
    assert dataset.class_names
    for split in dataset.splits.values():
        assert len(split) == len(split.labels)
        if len(split):
            split.read(len(split) - 1)


def use_with(path: Path, content: bytes | str, name: str, place: Path, **options: object) -> str | None:
    """What opening answers with another content of one file."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        return answered(lambda: use(name, place, **options), place)
    finally:
        path.unlink() if before is None else path.write_bytes(before)


ITEMS = st.lists(
    st.tuples(
        st.sampled_from(("a.jpg", "b.jpg", "../c.jpg", "/etc/passwd", "a\0", "", "\ud800.jpg")) | ANYTHING,
        st.integers(0, 3) | st.sampled_from(EXTREME) | ANYTHING,
        st.sampled_from(("cat", "dog", "", "\ud800")) | ANYTHING,
    ),
    max_size=4,
)


@given(ITEMS, ITEMS, ITEMS)
@example([], [], [])
@example([("a.jpg", 10**9, "cat")], [], [])
@example([("a.jpg", 10**10, "cat")], [], [])
@example([("a.jpg", -1, "cat"), ("b.jpg", 0, "dog")], [], [])
@example([("a.jpg", 0, 5)], [], [])
@example([("\ud800.jpg", 0, "cat")], [], [])
@example([("a.jpg", 0, "\ud800")], [], [])
def test_split_files(root: Path, train: list, val: list, test: list) -> None:
    path = root / "eurosat" / "split_zhou_EuroSAT.json"
    use_with(path, json.dumps({"train": train, "val": val, "test": test}), "eurosat", root)


@given(st.data())
def test_damaged_split_files(root: Path, data: st.DataObject) -> None:
    path = root / "eurosat" / "split_zhou_EuroSAT.json"
    use_with(path, data.draw(corrupted(path.read_bytes())), "eurosat", root)
    content = json.loads(path.read_text())
    small = {name: items[:3] for name, items in content.items()}
    use_with(path, json.dumps(data.draw(mutated(small))), "eurosat", root)


@pytest.mark.parametrize("content", [DEEP, "9" * 5000, "", "null", "{}", "[]", '"x"', "\ufeff{}", "\ud800"])
def test_hostile_json(root: Path, content: str) -> None:
    assert use_with(root / "eurosat" / "split_zhou_EuroSAT.json", content, "eurosat", root)
    assert use_with(root / "index.json", content, "eurosat", root, index_file=root / "index.json")
    assert use_with(root / "table.jsonl", content + "\n", "csv", root / "table.jsonl")
    use_with(root / "table.csv", content + "\n", "csv", root / "table.csv")


@given(st.data())
def test_index_files(root: Path, data: st.DataObject) -> None:
    content = json.loads((root / "eurosat" / "split_zhou_EuroSAT.json").read_text())
    listed = {"train": content["train"][:3]}
    path = root / "index.json"
    use_with(path, json.dumps(data.draw(mutated(listed))), "eurosat", root, index_file=path)
    use_with(path, json.dumps(data.draw(mutated(listed["train"]))), "eurosat", root, index_file=path)
    lines = "\n".join(item[0] for item in listed["train"]).encode()
    path = root / "index.txt"
    use_with(path, data.draw(corrupted(lines)), "eurosat", root, index_file=path)


@given(st.data())
def test_lists_of_variants_and_class_names(root: Path, data: st.DataObject) -> None:
    for place, name in (
        ("fgvc_aircraft/variants.txt", "fgvc_aircraft"),
        ("fgvc_aircraft/images_variant_train.txt", "fgvc_aircraft"),
        ("imagenet/classnames.txt", "imagenet"),
    ):
        path = root / place
        use_with(path, data.draw(corrupted(path.read_bytes())), name, root)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("own")
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(place / name)
    return place


CELLS = st.sampled_from(
    (
        "a.png",
        "b.png",
        "c.png",
        "cat",
        "dog",
        "0",
        "1",
        "01",
        "١",
        "train",
        "val",
        "test",
        "",
        "..",
        "/",
        '"',
        "\0",
        "\r",
    )
) | st.text(max_size=6)


@given(st.lists(st.lists(CELLS, max_size=4), max_size=5), st.sampled_from((None, ("cat", "dog"))))
@example([["path", "label"], ["a.png", "9" * 5000]], ("cat",))
@example([["path", "label"], ["a.png", "01"], ["b.png", "1"]], ("cat", "dog"))
@example([["path", "label"], ["a.png", "cat\0"]], None)
@example([["path", "label"], ["a.png", "x" * 200_000]], None)
@example([["path", "label"], ["a.png", '"cat\n"']], None)
@example([], None)
def test_tables(pictures: Path, rows: list[list[str]], class_names: tuple[str, ...] | None) -> None:
    path = pictures / "table.csv"
    for head in ([], [["path", "label", "split"]]):
        content = "\n".join(",".join(row) for row in [*head, *rows])
        use_with(path, content, "csv", path, class_names=class_names)


ROWS = [{"path": "a.png", "label": "cat"}, {"path": "b.png", "label": "dog", "split": "train"}, {"path": "c.png"}]


@given(st.data())
def test_json_lines(pictures: Path, data: st.DataObject) -> None:
    path = pictures / "table.jsonl"
    lines = [json.dumps(data.draw(mutated(row))) for row in ROWS[: data.draw(st.integers(0, 3))]]
    use_with(path, "\n".join(lines), "csv", path)
    use_with(path, data.draw(corrupted("\n".join(map(json.dumps, ROWS)).encode())), "csv", path)
    named = [{"file_name": row["path"], "label": row.get("label", "x")} for row in ROWS]
    lines = [json.dumps(data.draw(mutated(row))) for row in named]
    use_with(pictures / "metadata.jsonl", "\n".join(lines), "folder", pictures)


@given(st.lists(st.sampled_from((b"cat", b"d\xff", b"\xf0\x9f\x90\x88", b".x", b"a\nb", b"train")), unique=True))
def test_folders_of_any_name(tmp_path: Path, names: list[bytes]) -> None:
    place = tmp_path / "images"
    for name in names:
        folder = Path(place, name.decode("utf-8", "surrogateescape"))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "a.png")
    answered(lambda: use("folder", place), tmp_path)
    for folder in place.glob("*"):
        (folder / "a.png").unlink()
        folder.rmdir()


@given(
    st.sampled_from(("eurosat", "csv", "folder", "tfds/x", "demo/digits", "", "..", "tfds/", "a" * 5000)) | st.text(),
    st.sampled_from((None, "", "/", "\0", "/nowhere", "x" * 5000, "~nobody")),
    st.dictionaries(st.sampled_from(("split", "index_file", "name", "x")), st.text(), max_size=1),
)
@example("eurosat", None, {"name": ""})
@example("tfds/x", None, {"name": ""})
@example("eurosat", "x" * 5000, {})
@example("eurosat", "\0", {})
def test_names_of_datasets(tmp_path: Path, name: str, place: str | None, options: dict) -> None:
    if name != "folder" or place not in ("", "/"):  # all files of this machine
        answered(lambda: data.load(name, data_dir=place, **options), tmp_path)
