"""Devices that are not there: their names, what is planned for them, and what a dry run tells of their programs.

That their own compilers take the programs is tested in `tests/accelerators`, which needs them installed.
"""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from clipbias.clip import Clip
from clipbias.clip.target import Target, away, target, traced_for
from clipbias.data import Dataset
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training import plan
from clipbias.training.account import account, account_lines, pack_programs, told_bytes, told_exchanges
from clipbias.training.exchanges import Exchange
from clipbias.training.grid import Grid
from clipbias.training.packs import make_packs
from clipbias.training.settings import GridSettings
from clipbias.training.topology import CHIPS, Topology, open_topology
from clipbias.tuning.recipe import Recipe


@pytest.mark.parametrize("name", ["v5e", "v5e:4", "v5e:4x4x4", "h100:8", "a100:1x1x1", "", "v5p:2x2", ":"])
def test_what_is_no_topology(name: str) -> None:
    with pytest.raises(ClipbiasError, match=r"topology is .*; give .* such as v5e:4x4, v5p:2x2x2, v6e:4x4, h100:1x1x8"):
        open_topology(name)


@pytest.mark.parametrize(("name", "extra"), [("v6e:2x2", "tpu"), ("h100:1x1x1", "cuda12")])
def test_a_compiler_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ClipbiasError, match=rf"pip install 'jax\[{extra}\]=={jax.__version__}'"):
        open_topology(name)


def test_programs_are_planned_for_the_other_device_and_then_again_for_this_one() -> None:
    own, answer = target(), cudnn.check_cudnn_version
    chip = CHIPS["h100"]
    with pytest.raises(KeyboardInterrupt), traced_for(chip.target):
        assert target() == away() == chip.target and target().platform == "gpu"
        assert plan.device_limit() == chip.memory
        assert plan.device_rate("bfloat16") == chip.rates["bfloat16"]
        with pytest.raises(ClipbiasError, match="dtype is 'bfloat16_3x'; choose from bfloat16, tensorfloat32, float32"):
            plan.device_rate("bfloat16_3x")
        eight = meshes.make_mesh(data=8)
        assert plan.estimated_seconds(1000, 10, eight) == pytest.approx(1000 / 80 / plan.OTHER_SHARE)
        assert cudnn.check_compute_capability("9.0") and not cudnn.check_compute_capability("10.0")
        assert cudnn.check_cudnn_version() > 90000
        raise KeyboardInterrupt
    assert away() is None and target() == own and own.platform == "cpu"
    assert cudnn.check_cudnn_version is answer


def test_a_tpu_has_no_cudnn() -> None:
    with traced_for(CHIPS["v5e"].target):
        assert target() == Target("tpu", 0.0, CHIPS["v5e"].memory, CHIPS["v5e"].rates)
        assert not cudnn.check_compute_capability("8.0")


def test_exchanges_in_words() -> None:
    found = [Exchange("all-reduce", 1_000_000, False), Exchange("all-reduce", 500_000, True)]
    assert told_exchanges(found) == "2 all-reduces of 1.5 MB, 1 in a loop"
    assert told_exchanges([Exchange("all-gather", 20_000, False)]) == "1 all-gather of 20 kB, none in a loop"
    assert told_exchanges([]) == "nothing exchanged"
    assert [told_bytes(count) for count in (0, 999, 1_250_000_000)] == ["0 B", "999 B", "1.25 GB"]


@pytest.fixture
def grid(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> Grid:
    """Steps on eight devices that split each batch; with settings that are not the fastest."""
    settings = GridSettings({}, "float32", 8, 60.0, "raise", remat="tokens")
    mesh = meshes.make_mesh(run=1, data=8)
    return Grid(clip, recipe, settings, lambda name: colours, tmp_path, mesh=mesh)


def test_a_pack_is_told_program_by_program(grid: Grid) -> None:
    (pack,) = make_packs(["coop"], ["colours"], [4], [1, 2, 3, 4])
    lines = account_lines(grid.trainer, pack, devices=jax.devices())
    assert lines[0].strip() == "data=8: 1 of 8 images and 1 of 3 classes per device; run=1: 4 of 4 runs per device"
    told = [line.split(":")[0].strip() for line in lines[1:5]]
    assert told == ["train_step", "image_features", "text_features", "answers"]
    assert lines[5].strip() == "chosen: keeping tokens, classes in 1 part, images in 1 part, 4 runs side by side"
    assert lines[6].startswith("  instead: remat=auto, class_chunks=0 and micro_batch=0 would take: about")
    # Two devices for each run, whose classes then share what comes before their names, instead of eight for all.
    assert lines[7].startswith("  instead: mesh.run=4 would take ") and lines[7].endswith("per device (8 devices)")
    assert len(lines) == 8


def test_the_account_is_the_compilers(grid: Grid) -> None:
    """Of the very programs that a run calls: those of a run are not compiled again."""
    (pack,) = make_packs(["vpt"], ["colours"], [4], [1, 2])
    draws = grid.trainer.cache.plans(pack)
    _, _, planned = grid.trainer.prepare(pack, draws)
    assert planned is not None
    found = {program.name: account(program) for program in pack_programs(grid.trainer, pack, draws)}
    step = found["train_step"]
    assert step.bytes == planned.bytes and step.program.flop > 0
    assert min(step.arguments, step.temporaries) > 0
    assert [one.kind for one in step.exchanged] and not any(one.looped for one in step.exchanged)


def test_a_topology_says_how_many_hosts_it_has() -> None:
    @dataclasses.dataclass
    class Device:
        process_index: int

    name = str(Topology("v5e:2x4", CHIPS["v5e"], [Device(number // 4) for number in range(8)]))
    assert name == "v5e:2x4, 8 x TPU v5e on 2 hosts"
