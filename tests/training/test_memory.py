"""The plan of a step: the compiler's account, the ways from the fastest to the smallest, and their equal numbers."""

import contextlib
import logging
import subprocess
import sys
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.training import device, loop, memory, placement
from clipbias.training.device import Compute
from clipbias.training.memory import StepShape, class_program, training_program
from clipbias.training.progress import Progress
from clipbias.training.run import run_group
from clipbias.training.workdir import SweepPaths
from clipbias.tuning import Task
from clipbias.tuning import task as tasks
from clipbias.tuning.recipe import Recipe
from tests import helpers
from tests.training.conftest import TinySweep
from tools import benchmark as model

GIB = 1 << 30
RECIPE = Recipe(0.1, 1, 0, 0.1, 4, 0.9, 0.0)


@pytest.fixture(scope="module")
def deep() -> Clip:
    """The tiny geometry with eight blocks in each tower, so that what blocks keep is most of the memory."""
    return model.random_clip(model.geometry("tiny", layers=8))


@pytest.mark.long
def test_the_fastest_way_that_fits_is_chosen(deep, monkeypatch):
    monkeypatch.setattr(memory, "COUNTS", (1, 4))  # each is a program to compile
    task = Task(deep, "coop", model.class_names(400))

    def choose(limit: float, **options: Any) -> memory.MemoryPlan:
        monkeypatch.setattr(memory, "device_limit", lambda: int(limit))
        return memory.plan_step(task, RECIPE, StepShape(4, 1, placement.single_device()), Compute(**options))

    roomy = choose(100 * GIB)
    assert (roomy.remat, roomy.class_chunks, roomy.fits) == ("products", 1, True) and roomy.is_fastest
    tight = choose(0.9 * roomy.bytes / device.USABLE)
    assert tight.fits and tight.bytes < roomy.bytes and (tight.remat, tight.class_chunks) == ("half", 1)
    tighter = choose(0.5 * roomy.bytes / device.USABLE)
    assert tighter.fits and tighter.bytes < tight.bytes and (tighter.class_chunks > 1 or tighter.remat == "tokens")
    hopeless = choose(1)
    assert not hopeless.fits and hopeless.bytes <= tighter.bytes
    requested = choose(100 * GIB, remat="half", class_chunks=4)
    assert (requested.remat, requested.class_chunks) == ("half", 4)


def test_a_plan_counts_what_a_step_holds(deep):
    """At least weights, momentum and all that the backward pass reads, and in proportion to the images of all runs."""

    def needed(batch: int, runs: int = 1) -> int:
        task = Task(deep, "vpt", model.class_names(3))
        size = StepShape(batch, runs, placement.single_device())
        return memory.plan_step(task, RECIPE, size, Compute(remat="products")).bytes

    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(deep.params))
    geometry = deep.config.vision
    # Of each image and block: the attention's input, queries, keys, values and output, and the MLP's two layers.
    tokens = (1 + geometry.patches + 4) * (5 * geometry.width + geometry.mlp_width) * 4 * (geometry.layers - 1)
    small, large = needed(16), needed(32, runs=2)
    assert small > weights + 16 * tokens
    assert 0.9 * 48 * tokens < large - small < 3 * 48 * tokens


def test_the_first_layer_alone_is_planned_as_it_is_trained(deep):
    """An empty set of prompts is no axis of images."""
    task = Task(deep, "ivlp", model.class_names(3), depth=1)
    step = training_program(task, RECIPE, StepShape(4, 1, placement.single_device(), images=12))
    planned = jax.tree.map(lambda leaf: leaf.shape[1:], step.arguments[2].learnables)
    assert planned == jax.tree.map(lambda leaf: leaf.shape, task.shapes)
    assert planned["text_prompts"][0] == 0


@pytest.mark.long
@pytest.mark.parametrize("method", ["vpt", "coop"])
def test_nothing_is_compiled_twice(colours, recipe, tmp_path, caplog, method):
    # Of sizes that no other test has, so that nothing is compiled already.
    helpers.tiny_checkpoint(tmp_path / "model", vision=(20, 2, 2), text=(28, 2, 2))
    tiny = TinySweep(clipbias.load(tmp_path / "model"), colours, recipe, tmp_path / "sweep")
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax._src.dispatch"):
        tiny.rows(method, seeds=(1,))
    compiled = [record.getMessage() for record in caplog.records if "Finished XLA compilation" in record.getMessage()]
    fixed = method == "vpt"  # texts that no learnable changes are encoded before, once for training and evaluation
    for name in ("train_step", *([] if fixed else ["text_features"]), "image_features"):
        assert sum(f"jit({name})" in message for message in compiled) == 1, name


