"""What devices exchange in a training step, read from the compiled program."""

import pytest

from clipbias.training import mesh as meshes
from clipbias.training.exchanges import Exchange, exchanges
from clipbias.training.plan import step_arguments
from clipbias.training.step import train_step
from clipbias.tuning import Task
from clipbias.tuning.recipe import Recipe
from tools.benchmarks import model

RECIPE = Recipe(0.0025, 10, 1, 1e-5, 8, 0.9, 5e-4)
# Three layers: in a loop that runs once nothing could be seen.
CONFIG = model._geometry((48, 3, 2, 32, 8), (24, 3, 2), 16, vocabulary=512)


def of_a_step(method: str, devices: int) -> list[Exchange]:
    task = Task(model.random_clip(CONFIG), method, model.class_names(6), groups=devices)
    mesh = meshes.make_mesh(data=devices)
    return exchanges(train_step.lower(*step_arguments(task, RECIPE, rows=8, runs=1, mesh=mesh)).compile().as_text())


@pytest.mark.parametrize(("method", "count"), [("bias", 4), ("bias_by_kind", 4), ("taskres", 2)])
def test_nothing_is_exchanged_in_the_loop_over_layers(method: str, count: int) -> None:
    found = of_a_step(method, 4)
    assert len(found) == count and not any(one.looped for one in found)


def test_one_device_exchanges_nothing() -> None:
    assert of_a_step("taskres", 1) == []


def test_loops_are_seen_with_all_that_they_call() -> None:
    """An exchange in what a loop's body calls is in the loop, and one in what else the program calls is not."""
    program = """HloModule step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %x, f32[] %y)
}

%inner (p: f32[8,4]) -> f32[8,4] {
  ROOT %all-reduce.1 = f32[8,4]{1,0:T(8,128)} all-reduce(%p), channel_id=1, to_apply=%add
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %call.1 = f32[8,4]{1,0} call(%x), to_apply=%inner
}

%outer (p: bf16[16]) -> bf16[64] {
  ROOT %gathered = (bf16[16]{0}, bf16[64]{0}) all-gather-start(%p), dimensions={0}
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %loop = (s32[], f32[8,4]) while(%init), condition=%cond, body=%body
  %other = bf16[64]{0} async-start(%q), calls=%outer
  ROOT %both = (f32[2,3]{1,0}, f32[]) all-reduce(%a, %b), to_apply=%add
}
"""
    assert exchanges(program) == [
        Exchange("all-reduce", 8 * 4 * 4, looped=True),
        Exchange("all-gather", 64 * 2, looped=False),
        Exchange("all-reduce", 2 * 3 * 4 + 4, looped=False),
    ]
