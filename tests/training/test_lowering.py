"""Every program is lowered for accelerators that are not there, which finds what does not trace or lower for them.

What a program is made of depends on what its method adds to the towers and on the hooks that it has. Each method's step
and evaluation is lowered. So many methods that everything is in one of them stand for the others where programs are
lowered a second way: steps in half precision for NVIDIA GPUs, where cuDNN has conditions of its own, and relevancy.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator

import jax
import pytest

from clipbias.clip import Clip
from clipbias.clip.precision import Target
from clipbias.explain.model import additions
from clipbias.training import memory
from clipbias.training import mesh as meshes
from clipbias.training.ahead import traced_for
from clipbias.tuning import Task, make_method
from clipbias.tuning.features import Sampling
from clipbias.tuning.method import sampling_of
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import METHODS
from tools import benchmark as model

RECIPE = Recipe(0.1, 1, 0, 0.1, 4, 0.9, 0.0)
NAMES = ["red", "a green one", "blue"]
TARGETS = {"cuda": Target("gpu", capability=9.0), "tpu": Target("tpu")}
BOTH = tuple(TARGETS)
CUDNN = "__cudnn$fmhaSoftmax"
CUDNN_BACKWARD = "__cudnn$fmhaSoftmaxBackward"


def firsts() -> list[str]:
    """One name of each method, not its presets."""
    return [next(iter(vars(kind)["presets"])) for kind in dict.fromkeys(kind for kind, _ in METHODS.values())]


# Prompts in both towers, no tower in a step, and no gradient in a tower; all that stand for all in a long test.
FEW = ("maple", "prolip", "taskres")
SOME = pytest.mark.parametrize("some", [FEW, pytest.param((), marks=pytest.mark.long)], ids=["few", "all"])
TRAINED = [name for name in firsts() if METHODS[name][0].trains]


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


def covering(clip: Clip, names: list[str], hooks: tuple[str, ...]) -> list[str]:
    """So many methods that whatever any of them adds to the towers, and every hook that one has, is in one of them."""
    names_covering = []
    covered = set()
    for name in reversed(names):
        task = Task(clip, name, NAMES)
        added = additions(task)
        parts = {field.name for field in dataclasses.fields(added) if getattr(added, field.name) is not None}
        parts |= {hook for hook in hooks if task.method.overrides(hook)}
        if not parts <= covered:
            covered |= parts
            names_covering.append(name)
    return names_covering


@contextlib.contextmanager
def on(platform: str | None) -> Iterator[None]:
    """Traced as on an accelerator; what is so traced must have shapes of its own (`traced_for`)."""
    with contextlib.nullcontext() if platform is None else traced_for(TARGETS[platform]):
        yield


def steps(clip: Clip, name: str, dtype: str, *, runs: int, rows: int = 4) -> list[memory.Program]:
    """The training step of each of a method's stages."""
    size = memory.StepShape(rows, runs, meshes.single_device(), images=12)
    step_programs = []
    for method, recipe in make_method(name).stages(make_method(name).recipe_for(RECIPE, 4)):
        step_programs.append(memory.training_program(Task(clip, method, NAMES, dtype=dtype), recipe, size))
    return step_programs


def lowered(program: memory.Program, *platforms: str) -> str:
    return program.trace().lower(lowering_platforms=platforms).as_text()


@pytest.fixture(scope="module")
def apart(small: Clip) -> list[str]:
    """Trained methods that stand for all in what they add and in the hooks of a step."""
    hooks = ("logits", "losses", "combine", "adapt_to", "adapt_in_training", "templates_in_training", "stages")
    return covering(small, TRAINED, hooks)


@pytest.mark.ci
@SOME
def test_half_precision_on_an_nvidia_gpu_goes_through_its_kernels(small, apart, some):
    """Forward and backward, with odd and even numbers of tokens, of runs side by side."""
    assert len(apart) > 8
    for name in some or apart:
        with on("cuda"):
            text = "".join(lowered(program, "cuda") for program in steps(small, name, "bfloat16", runs=3))
        task = Task(small, name, NAMES)
        on_features = sampling_of(task.method) is not None  # no tower runs
        assert (CUDNN in text) != on_features, name
        assert (CUDNN_BACKWARD in text) >= (additions(task).changes_vision and not on_features), name


@pytest.mark.ci
@pytest.mark.parametrize(("run", "runs"), [(2, 4), pytest.param(1, 3, marks=pytest.mark.long)])
def test_devices_attend_to_their_own_images(small, run, runs):
    """cuDNN's kernel is called with one device's images of its runs, in a step and in an evaluation."""
    mesh = meshes.make_mesh(run=run, devices=jax.devices()[:8])
    rows = 32
    images, together = rows // mesh.shape[meshes.DATA], runs // run
    task = Task(small, "bias", NAMES, dtype="bfloat16").with_memory(class_shards=mesh.shape[meshes.DATA])
    with on("cuda"):
        step = memory.training_program(task, RECIPE, memory.StepShape(rows, runs, mesh, images=64))
        (features, *_) = memory.evaluation_programs(task, batch=rows, runs=runs, mesh=mesh)
        texts = {program.name: lowered(program, "cuda") for program in (step, features)}
    for name, text in texts.items():
        calls = re.findall(r"custom_call @" + re.escape(CUDNN) + r"\w*\(.*\) \{.* : \(tensor<(\d+)x", text)
        # Runs evaluated side by side share what the first block computes: no bias was added yet.
        assert {images * together} <= {int(count) for count in calls} <= {images * together, images}, name
        assert len(calls) == text.count(f"@{CUDNN}") > 0, name
        assert (CUDNN_BACKWARD in text) == (name == step.name), name


@pytest.mark.ci
@pytest.mark.parametrize(
    ("dtype", "platform", "more"),
    [("bfloat16_3x", "tpu", 0), pytest.param("tensorfloat32", "cuda", 2, marks=pytest.mark.long)],
)
def test_types_in_the_middle_are_lowered_for_the_devices_that_have_them(small, apart, dtype, platform, more):
    """Steps of runs side by side, and an evaluation: products of float32 numbers, formed as the type says."""
    with on(platform):
        task = Task(small, "ivlp", NAMES, dtype=dtype)
        lowerings = memory.evaluation_programs(task, batch=4, runs=3, mesh=meshes.single_device())
        lowerings += [program for name in ("ivlp", *apart[:more]) for program in steps(small, name, dtype, runs=3)]
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
        program = memory.features_program(task, sampling, batch=4, mesh=meshes.single_device())
        assert ("bf16" in lowered(program, *BOTH)) == (dtype == "bfloat16")


def test_no_block_of_an_evaluation_runs_ahead_of_its_loop(small: Clip) -> None:
    def products(method: str) -> int:
        task = Task(small, method, NAMES)
        first, *_ = memory.evaluation_programs(task, batch=2, runs=1, mesh=meshes.single_device())
        return first.lower().as_text().count("dot_general")

    assert products("bias") == products("zero_shot")
