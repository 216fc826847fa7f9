"""Miniatures of the fifteen datasets, trained on and evaluated, from folders and from shards alike."""

from pathlib import Path

import pytest

import clipbias
from clipbias import data
from clipbias.clip import Clip
from clipbias.data import catalog, protocols, shards
from clipbias.training import mesh as meshes
from clipbias.training.context import SweepContext
from clipbias.training.device import Compute
from clipbias.training.sweep import SweepAxes, make_specs, sweep
from clipbias.tuning.recipe import Recipe
from tests import helpers
from tests.data import miniatures

RECIPE = Recipe(
    learning_rate=0.05,
    epochs=2,
    warmup_epochs=1,
    warmup_learning_rate=1e-3,
    batch_size=4,
    momentum=0.9,
    weight_decay=5e-4,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return miniatures.make_all(tmp_path_factory.mktemp("all"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Clip:
    folder = tmp_path_factory.mktemp("tiny")
    helpers.tiny_checkpoint(folder, context_length=77)  # long class names: "2012 Ram C/V Cargo Van Minivan"
    return clipbias.load(folder)


def run(clip: Clip, data_dir: Path, workdir: Path, protocol: str, method: str, *datasets: str) -> list[dict]:
    """The rows of a method trained on two images of a class of each dataset."""
    targets = [name for dataset in datasets for name in protocols.targets_of(protocol, dataset, ())]
    opened = {name: data.load(name, data_dir=data_dir) for name in (*datasets, *targets)}
    context = SweepContext(clip, opened, Compute(trackers=(), eval_batch_size=8), meshes.single_device())
    axes = SweepAxes(methods=(method,), datasets=datasets, shots=(2,), seeds=(1,), protocol=protocol)
    rows = sweep(make_specs(context, RECIPE, axes), context, workdir, RECIPE)
    assert [row.get("error") for row in rows] == [None] * len(rows)
    return rows


@pytest.mark.long
def test_eleven_train_and_evaluate(clip, root, tmp_path):
    rows = run(clip, root, tmp_path, "few_shot", "vpt", *catalog.ELEVEN)
    assert [row["dataset"] for row in rows] == list(catalog.ELEVEN)
    tested = {row["dataset"]: row["images"] for row in rows}
    assert tested == {name: len(data.load(name, data_dir=root).splits["test"]) for name in catalog.ELEVEN}
    assert all(0 <= row["accuracy"] <= 100 for row in rows)


@pytest.mark.long
def test_imagenet_and_its_variants(clip, root, tmp_path):
    shifted = run(clip, root, tmp_path / "shifted", "domain_generalization", "taskres", "imagenet")
    assert list(shifted[0]["accuracies"]) == ["imagenet", *catalog.VARIANTS]


@pytest.mark.long
def test_from_imagenet_to_the_other_datasets(clip, root, tmp_path):
    crossed = run(clip, root, tmp_path / "crossed", "cross_dataset", "zero_shot", "imagenet")
    assert list(crossed[0]["accuracies"]) == list(catalog.ELEVEN)


@pytest.mark.long
def test_shards_give_the_same_numbers(clip, root, tmp_path):
    for name in ("ucf101", "fgvc_aircraft"):
        shards.build(data.load(name, data_dir=root), tmp_path / "shards")
    names = ["ucf101", "fgvc_aircraft"]
    rows = run(clip, root, tmp_path / "a", "base_to_new", "bias", *names)
    again = run(clip, tmp_path / "shards", tmp_path / "b", "base_to_new", "bias", *names)
    assert [row["accuracies"] for row in rows] == [row["accuracies"] for row in again]
    adapter = Path("adapters", "bias-ucf101-2shots-seed1.safetensors")
    assert (tmp_path / "a" / adapter).read_bytes() == (tmp_path / "b" / adapter).read_bytes()
