"""ViT-B/16 compiled for v5e-16 and v5e-256, or for one H100 and eight: what fits, and what is exchanged.

Whatever is compiled must fit the memory that programs have there, and exchange nothing in a loop over layers. Loops
over images, which only methods have whose texts depend on the image, exchange what each image's classes are; and rounds
that end for a batch together, whether they end. In half precision GPUs must be asked for cuDNN's attention.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.analysis.model import why_no_maps
from clipbias.analysis.relevancy import relevancy
from clipbias.clip import Clip
from clipbias.training import placement
from clipbias.training.ahead import Topology, exchanges, traced_for
from clipbias.training.device import USABLE, needed_bytes
from clipbias.training.memory import (
    Program,
    StepShape,
    evaluation_programs,
    features_program,
    fit_evaluation,
    plan_step,
    training_program,
)
from clipbias.tuning import Method, Recipe, Task, make_method
from clipbias.tuning.features import Sampling
from clipbias.tuning.method import sampling_of
from clipbias.tuning.registry import METHODS
from tests.accelerators.conftest import ACCELERATOR, ALL, TOPOLOGIES
from tools import benchmark as model

FIRSTS = [next(iter(vars(kind)["presets"])) for kind in dict.fromkeys(kind for kind, _ in METHODS.values())]
TRAINED = [name for name in FIRSTS if METHODS[name][0].trains]
# Of three kinds of code one: prompts of both towers, biases, and a head by itself.
SOME = ("ivlp", "bias_by_kind", "taskres")
DTYPES = ("bfloat16", "float32")
CLASSES = 100
BATCH = 32
SHOTS = 16

CASES = [
    (topology, name, dtype, 1)
    for number, topology in enumerate(TOPOLOGIES)
    for name in TRAINED
    for dtype in DTYPES
    if ALL or (number == 0 and name in SOME and (dtype == "bfloat16" or name == "ivlp"))
]
# Runs side by side whose images several devices share.
SEVERAL = {"tpu": "v5e:4x4", "gpu": "h100:1x1x8", "": ""}[ACCELERATOR]
CASES += [(SEVERAL, name, "bfloat16", 3) for name in TRAINED if ALL or name == "bias"]


def bind(clip: Clip, method, classes: int, dtype: str, mesh) -> Task:
    task = Task(clip, method, model.class_names(classes), dtype=dtype)
    return task.with_memory(class_shards=mesh.shape[placement.DATA])


def first_stage(name: str, batch: int) -> tuple[Method, Recipe]:
    """What a method trains first, and how: at this batch size, or its own where it has one."""
    common = Recipe(epochs=10)
    method = make_method(name)
    return method.stages(method.recipe_for(dataclasses.replace(common, batch_size=batch), SHOTS))[0]


def check(program: Program, topology: Topology, dtype: str, *, cudnn: bool, loops: bool = False) -> int:
    """What holds of every program, and how many exchanges it has; with `loops` there are some over images or rounds."""
    lowered = program.lower()
    text = lowered.compile().as_text()
    needed = needed_bytes(lowered)
    exchanged = exchanges(text)
    assert 0 < needed <= USABLE * topology.chip.memory, (program.name, needed)
    assert loops or not any(exchange.looped for exchange in exchanged), (program.name, exchanged)
    if ACCELERATOR == "gpu" and cudnn:
        assert ("__cudnn$fmha" in text) == (dtype == "bfloat16"), program.name
    return len(exchanged)


@pytest.mark.parametrize(("topology", "name", "dtype", "runs"), CASES)
def test_training_steps(clip, topologies, topology, name, dtype, runs):
    """The fastest way that the plan finds."""
    where = topologies[topology]
    method, recipe = first_stage(name, BATCH)
    mesh = placement.make_mesh(devices=where.devices)
    size = StepShape(recipe.batch_size, runs, mesh, images=SHOTS * CLASSES)
    jax.clear_caches()  # what was traced for another device
    with traced_for(where.chip.target):
        task = bind(clip, method, CLASSES, dtype, mesh)
        plan = plan_step(task, recipe, size)
        program = training_program(plan.apply(task), recipe, size)
        assert plan.fits and needed_bytes(program.lower()) == plan.bytes
        loops = method.conditional or name.startswith("plot")
        exchanged = check(program, where, dtype, cudnn=sampling_of(method) is None, loops=loops)
    if len(where.devices) > 1 and sampling_of(method) is None:
        assert exchanged


@pytest.mark.parametrize("name", FIRSTS if ALL else ("ivlp",))
def test_evaluations(clip, topologies, name):
    where = topologies[TOPOLOGIES[0]]
    mesh = placement.make_mesh(devices=where.devices)
    jax.clear_caches()
    with traced_for(where.chip.target):
        task = fit_evaluation(bind(clip, name, CLASSES, "bfloat16", mesh), runs=3, mesh=mesh)
        for program in evaluation_programs(task, batch=100, runs=3, mesh=mesh):
            loops = task.method.conditional and program.name == "outcomes"
            check(program, where, "bfloat16", cudnn=program.name == "image_features", loops=loops)
        sampling = Sampling()
        check(features_program(task, sampling, batch=112, mesh=mesh), where, "bfloat16", cudnn=True)


@pytest.mark.parametrize("name", SOME if ALL else ("ivlp",))
def test_another_family(siglip, topologies, name):
    """SigLIP's training step; with `ALL` its evaluation and relevancy too, which take minutes."""
    test_training_steps(siglip, topologies, TOPOLOGIES[0], name, "bfloat16", 1)
    if ALL:
        test_evaluations(siglip, topologies, name)
        test_relevancy(siglip, topologies, name)


