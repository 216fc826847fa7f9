"""Absent devices: their names, what is planned and lowered for them, the exchanges of a program; and half precision.

That their own compilers take the programs is tested in `tests/accelerators`, which needs them installed. What a program
is made of depends on what its method adds to the towers and on the hooks that it has. Steps are lowered in half
precision for NVIDIA GPUs, since cuDNN has conditions of its own.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from scipy.spatial import distance

from clipbias.analysis.model import additions
from clipbias.clip import Clip, layers
from clipbias.clip.precision import AWAY, Target, cast_weights, target
from clipbias.errors import ClipbiasError
from clipbias.training import memory, placement
from clipbias.training.ahead import (
    CHIPS,
    Exchange,
    describe,
    exchanges,
    open_topology,
    traced_for,
)
from clipbias.training.device import device_limit
from clipbias.training.memory import StepShape, training_program
from clipbias.training.run import make_job
from clipbias.training.spec import make_groups
from clipbias.tuning import Task, make_method
from clipbias.tuning.features import Sampling
from clipbias.tuning.method import sampling_of
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import METHODS
from tests.training.conftest import TinySweep
from tools import benchmark as model

LONG = pytest.mark.long


def test_a_compiler_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ClipbiasError, match=rf"pip install 'jax\[tpu\]=={jax.__version__}'"):
        open_topology("v6e:2x2")


def test_programs_are_planned_for_the_other_device_and_then_again_for_this_one():
    device = target()
    answer = cudnn.check_cudnn_version
    chip = CHIPS["h100"]
    with pytest.raises(KeyboardInterrupt), traced_for(chip.target):
        assert target() == AWAY.get() == chip.target and target().platform == "gpu"
        assert device_limit() == chip.memory
        assert cudnn.check_compute_capability("9.0") and not cudnn.check_compute_capability("10.0")
        assert cudnn.check_cudnn_version() > 90000
        raise KeyboardInterrupt
    assert AWAY.get() is None and target() == device and device.platform == "cpu"
    assert cudnn.check_cudnn_version is answer
    with traced_for(CHIPS["v5e"].target):  # a TPU has no cuDNN
        assert target() == Target("tpu", 0.0, CHIPS["v5e"].memory)
        assert cudnn.check_compute_capability.__module__ == cudnn.__name__


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


@pytest.mark.parametrize(
    ("name", "programs"),
    [
        pytest.param("two_stage", [*["train_step"] * 2, "image_features", "text_features", "outcomes"], marks=LONG),
        ("tip_adapter", ["frozen_features", "image_features", "outcomes"]),
    ],
)
def test_every_stage_and_what_is_computed_once_have_their_programs(clip, colours, tmp_path, name, programs):
    """Of a run on twelve images, on all devices."""
    tiny = TinySweep(clip, colours, RECIPE, tmp_path, mesh=placement.make_mesh(run=1, data=8))
    (group,) = make_groups(tiny.specs(name, shots=(4,), seeds=(1,)))
    lines = describe(make_job(group, tiny.context))
    assert [line.split(":")[0] for line in lines if "per device (" in line] == programs
    assert ("no training steps" in lines) == (name != "two_stage")


RECIPE = Recipe(0.1, 1, 0, 0.1, 4, 0.9, 0.0)
NAMES = ["red", "a green one", "blue"]
TARGETS = {"cuda": Target("gpu", capability=9.0), "tpu": Target("tpu")}
BOTH = tuple(TARGETS)
CUDNN = "__cudnn$fmhaSoftmax"
CUDNN_BACKWARD = "__cudnn$fmhaSoftmaxBackward"


# One name of each trained method, not its presets; and prompts in both towers, no tower in a step, and no gradient in a
# tower, which stand for all in what a method adds to the towers.
TRAINED = [
    next(iter(vars(kind)["presets"])) for kind in dict.fromkeys(kind for kind, _ in METHODS.values()) if kind.trains
]
FEW = ("maple", "prolip", "taskres")


@pytest.fixture(scope="module")
def small() -> Clip:
    """One head of a width that cuDNN has kernels for in each tower, and an odd number of tokens of an image."""
    config = model.geometry("tiny", layers=3)  # the first and the last block may lie outside the loop
    towers = {
        name: dataclasses.replace(getattr(config, name), width=16, heads=1, mlp_width=16) for name in ("vision", "text")
    }
    config = dataclasses.replace(config, **towers)
    assert config.vision.patches % 2 == 0
    return model.random_clip(config)


@contextlib.contextmanager
def on(platform: str | None) -> Iterator[None]:
    """Traced as on an accelerator; what is so traced must have shapes of its own (`traced_for`)."""
    with contextlib.nullcontext() if platform is None else traced_for(TARGETS[platform]):
        yield


def steps(clip: Clip, name: str, dtype: str, *, runs: int, rows: int = 4) -> list[memory.Program]:
    """The training step of each of a method's stages."""
    size = memory.StepShape(rows, runs, placement.single_device(), images=12)
    step_programs = []
    for method, recipe in make_method(name).stages(make_method(name).recipe_for(RECIPE, 4)):
        step_programs.append(memory.training_program(Task(clip, method, NAMES, dtype=dtype), recipe, size))
    return step_programs