def test_an_ensemble_is_encoded_in_parts(clip, monkeypatch):
    names = model.class_names(20)
    templates = ("a photo of a {}.", "a drawing of the {}.", "{}")
    whole = Task(clip, "zero_shot", names, templates=templates)
    monkeypatch.setattr(tasks, "TEXTS_AT_ONCE", 7)
    parts = Task(clip, "zero_shot", names, templates=templates)
    assert (whole.classifier.class_chunks, parts.classifier.class_chunks) == (1, 9)
    features = [task.text_input(clip.params, {}) for task in (whole, parts)]
    np.testing.assert_allclose(*features, rtol=1e-5, atol=2e-6)
    learned = Task(clip, "coop", names)
    assert learned.classifier.class_chunks == 1


@pytest.mark.ci
def test_class_features_are_computed_in_parts_where_they_do_not_fit(deep, monkeypatch):
    task = Task(deep, "coop", model.class_names(100))
    options: dict[str, Any] = dict(runs=3, mesh=placement.single_device())

    def class_bytes(task: Task) -> int:
        return device.needed_bytes(class_program(task, **options).lower())

    monkeypatch.setattr(memory, "device_limit", lambda: 100 * GIB)
    whole = memory.fit_evaluation(task, **options)
    needed = class_bytes(whole)
    monkeypatch.setattr(memory, "device_limit", lambda: int(0.7 * needed / device.USABLE))
    parts = memory.fit_evaluation(task, **options)
    assert whole.classifier.class_chunks == 1 and parts.classifier.class_chunks > 1
    assert class_bytes(parts) < 0.7 * needed


def test_the_plan_comes_before_the_first_step_and_exhaustion_names_the_settings(
    clip, colours, recipe, tmp_path, monkeypatch, capsys
):
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5 bytes.")
    monkeypatch.setattr(loop, "train_step", mock.Mock(side_effect=error))
    tiny = TinySweep(clip, colours, recipe, tmp_path, compute=Compute(trackers=(), eval_batch_size=8, class_chunks=2))
    specs = tuple(tiny.specs("taskres", seeds=(1,)))
    paths = SweepPaths(tmp_path, {}, single=True)
    said = r"out of memory; a step needs about .*lower --config.batch_size"
    with pytest.raises(ClipbiasError, match=said) as caught, contextlib.closing(Progress(title="taskres")) as bar:
        run_group(specs, tiny.context, paths, recipe, bar)
    assert "2 class chunks" in str(caught.value)
    assert "memory: about" in capsys.readouterr().err


def test_other_errors_of_the_device_pass():
    with pytest.raises(jax.errors.JaxRuntimeError), device.explain_exhaustion("x"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


# What is set up where steps run on the CPU, and where compiled programs are kept


def test_the_code_generator_is_chosen_unless_the_user_did(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    device.choose_code_generator()
    assert device.os.environ["XLA_FLAGS"] == "--xla_dump_to=x --xla_cpu_use_fusion_emitters=false"
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=true")
    device.choose_code_generator()
    assert device.os.environ["XLA_FLAGS"] == "--xla_cpu_use_fusion_emitters=true"
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "__version_info__", (9, 9, 9))  # which was not tried
    device.choose_code_generator()
    assert device.os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize(
    ("configured", "switched_off", "kept_in"),
    [(None, "", "own/clipbias/xla"), (None, "1", None), ("elsewhere", "", "elsewhere")],
)
def test_programs_are_kept_unless_told_otherwise(
    configured, switched_off, kept_in, tmp_path, monkeypatch, cache_settings
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("CLIPBIAS_NO_CACHE", switched_off)
    cache_settings(None if configured is None else str(tmp_path / configured))
    device.keep_programs()
    setting = cache_settings(None)
    assert setting == (None if kept_in is None else str(tmp_path / kept_in))
    assert (tmp_path / "own").exists() == bool(kept_in and kept_in.startswith("own"))


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(device.ctypes, "CDLL", mock.Mock(side_effect=OSError))
    assert device.keep_freed_memory() is False


STEPS = """
from clipbias.training import device
device.prepare_cpu()
import jax, jax.numpy as jnp

@jax.jit
def step(x):
    return jax.lax.fori_loop(0, 40, lambda _, y: jnp.tanh(y @ x), x)  # many times as long as a call takes

x = step(jnp.full((256, 256), 0.01)).block_until_ready()
for _ in range(5):
    x = step(x)
    print(x.is_ready())
"""


@pytest.mark.ci
def test_a_step_is_over_when_its_call_returns():
    """So that the next one finds the memory of its intermediate arrays free."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 5