@pytest.mark.parametrize("name", FIRSTS if ALL else ("ivlp",))
def test_relevancy(clip, topologies, name):
    """On one device, as explanations are computed."""
    where = topologies[TOPOLOGIES[0]]
    size = clip.config.vision.image_size
    mesh = placement.make_mesh(data=1, devices=where.devices[:1])
    task = bind(clip, name, CLASSES, "float32", mesh)
    if reason := why_no_maps(task):
        pytest.skip(reason)
    images = jax.ShapeDtypeStruct((8, size, size, 3), jnp.float32)
    arguments = placement.replicate(mesh, (placement.shapes(clip.params), task.shapes, images))
    jax.clear_caches()
    with traced_for(where.chip.target):
        program = Program("relevancy", jax.jit(lambda *args: relevancy(task, *args, np.arange(8))), arguments)
        check(program, where, "float32", cudnn=False)


def test_a_thousand_classes_on_many_devices(clip, topologies):
    """And many runs beside each other, split along the other axis of the mesh."""
    where = topologies[TOPOLOGIES[-1]]
    method, recipe = first_stage("ivlp", 256)
    runs = len(where.devices) // 4
    for run, count in ((1, 1), (runs, runs)):
        mesh = placement.make_mesh(run=run, devices=where.devices)
        size = StepShape(256, count, mesh, images=SHOTS * 1000)
        jax.clear_caches()
        with traced_for(where.chip.target):
            task = bind(clip, method, 1000, "bfloat16", mesh)
            plan = plan_step(task, recipe, size)
            assert plan.fits
            program = training_program(plan.apply(task), recipe, size)
            check(program, where, "bfloat16", cudnn=True)


def test_the_compiler_grants_the_memory_that_is_planned_with(topologies):
    """What does not fit a TPU is refused with the size of its memory."""
    if ACCELERATOR != "tpu":
        pytest.skip("the GPU's compiler plans without a limit")
    where = topologies[TOPOLOGIES[0]]
    alone = jax.sharding.SingleDeviceSharding(where.devices[0])
    matrix = jax.ShapeDtypeStruct((1 << 17, 1 << 17), jnp.float32, sharding=alone)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as refused:
        jax.jit(lambda a: a @ a).lower(matrix).compile()
    (limit,) = re.findall(r"available HBM \(([\d.]+)G\)", str(refused.value))
    assert float(limit) * 2**30 == pytest.approx(where.chip.memory, rel=1e-3)