def lowered(program: memory.Program, *platforms: str) -> str:
    return program.function.trace(*program.arguments).lower(lowering_platforms=platforms).as_text()


@pytest.mark.ci
@pytest.mark.parametrize("names", [FEW, pytest.param(TRAINED, marks=LONG)], ids=["few", "all"])
def test_half_precision_on_an_nvidia_gpu_goes_through_its_kernels(small, names):
    """Forward and backward, with odd and even numbers of tokens, of runs side by side."""
    for name in names:
        with on("cuda"):
            text = "".join(lowered(program, "cuda") for program in steps(small, name, "bfloat16", runs=3))
        task = Task(small, name, NAMES)
        on_features = sampling_of(task.method) is not None  # no tower runs
        assert (CUDNN in text) != on_features, name
        assert (CUDNN_BACKWARD in text) >= (additions(task).changes_vision and not on_features), name


@pytest.mark.ci
@pytest.mark.parametrize(
    ("dtype", "platform", "more"),
    [("bfloat16_3x", "tpu", 0), pytest.param("tensorfloat32", "cuda", 2, marks=LONG)],
)
def test_types_in_the_middle_are_lowered_for_the_devices_that_have_them(small, dtype, platform, more):
    """Steps of runs side by side, and an evaluation: products of float32 numbers, formed as the type says."""
    with on(platform):
        task = Task(small, "ivlp", NAMES, dtype=dtype)
        lowerings = memory.evaluation_programs(task, batch=4, runs=3, mesh=placement.single_device())
        lowerings += [program for name in ("ivlp", *FEW[:more]) for program in steps(small, name, dtype, runs=3)]
        for program in lowerings:
            text = lowered(program, platform)
            formed = set(re.findall(r"dot_general.*precision = \[(\w+), \w+\]", text))
            assert formed <= {"HIGH", "HIGHEST"} and text.count("dot_general") == text.count("precision = ["), program
            assert "bf16" not in text and CUDNN not in text, program.name
            assert "HIGH" in formed or program.name == "outcomes", program.name


def test_frozen_features_are_lowered_for_gpus_and_tpus(small):
    for dtype, projected in (("float32", True), ("bfloat16", False)):
        task = Task(small, "zero_shot", NAMES, dtype=dtype)
        sampling = Sampling(projected=projected)
        program = memory.features_program(task, sampling, batch=4, mesh=placement.single_device())
        assert ("bf16" in lowered(program, *BOTH)) == (dtype == "bfloat16")


def test_no_block_of_an_evaluation_runs_ahead_of_its_loop(small: Clip) -> None:
    def products(method: str) -> int:
        task = Task(small, method, NAMES)
        first, *_ = memory.evaluation_programs(task, batch=2, runs=1, mesh=placement.single_device())
        return first.lower().as_text().count("dot_general")

    assert products("bias") == products("zero_shot")


SIZES = (1e-3, 3e-3)  # of the noise by which learnables are moved, as training moves them


@contextlib.contextmanager
def cudnn_kernels() -> Iterator[None]:
    """Attention of images as on an NVIDIA GPU: in half precision but for the row that is read out."""
    attend = functools.partial(layers.read_out_exactly, implementation="xla")
    with (
        mock.patch.object(layers, "cudnn_takes", return_value=True),
        mock.patch.object(layers, "read_out_exactly", attend),
    ):
        yield


