"""The check of datasets on disk and the contact sheet."""

import dataclasses
import hashlib
import random

import numpy as np
import pytest

from clipbias import data
from clipbias.data import benchmark_check, catalog
from clipbias.report import contact_sheet
from tests.data import miniatures
from tests.data.pictures import write


def plain_golden(name, seed):
    """The short hashes of the picks, from the split file's content alone."""
    content = miniatures.split_content(name)
    stream = random.Random(seed)
    hashes = []
    for split, count in (("train", 16), ("val", 4)):
        groups = {}
        for path, label, _ in content[split]:
            groups.setdefault(label, []).append(path)
        picks = [
            path
            for paths in groups.values()
            for path in (stream.sample(paths, count) if len(paths) >= count else paths)
        ]
        hashes.append(hashlib.sha256("\n".join(picks).encode()).hexdigest()[:16])
    return tuple(hashes)


def entry_of(name, **changes):
    """The catalogue entry with the miniature's sizes."""
    sizes = {split: 3 * count for split, count in miniatures.COUNTS.items()}
    return dataclasses.replace(catalog.ENTRIES[name], **{"classes": 3, "sizes": sizes, **changes})


@pytest.fixture(autouse=True)
def golden(monkeypatch):
    """The picks that count as published: none."""
    monkeypatch.setattr(benchmark_check, "GOLDEN", {})
    return benchmark_check.GOLDEN


@pytest.fixture
def enough_images(monkeypatch):
    """Miniatures with more images than shots, so that the draw is a draw."""
    monkeypatch.setattr(miniatures, "COUNTS", {"train": 20, "val": 6, "test": 2})


def test_complete_dataset_is_ok(tmp_path, enough_images, golden):
    miniatures.make(tmp_path, "dtd")
    golden["dtd"] = {seed: plain_golden("dtd", seed) for seed in (1, 2, 3)}
    finding = benchmark_check.check(entry_of("dtd"), tmp_path, decode=True)
    assert (finding.state, finding.picks, finding.problems) == ("ok", (3, 3), ())
    content = (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").read_bytes()
    assert finding.split_hash == hashlib.sha256(content).hexdigest()[:16]
    assert benchmark_check.table([finding]).splitlines()[2].split()[:3] == ["DTD", "ok", "3"]


def test_other_picks_and_counts_are_told(tmp_path, enough_images, golden):
    miniatures.make(tmp_path, "dtd")
    golden["dtd"] = {1: plain_golden("dtd", 1), 2: ("0" * 16, "0" * 16)}
    finding = benchmark_check.check(entry_of("dtd"), tmp_path)
    assert finding.state == "differs" and finding.picks == (1, 2)
    assert "picks of 1 of 2 seeds are not the published ones" in finding.problems[0]
    finding = benchmark_check.check(catalog.ENTRIES["dtd"], tmp_path)
    assert finding.state == "differs" and "classes, train, val, test is not the catalogue's" in finding.problems[0]
    assert "60 of 2820" in benchmark_check.table([finding])


def test_damaged_images_are_named(tmp_path):
    folder = miniatures.make(tmp_path, "eurosat") / "2750"
    keys = data.load("eurosat", data_dir=tmp_path).splits["train"].keys
    (folder / keys[0]).unlink()
    (folder / keys[1]).write_bytes(b"")
    (folder / keys[2]).write_bytes((folder / keys[2]).read_bytes()[:200])
    finding = benchmark_check.check(entry_of("eurosat"), tmp_path)
    assert finding.state == "broken" and "2 images missing or unreadable" in finding.problems[0]
    assert f"{keys[0]} (No such file" in finding.problems[0] and f"{keys[1]} is empty" in finding.problems[0]
    decoded = benchmark_check.check(entry_of("eurosat"), tmp_path, decode=True)
    assert "3 images" in decoded.problems[0] and keys[2] in decoded.problems[0]


def test_own_images_are_checked_too(tmp_path):
    for name in ("cat", "dog"):
        for number in range(4):
            write(tmp_path / name / f"{number}.png")
    whole = benchmark_check.check_images(data.load("folder", data_dir=tmp_path))
    assert (whole.state, whole.problems) == ("ok", ())
    assert benchmark_check.table([whole]).splitlines()[2].split() == ["folder", "ok", "2", "4", "2", "2", "-", "-"]
    (tmp_path / "cat" / "1.png").write_bytes(b"no image")
    dataset = data.load("folder", data_dir=tmp_path)
    assert benchmark_check.check_images(dataset).state == "ok"
    damaged = benchmark_check.check_images(dataset, decode=True)
    assert (
        damaged.state == "broken"
        and f"1 image missing or unreadable: the image {tmp_path}/cat/1.png" in (damaged.problems[0])
    )


def test_missing_and_broken_say_what_to_do(tmp_path):
    finding = benchmark_check.check(catalog.ENTRIES["sun397"], tmp_path)
    assert finding.state == "missing" and "put into sun397/: SUN397 from https://" in finding.problems[0]
    (tmp_path / "sun397").mkdir()
    finding = benchmark_check.check(catalog.ENTRIES["sun397"], tmp_path)
    assert finding.state == "broken" and "split_zhou_SUN397.json" in finding.problems[0]
    assert "SUN397     missing" in benchmark_check.table([dataclasses.replace(finding, state="missing")])


def test_contact_sheet_shows_picks_and_crops(tmp_path):
    miniatures.make(tmp_path, "eurosat")
    dataset = data.load("eurosat", data_dir=tmp_path)
    sheet = contact_sheet.contact_sheet(dataset, shots=2, seed=1)
    first = dataset.splits["train"].subset(data.few_shot(dataset.splits["train"], None, shots=2, seed=1)[0])
    resizing = data.transforms.Resizing(contact_sheet.TILE)
    expected = data.transforms.test_image(data.transforms.decode(first.read(0), ""), resizing)
    shown = np.reshape(sheet.axes, (len(dataset.class_names), 2 + contact_sheet.CROPS))
    np.testing.assert_array_equal(shown[0, 0].images[0].get_array(), expected)
    crops = [np.asarray(axes.images[0].get_array()) for axes in shown[0, 2:]]
    assert not any(np.array_equal(crop, expected) for crop in crops)
    assert dataset.class_names[first.labels[0]].replace("_", " ") in shown[0, 0].get_title("left")
