"""Absent devices: their names, what is planned for them, the exchanges of a program, and what a dry run says.

That their own compilers take the programs is tested in `tests/accelerators`, which needs them installed.
"""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from clipbias.clip import Clip
from clipbias.clip.precision import Target, away, target
from clipbias.data import Dataset
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.ahead import CHIPS, Exchange, Topology, describe, describe_exchanges, exchanges, open_topology
from clipbias.training.device import Compute, device_limit
from clipbias.training.job import TrainJob
from clipbias.training.run import make_job
from clipbias.training.spec import make_groups
from clipbias.tuning import Recipe
from tests.training.sweeps import TinySweep
from tests.training.test_mesh import devices

RECIPE = Recipe(0.0025, 10, 1, 1e-5, 8, 0.9, 5e-4)


@pytest.mark.parametrize(("name", "extra"), [("v6e:2x2", "tpu"), ("h100:1x1x1", "cuda12")])
def test_a_compiler_that_is_not_installed(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ClipbiasError, match=rf"pip install 'jax\[{extra}\]=={jax.__version__}'"):
        open_topology(name)


def test_programs_are_planned_for_the_other_device_and_then_again_for_this_one():
    device = target()
    answer = cudnn.check_cudnn_version
    chip = CHIPS["h100"]
    with pytest.raises(KeyboardInterrupt), Topology("h100:1x1x1", chip, []):
        assert target() == away() == chip.target and target().platform == "gpu"
        assert device_limit() == chip.memory
        assert cudnn.check_compute_capability("9.0") and not cudnn.check_compute_capability("10.0")
        assert cudnn.check_cudnn_version() > 90000
        raise KeyboardInterrupt
    assert away() is None and target() == device and device.platform == "cpu"
    assert cudnn.check_cudnn_version is answer
    with Topology("v5e:4x4", CHIPS["v5e"], []):  # a TPU has no cuDNN
        assert target() == Target("tpu", 0.0, CHIPS["v5e"].memory)
        assert cudnn.check_compute_capability.__module__ == cudnn.__name__


def test_a_topology_says_how_many_hosts_it_has():
    name = str(Topology("v5e:2x4", CHIPS["v5e"], devices(2, 4)))
    assert name == "v5e:2x4, 8 x TPU v5e on 2 hosts"


def test_loops_are_seen_with_all_that_they_call():
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
    exchanged = [Exchange("all-reduce", 1_000_000, False), Exchange("all-reduce", 500_000, True)]
    assert describe_exchanges(exchanged) == "2 all-reduces of 1.5 MB, 1 in a loop"
    assert describe_exchanges([Exchange("all-gather", 20_000, False)]) == "1 all-gather of 20 kB, none in a loop"
    assert describe_exchanges([]) == "nothing exchanged"


def job_of(
    clip: Clip, colours: Dataset, folder: Path, name: str, seeds: tuple[int, ...] = (1,), **compute: Any
) -> TrainJob:
    """Of twelve images, on all devices."""
    mesh = meshes.make_mesh(run=1, data=8)
    tiny = TinySweep(clip, colours, RECIPE, folder, mesh=mesh, compute=Compute(eval_batch_size=8, **compute))
    (group,) = make_groups(tiny.specs(name, shots=(4,), seeds=seeds))
    return make_job(group, tiny.context)


@pytest.mark.parametrize(
    ("name", "programs"),
    [
        ("zero_shot", ["image_features", "outcomes"]),
        pytest.param(
            "two_stage",
            ["train_step", "train_step", "image_features", "text_features", "outcomes"],
            marks=pytest.mark.long,
        ),
        ("tip_adapter", ["frozen_features", "image_features", "outcomes"]),
    ],
)
def test_every_stage_and_what_is_computed_once_have_their_programs(clip, colours, tmp_path, name, programs):
    lines = describe(job_of(clip, colours, tmp_path, name))
    assert [line.split(":")[0] for line in lines if "per device (" in line] == programs
    assert ("no training steps" in lines) == (name != "two_stage")
