"""Trainings of prompts per image, of several sets and with a teacher over devices, and of two stages in a sweep."""

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
from clipbias.tuning.methods.taskres import TaskRes
from tests.reference.methods import Reference
from tests.training.conftest import few_shot_runs, train_runs
from tests.training.sweeps import TinySweep
from tests.tuning.heads_common import COMMON

OPTIONS = {
    "cocoop": {},
    "prograd": {},
    "promptsrc": {"depth": 2, "templates": "a photo of the {}."},
    "plot": {"tokens": 4, "sets": 2},
    "proda": {"tokens": 4, "sets": 4, "sets_per_step": 2},
}
RECIPE = dataclasses.replace(COMMON, epochs=2, batch_size=6)


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIONS)
def test_devices_give_the_numbers_of_one(pair: tuple[Clip, Reference], colours: Dataset, name: str) -> None:
    """And runs side by side those of each run alone, with the draws of its seed.

    Batches of 6 are padded to 8 on four devices; what only fills them counts nowhere.
    """
    task = Task(pair[0], make_method(name, **OPTIONS[name]), colours.class_names)
    runs = few_shot_runs(colours, (1, 2))
    alone = [train_runs(task, [run], RECIPE, meshes.single_device()) for run in runs]
    eight = train_runs(task.with_memory(class_shards=4), runs, RECIPE, meshes.make_mesh(run=2, data=4))
    np.testing.assert_allclose([one.losses[0] for one in alone], eight.losses, rtol=2e-5)
    assert eight.losses[0] != eight.losses[1]
    for number, one in enumerate(alone):
        for a, b in zip(*(jax.tree.leaves(meshes.device_get(x.learnables)) for x in (one, eight)), strict=True):
            np.testing.assert_allclose(a[0], b[number], rtol=0, atol=5e-5 * np.abs(a).max())


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
