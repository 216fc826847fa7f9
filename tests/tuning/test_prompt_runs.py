"""Trainings of prompts per image, of several sets and with a teacher: over devices, in a sweep, to other classes."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.training import mesh as meshes
from clipbias.tuning import Learnables, Method, Recipe, Task, make_method
from clipbias.tuning.adapter import read_adapter
from clipbias.tuning.methods.taskres import TaskRes
from tests import helpers
from tests.reference.methods import Reference
from tests.training.conftest import few_shot_runs, train_runs
from tests.training.sweeps import TinySweep
from tests.tuning.heads_common import COMMON

OPTIONS = {
    "cocoop": {},
    "kgcoop": {},
    "prograd": {},
    "promptsrc": {"depth": 2, "templates": "a photo of the {}."},
    "plot": {"tokens": 4, "sets": 2},
    "two_stage": {"towers": ("vision",), "recipe": "common"},
    "plot_plus_plus": {"phrases": ("a photo of a", "photo of the dog type")},
    "proda": {"tokens": 4, "sets": 4, "sets_per_step": 2},
}
RECIPE = dataclasses.replace(COMMON, epochs=2, batch_size=6)


@pytest.mark.long
@pytest.mark.parametrize("name", ["cocoop", "plot", "proda", "prograd", "promptsrc"])
def test_devices_give_the_numbers_of_one(pair: tuple[Clip, Reference], colours: Dataset, name: str) -> None:
    # Batches of 6 are padded to 8 on four devices; what only fills them counts nowhere.
    results = []
    for groups, mesh in ((1, meshes.single_device()), (4, meshes.make_mesh(run=2, data=4))):
        task = Task(pair[0], make_method(name, **OPTIONS[name]), colours.class_names).with_memory(class_shards=groups)
        results.append(train_runs(task, few_shot_runs(colours, (1, 2)), RECIPE, mesh))
    single, eight = results
    np.testing.assert_allclose(single.losses, eight.losses, rtol=2e-5)
    assert single.losses[0] != single.losses[1]
    for a, b in zip(*(jax.tree.leaves(meshes.device_get(each.learnables)) for each in results), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-5 * np.abs(b).max())


@dataclasses.dataclass(frozen=True)
class Twice(TaskRes):
    """Two trainings whose steps are quickly compiled; its end is told by numbers of its own."""

    def stages(self, recipe: Recipe) -> Sequence[tuple[Method, Recipe]]:
        return [(self, recipe)] * 2

    def next_stage(self, stage: int, learnables: Learnables, text: np.ndarray | None) -> Learnables:
        assert (text is not None) == (stage == 1)
        return jax.tree.map(lambda leaf: np.full_like(leaf, stage), learnables) if stage == 2 else learnables


def steps_done(folder: Path, name: str) -> int:
    (metrics,) = (folder / "runs").glob(f"*{name}*/metrics.jsonl")
    return json.loads(metrics.read_text().splitlines()[-1])["step"]


@pytest.mark.ci
def test_a_sweep_of_two_trainings(pair: tuple[Clip, Reference], colours: Dataset, tmp_path: Path) -> None:
    tiny = TinySweep(pair[0], colours, RECIPE, tmp_path)
    (spec,) = tiny.specs(f"{__name__}:Twice", seeds=(1,))
    (row,) = tiny.run([spec])
    assert row["status"] == "ok", row.get("error")
    assert (tiny.adapter(spec).learnables["text_residual"] == 2).all()
    assert steps_done(tmp_path, "Twice") == 4  # two epochs of a step each


@pytest.mark.long
@pytest.mark.parametrize(
    "names",
    [("two_stage",), ("cocoop", "kgcoop", "plot_plus_plus", "proda", "prograd", "promptsrc")],
)
def test_through_a_sweep_from_base_to_new_classes(
    names: tuple[str, ...], pair: tuple[Clip, Reference], colours: Dataset, tmp_path: Path
) -> None:
    clip = pair[0]
    recipe = dataclasses.replace(RECIPE, batch_size=3)
    tiny = TinySweep(clip, colours, recipe, tmp_path, protocol="base_to_new", options=OPTIONS)
    rows = tiny.rows(*names, seeds=(1,))
    assert [(row["status"], set(row["accuracies"])) for row in rows] == [("ok", {"base", "new"})] * len(names), rows
    adapters = sorted((tmp_path / "adapters").glob("*.safetensors"))
    assert [read_adapter(path).method for path in adapters] == list(names)
    pictures = helpers.random_images({"vision_config": {"image_size": 8}}, 2)
    for path in adapters:
        adapter = read_adapter(path)
        task = adapter.task(clip)
        start = adapter.task(clip).init(1)
        assert jax.eval_shape(task.logits, clip.params, adapter.learnables, pictures).shape == (2, 2)
        for key in {"text_context", "vision_prompts", "classes", "vision_weights"} & set(start):
            for leaf, other in zip(*(jax.tree.leaves(x[key]) for x in (adapter.learnables, start)), strict=True):
                assert np.abs(np.asarray(leaf) - np.asarray(other)).max() > 1e-5, (path.name, key)
    # Of an epoch each, and of two; each epoch is a step.
    name, steps = ("two_stage", 2) if "two_stage" in names else ("plot_plus_plus", 4)
    assert steps_done(tmp_path, name) == steps
