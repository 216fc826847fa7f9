"""What devices exchange in a training step, read from the compiled program."""

import re

import pytest

from clipbias.training import mesh as meshes
from clipbias.training.plan import step_arguments
from clipbias.training.step import train_step
from clipbias.tuning import Task
from clipbias.tuning.recipe import Recipe
from tools.benchmarks import model

RECIPE = Recipe(0.0025, 10, 1, 1e-5, 8, 0.9, 5e-4)
# Three layers: in a loop that runs once nothing could be seen.
CONFIG = model._geometry((48, 3, 2, 32, 8), (24, 3, 2), 16, vocabulary=512)


def exchanges(method: str, devices: int) -> tuple[int, int]:
    """The exchanges of a step's program: those in its loops or other parts, and those of its outermost part."""
    task = Task(model.random_clip(CONFIG), method, model.class_names(6), groups=devices)
    mesh = meshes.make_mesh(data=devices)
    program = train_step.lower(*step_arguments(task, RECIPE, rows=8, runs=1, mesh=mesh)).compile().as_text()
    kinds = r" (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    inner, outermost = program.split("\nENTRY ")
    return len(re.findall(kinds, inner)), len(re.findall(kinds, outermost))


@pytest.mark.parametrize(("method", "count"), [("bias", 4), ("bias_by_kind", 4), ("taskres", 2)])
def test_nothing_is_exchanged_in_the_loop_over_layers(method: str, count: int) -> None:
    assert exchanges(method, 4) == (0, count)


def test_one_device_exchanges_nothing() -> None:
    assert exchanges("taskres", 1) == (0, 0)