def changes(method: str, dtype: str) -> list[np.ndarray]:
    """How the logits change with the learnables' size, and the gradient at the smallest, as one vector."""
    clip = model.random_clip(model.geometry("tiny"))
    draw = np.random.default_rng(1)
    task = Task(clip, method, model.class_names(6), dtype=dtype)
    images = clip.preprocessing.normalize(model.random_images(clip.config, 4))
    labels = np.arange(4)
    start = task.init(0)
    noise = jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape, np.float32), start)

    def moved(size: float) -> Any:
        return jax.tree.map(lambda leaf, other: jnp.asarray(leaf + size * other), start, noise)

    logits = jax.jit(lambda params, learnables: task.logits(params, learnables, images))
    gradient = jax.jit(jax.grad(lambda learnables, params: task.loss(params, learnables, images, labels)))
    zero, *at = (np.asarray(logits(clip.params, moved(size))) for size in (0.0, *SIZES))
    leaves = jax.tree.leaves(gradient(moved(SIZES[0]), clip.params))
    return [*(value - zero for value in at), np.concatenate([np.ravel(leaf) for leaf in leaves])]


@LONG
@pytest.mark.parametrize("method", ["bias", "ivlp"])
def test_what_is_learned_shows_as_in_float32(method):
    """Without the second part of the tokens a change of a thousandth would hardly be seen (cosine below 0.9)."""
    exact = changes(method, "float32")

    def cosines(changed: Any) -> list[float]:
        """One minus scipy's cosine distances."""
        with changed:
            half = changes(method, "bfloat16")
        return [1 - distance.cosine(*map(np.ravel, pair)) for pair in zip(half, exact, strict=True)]

    assert min(cosines(contextlib.nullcontext())) > 0.995
    if method == "bias":
        assert min(cosines(cudnn_kernels())) > 0.995
        assert cosines(mock.patch.object(layers, "in_two_parts", layers._in_one))[0] < 0.9


def test_a_product_in_two_parts_and_its_gradients():
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 64), (5, 48)))
    kernel = jnp.asarray(rng.normal(size=(64, 48)), jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(jax.jit(layers.multiply)(x, kernel), exact, atol=3e-4)  # 16 bits of numbers up to 3
    assert np.abs(layers._in_one(x, kernel) - exact).max() > 3e-3
    of_x, of_kernel = jax.grad(lambda *args: (layers.multiply(*args) * weight).sum(), argnums=(0, 1))(x, kernel)
    np.testing.assert_allclose(of_x, weight @ kernel.astype(jnp.float32).T, atol=0.2)  # of numbers up to 20
    np.testing.assert_allclose(of_kernel.astype(jnp.float32), x.T @ weight, atol=0.1)
    change = jax.jvp(lambda y: layers.multiply(y, kernel), (x,), (x,))[1]
    np.testing.assert_allclose(change, exact, atol=0.2)


@pytest.mark.ci
def test_a_step_takes_two_products_forward_and_one_back():
    clip = model.random_clip(model.geometry("tiny", layers=8))
    recipe = Recipe(0.1, 1, 0, 0.1, 4, 0.9, 0.0)
    counts = {}
    for dtype in ("float32", "bfloat16"):
        task = Task(clip, "ivlp", ["red", "blue"], dtype=dtype)
        step = training_program(task, recipe, StepShape(4, 1, placement.single_device()))
        counts[dtype] = model.traced(step.function, *step.arguments)
    assert 1.3 < counts["bfloat16"] / counts["float32"] < 1.52


@pytest.mark.ci
def test_what_the_backward_pass_keeps_of_hidden_units_is_in_half_precision():
    clip = model.random_clip(model.geometry("tiny", layers=4))
    task = Task(clip, "ivlp", ["red", "blue"], dtype="bfloat16")
    images = jnp.zeros((2, 32, 32, 3))
    params = cast_weights(clip.params, "bfloat16")
    gradient = jax.grad(lambda learned: task.loss(params, learned, images, jnp.zeros(2, int)))
    jaxpr = jax.make_jaxpr(gradient)(task.init(0))
    stacked = [str(v.aval) for eqn in jaxpr.eqns if eqn.primitive.name == "scan" for v in eqn.outvars]
    hidden = [kind for kind in stacked if kind.endswith(",256]") and "[3," in kind]  # of the vision tower
    assert hidden and all(kind.startswith("bfloat16") for kind in hidden), stacked
