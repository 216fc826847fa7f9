"""`tools.benchmark scaling`: exchanges of the compiled programs, counted work, the fit, the plan."""

import argparse
import json

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data.catalog import ENTRIES
from clipbias.training import evaluate, flops
from clipbias.training import mesh as meshes
from clipbias.training.loop import Run, place_text
from clipbias.tuning import Task
from tools import benchmark
from tools.benchmarks import cost_model, hardware, model, plan, processes, scaling
from tools.benchmarks.cost_model import Work
from tools.benchmarks.hlo import collectives

# Widths that differ from each other, and three layers: in a loop that runs once nothing could be seen.
CONFIG = model._geometry((48, 3, 2, 32, 8), (24, 3, 2), 16, vocabulary=512)
GIVEN = plan.Assumptions(0.4, 3e-6, 1e-3, 500.0, 250.0)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return model.random_clip(CONFIG)


def make_task(clip: Clip, method: str, classes: int, devices: int = 1, **options: int) -> Task:
    return Task(clip, method, model.class_names(classes), groups=devices, **options)


@pytest.mark.parametrize(
    ("method", "devices", "classes", "options"),
    [
        ("ivlp", 2, 6, {}),
        ("ivlp", 8, 21, {"depth": 2}),
        ("coop", 4, 9, {}),
        ("bias", 4, 6, {}),
        ("bias", 8, 6, {}),  # fewer classes than devices
        ("maple", 4, 6, {"depth": 2}),
        ("taskres", 2, 6, {}),
    ],
)
def test_exchanges_of_the_program_are_those_of_the_model(clip, method, devices, classes, options) -> None:
    task = make_task(clip, method, classes, devices, **options)
    step = scaling.ShardedStep(task, meshes.make_mesh(run=1, data=devices), 2 * devices)
    count, size = cost_model.exchanges(task)
    assert collectives(step.program.as_text()) == {"all-reduce": {"count": count, "bytes": size, "in_loops": 0}}


def test_one_device_exchanges_nothing(clip) -> None:
    task = make_task(clip, "bias", 6)
    step = scaling.ShardedStep(task, meshes.single_device(), 4)
    assert collectives(step.program.as_text()) == {}
    assert cost_model.training_step(task, 4).exchanges == 0


def test_evaluation_exchanges_class_features_once_and_two_counts_per_batch(clip) -> None:
    mesh, task = meshes.make_mesh(run=1, data=4), make_task(clip, "bias", 6, 4)
    params = meshes.replicate(mesh, clip.params)
    start = jax.tree.map(lambda leaf: np.asarray(leaf)[None], task.init(0))
    learnables = meshes.place(mesh, start, meshes.RUN)
    text, _ = place_text(mesh, [Run(task, scaling.NO_IMAGES, 0)], params, start)
    images = meshes.place_rows(mesh, model.random_images(CONFIG, 8))

    def of(function, *arguments, **options) -> dict:
        return collectives(function.lower(*arguments, **options).compile().as_text())

    classes = of(evaluate.class_features, task.classifier, params, learnables, text, runs=1)
    assert classes == {"all-reduce": {"count": 1, "bytes": 4 * 6 * 16, "in_loops": 0}}
    assert of(evaluate.image_features, task.classifier, clip.preprocessing, params, learnables, images, runs=1) == {}


def test_collectives_count_as_often_as_their_loop_runs() -> None:
    hlo = """
    %body (p: f32[4,8]) -> f32[4,8] {
      %a = f32[4,8]{1,0} all-reduce(%x), replica_groups={}, to_apply=%add
    }
    %branch (p: f32[2]) -> f32[2] {
      %d = f32[2]{0} all-reduce(%x), replica_groups={}
    }
    ENTRY %main (p: f32[4]) -> f32[4] {
      %b = (f32[2]{0}, bf16[3]{0}) all-gather-start(%y, %z), dimensions={0}
      %w = f32[4,8]{1,0} while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"11"}}
      %e = f32[2]{0} conditional(%i, %j), branch_computations={%branch, %other}
    }
    """
    expected = {
        "all-gather": {"count": 1, "bytes": 14, "in_loops": 0},
        "all-reduce": {"count": 12, "bytes": 11 * 128 + 8, "in_loops": 1},
    }
    assert collectives(hlo) == expected


