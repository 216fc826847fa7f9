"""The examples of docs/extend.md work as they stand there."""

import json
import re
import sys
import tomllib

import numpy as np
import pytest
from PIL import Image

import clipbias
from clipbias import analysis, data, report
from clipbias.analysis import load_results
from clipbias.analysis.results import Missing
from clipbias.analysis.sections import all_sections
from clipbias.clip import encode_image
from clipbias.data import catalog
from clipbias.report.drawings import all_drawings
from tests.data import test_benchmark
from tests.documents import ROOT

PAGE = (ROOT / "docs" / "extend.md").read_text("utf-8")
EXAMPLES = ROOT / "docs" / "examples"
FILES = {f"clipbias/{each.relative_to(EXAMPLES)}": each.read_text("utf-8") for each in EXAMPLES.rglob("*.py")}
PIXELS = np.random.default_rng(2).integers(0, 256, (9, 20, 16, 3), dtype=np.uint8)
CLASS_NAMES = ("cat", "dog", "bird")


@pytest.fixture
def section(tmp_path, monkeypatch):
    """The section of the page, as if its files lay in the package."""
    for package in (analysis, report):
        folder = tmp_path / package.__name__.replace(".", "/")
        folder.mkdir(parents=True)
        (folder / "to_cls.py").write_text(FILES[f"{package.__name__.replace('.', '/')}/to_cls.py"])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    known = (all_sections, all_drawings)
    for function in known:
        function.cache_clear()
    yield "to_cls"
    for function in known:
        function.cache_clear()
    for name in ("clipbias.analysis.to_cls", "clipbias.report.to_cls"):
        sys.modules.pop(name)


@pytest.mark.ci
def test_a_section_is_computed_stored_and_shown(clip, section, tmp_path):
    task = clipbias.Task(clip, "vpt", CLASS_NAMES)
    model = clipbias.TunedModel(task, task.init())
    pets = data.from_arrays(PIXELS, np.arange(9) % 3, CLASS_NAMES)
    options = analysis.StudyOptions(batch_size=4)
    study = clipbias.explain(model, pets, tmp_path / "why", sections=[section], options=options, progress=False)
    stored = load_results(tmp_path / "why").sections[section]
    test = pets.split("test")
    images = clip.preprocess([test.image(i) for i in range(len(test))])
    adaptations = {"zero_shot": None, "vpt": task.method.adapt(model.learnables)}
    patches = clip.config.vision.patches
    for key, adaptation in adaptations.items():
        _, rows = encode_image(clip.params, clip.config, images, adaptation, observe=lambda view: view.probabilities)
        expected = np.asarray(rows, float)[:, :, :, 1 : 1 + patches, 0].mean((2, 3))  # [L, B]
        np.testing.assert_allclose(stored[key].attention.mean, expected.mean(1), rtol=1e-5)
        error = expected.std(1, ddof=1) / np.sqrt(len(test))
        np.testing.assert_allclose(stored[key].attention.standard_error, error, rtol=1e-3)
        assert stored[key].count == len(test)
    assert "How much patches look at [cls]" in study.page.read_text("utf-8")
    assert (study.page.parent / "figures" / "to_cls.csv").is_file()


@pytest.mark.ci
def test_a_tower_without_cls_has_a_reason(section, tmp_path):
    task = clipbias.Task(clipbias.load("demo-siglip"), "vpt", CLASS_NAMES)
    pets = data.from_arrays(PIXELS, np.arange(9) % 3, CLASS_NAMES)
    model = clipbias.TunedModel(task, task.init())
    study = clipbias.explain(model, pets, tmp_path / "why", sections=[section], progress=False)
    stored = load_results(tmp_path / "why").sections[section]
    assert set(stored) == {"zero_shot", "vpt"} and all(isinstance(each, Missing) for each in stored.values())
    assert "The image tower has no [cls] token." in study.page.read_text("utf-8")


def test_an_entry_is_a_dataset(tmp_path, monkeypatch):
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    ((name, fields),) = tomllib.loads(text).items()
    classes, sizes = fields["classes"], fields["sizes"]
    entry = catalog._read(name, fields)
    # The list of datasets with the name, as the page says.
    listed = tmp_path / "docs" / "datasets.md"
    listed.parent.mkdir()
    listed.write_text((ROOT / "docs" / "datasets.md").read_text("utf-8") + f"`{name}`")
    monkeypatch.setattr(test_benchmark, "ROOT", tmp_path)
    test_benchmark.test_entries_are_complete(entry)
    monkeypatch.setattr(catalog, "ENTRIES", {**catalog.ENTRIES, name: entry})
    images = tmp_path / entry.folder / "images"
    images.mkdir(parents=True)
    Image.fromarray(PIXELS[0]).save(images / "a.png")
    listing = {
        part: [[f"{part}{i}.png", i % classes, f"flower {i % classes}"] for i in range(count)]
        for part, count in sizes.items()
    }
    (tmp_path / entry.folder / entry.split_file).write_text(json.dumps(listing))
    dataset = data.load(name, data_dir=tmp_path)
    assert {part: len(split) for part, split in dataset.splits.items()} == sizes
    assert len(dataset.class_names) == classes and dataset.template == fields["template"]
    assert name in clipbias.list_datasets()