@pytest.mark.parametrize("method", ["ivlp", "bias", "vpt", "taskres"])
def test_work_is_divided(clip, method) -> None:
    one = cost_model.training_step(make_task(clip, method, 16), 8)
    assert one.flop == one.all_flop == flops.step(make_task(clip, method, 16), 8)
    four = cost_model.training_step(make_task(clip, method, 16, 4), 8, 4)
    # Each device computes its own images and classes, and the tokens that all classes share.
    assert one.flop <= four.all_flop < 1.3 * one.flop
    assert four.all_flop / 4 <= four.flop < 0.4 * one.flop


def test_a_ring() -> None:
    assert cost_model.all_reduce_seconds(4, 800.0, 1, link=100.0, hop_seconds=1.0) == 0
    # Six hops for each of four exchanges; three quarters of 800 bytes out, and again back.
    assert cost_model.all_reduce_seconds(4, 800.0, 4, link=100.0, hop_seconds=1.0) == pytest.approx(24 + 12)


def test_the_fit_finds_what_the_points_were_made_of() -> None:
    points = []
    for devices in (1, 2, 4, 8):
        for scale in (1.0, 3.0):
            size = 0 if devices == 1 else int(1e6 * scale**2)
            work = Work(0, int(scale * (1e9 + 1e7 * devices)), 4, size, 8)
            seconds = 2e-3 + 1e-3 * (devices - 1) + work.all_flop / 1e11 + devices * size / 1e9
            points.append((devices, work, seconds))
    fitted = cost_model.fit(points)
    np.testing.assert_allclose(fitted.coefficients, (2e-3, 1e-3, 1e-11, 1e-9), rtol=1e-6)
    np.testing.assert_allclose(fitted.residuals, 0, atol=1e-8)
    assert fitted.flop_per_second == pytest.approx(1e11)


def test_limits_of_a_step() -> None:
    work = Work(flop=10**12, all_flop=8 * 10**12, exchanges=4, exchanged_bytes=4 * 10**6, images=32)
    parts = plan.step_time(work, hardware.H100, 8, 1, GIVEN)
    assert parts.compute == pytest.approx(1e12 / (0.4 * 989e12))
    assert parts.collectives == pytest.approx(14 * (4 * 3e-6 + 4e6 / 8 / 450e9))
    assert parts.input == pytest.approx(32 / (16 * 500))
    assert (parts.limit, parts.seconds) == ("input", parts.input)
    alone = plan.step_time(work, hardware.H100, 8, 8, GIVEN)  # eight runs, each on one device
    assert alone.collectives == 0 and alone.input == pytest.approx(8 * parts.input)


def test_table1_is_counted_cell_by_cell() -> None:
    clip = plan.bare_clip("ViT-B/32")
    config = plan.table1.get_config()
    entry = ENTRIES["eurosat"]  # ten classes: 40, 80 and 160 images, so 1, 2 and 5 steps in each of ten epochs
    cells = plan.dataset_cells(clip, "vpt", "eurosat", config, {})
    assert cells.steps == 80
    assert cells.augmented == 3 * 80 * 32
    task = Task(clip, "vpt", model.class_names(10))
    assert cells.training == 3 * 80 * flops.step(task, 32)
    images = 9 * flops.vision(clip.config, entry.test, prompts=4)
    assert 1 < cells.evaluation / images < 1.01  # and the texts
    assert plan.dataset_cells(clip, "zero_shot", "eurosat", config, {}).training == 0
    assert plan.hours(cells, 1e15, GIVEN, 16, apart=True) < plan.hours(cells, 1e15, GIVEN, 16, apart=False)


def test_the_command_measures_fits_and_plans(capsys, monkeypatch) -> None:
    """In this process instead of one per number of devices."""

    def child(code: str, **_: str) -> str:
        if "DEVICES" in processes._SCALING and "sharded_steps" in code:
            names = {"json": json, "jax": argparse.Namespace(config=argparse.Namespace(update=lambda *_: None))}
            exec(code.replace("import json\nimport jax\n", ""), names)
            return capsys.readouterr().out
        return json.dumps({"cached": 500.0, "decoded": 250.0})

    monkeypatch.setattr(processes, "child", child)
    arguments = ["scaling", "--geometry=tiny", "--method=coop", "--classes=6", "--batch=4", "--repeats=1"]
    assert benchmark.main([*arguments, "--devices", "2", "--plan-classes", "10"]) == 0
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    assert [point["devices"] for point in result["points"]] == [1, 1, 1, 2, 2, 2]
    for point in result["points"]:
        assert point["loss"] > 0
    assert len(result["residuals"]) == 6
    assert sum("| TPU v5e-64 |" in line for line in printed) == 13  # one device, and two layouts of each larger number
    assert "simulated devices share this machine's" in " ".join(printed).lower()
