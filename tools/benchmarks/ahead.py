"""Methods' programs for accelerators that are not there: what their compilers plan, and the arithmetic of a table.

Weights are pages of zeros that nobody writes to: nothing is computed.
"""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from clipbias.training.account import account, chosen, told_exchanges
from clipbias.training.plan import OTHER_SHARE, REMATS, needed_bytes, plan_step
from clipbias.training.topology import Topology, open_topology
from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.clip.params import empty_params
from clipbias.data.catalog import ENTRIES
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.programs import evaluation_programs, training_program
from clipbias.tuning import Method, Recipe, Task, make_method
from clipbias.tuning.registry import METHODS
from configs import table1 as table1_config
from tools.benchmarks import compiled, model, relevancy_ways
from tools.benchmarks.report import markdown

SHOTS = 16


def empty_clip(geometry: str, *, layers: int = 0) -> Clip:
    """A model of a geometry whose weights are zeros that take no memory."""
    config = model.geometry(geometry, layers=layers)
    return relevancy_ways.clip_of(config, empty_params(config))


def first_stage(name: str, batch: int) -> tuple[Method, Recipe]:
    """What a method trains first, and how: at this batch size, or its own where it has one."""
    common = Recipe.from_config(table1_config.get_config())
    method = make_method(name)
    return method.stages(method.recipe_for(dataclasses.replace(common, batch_size=batch), SHOTS))[0]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is compiled of each method."""

    clip: Clip
    classes: int
    batch: int
    runs: int
    dtype: str

    def task(self, method: Method, mesh: Mesh, **memory: Any) -> Task:
        names = model.class_names(self.classes)
        return Task(self.clip, method, names, dtype=self.dtype, groups=mesh.shape[meshes.DATA], **memory)


def trained_methods() -> list[str]:
    """All that are trained: one of each kind first, then the others' presets."""
    names = [name for name in METHODS if METHODS[name][0].trains]
    firsts = {METHODS[name][0]: name for name in reversed(names)}
    return sorted(names, key=lambda name: firsts[METHODS[name][0]] != name)


def compile_methods(arguments: argparse.Namespace) -> dict[str, Any]:
    """A row per method: what the CPU's compiler says of its step, what the accelerator's says, and the plan's choice.

    With `arguments.rows` each is added to that file as it comes, and what is there is not compiled again.

    Raises:
      ClipbiasError: there is no such topology or method, its compiler is not installed, the file cannot be read or
        written, or a compiler refused some of the methods; the others were compiled.
    """
    topology = open_topology(arguments.topology)
    jax.config.update("jax_num_cpu_devices", len(topology.devices))
    clip = empty_clip(arguments.geometry, layers=arguments.layers)
    asked = Asked(clip, arguments.classes, arguments.batch, arguments.packed, arguments.dtype)
    facts: dict[str, Any] = {"topology": topology.name, "devices": str(topology), "compiler": topology.compiler}
    facts |= {"geometry": arguments.geometry, "layers": arguments.layers, "dtype": asked.dtype}
    facts |= {"classes": asked.classes, "batch": asked.batch, "runs": asked.runs, "run_axis": arguments.run_axis}
    points, refused = [], []
    compiled.keep(arguments.rows)  # to compile takes long: a file that cannot be written is told before
    kept = compiled.kept(arguments.rows, facts)
    for name in arguments.methods or trained_methods():
        if (point := kept.get(name)) is None:
            try:
                point = compile_method(asked, name, topology, run=arguments.run_axis)
            except jax.errors.JaxRuntimeError as error:
                refused.append(name)
                print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
                continue
            compiled.keep(arguments.rows, facts | point)
        points.append(point)
        print(markdown(HEADS, [line(point)]).splitlines()[-1], flush=True)
    if refused:
        raise ClipbiasError(f"the compiler refused {', '.join(refused)}, for the reasons above.")
    title = f"{arguments.classes} classes, batch {arguments.batch}, {arguments.packed} runs, {arguments.dtype}"
    print(markdown(HEADS, map(line, points)))
    return {"name": f"compiled for {topology.name}, {title}", **facts, "points": points}


def compile_method(asked: Asked, name: str, topology: Topology, *, run: int = 1) -> dict[str, Any]:
    """One method's training step, the first where it has several stages."""
    (trained, recipe), mesh = first_stage(name, asked.batch), meshes.make_mesh(run=run, devices=topology.devices)
    runs = meshes.filled(mesh, asked.runs)
    shared: dict[str, Any] = dict(rows=recipe.batch_size, runs=runs, images=SHOTS * asked.classes)
    began = time.perf_counter()
    with topology():
        task, plan = plan_step(functools.partial(asked.task, trained, mesh), recipe, mesh=mesh, **shared)
        step = account(training_program(task, recipe, mesh=mesh, parts=plan.parts, **shared))
        seconds = time.perf_counter() - began
        flop = step.program.flop
    # The same step by the compiler of this machine, on as many simulated devices.
    here = meshes.make_mesh(run=run, devices=jax.devices()[: len(topology.devices)])
    bound = asked.task(trained, here, remat=REMATS[plan.remat][0], chunks=plan.chunks)
    program = training_program(bound, recipe, mesh=here, parts=plan.parts, **shared)
    estimate = needed_bytes(program.function, *program.arguments, **program.options)
    return {
        "method": name,
        "estimate_bytes": estimate,
        "bytes": step.bytes,
        "argument_bytes": step.arguments,
        "temporary_bytes": step.temporaries,
        "output_bytes": step.output,
        "limit_bytes": topology.chip.memory,
        "fits": plan.fits,
        "remat": plan.remat,
        "chunks": plan.chunks,
        "parts": plan.parts,
        "chosen": chosen(plan, asked.runs),
        "exchanged": told_exchanges(step.exchanged),
        "flop": flop,
        "compile_seconds": seconds,
    }


HEADS = ("method", "estimate (GB)", "compiled (GB)", "of which temporaries", "chosen", "TFLOP", "exchanged in a step")


def line(point: dict[str, Any]) -> tuple[str, ...]:
    """One row of the table."""
    sizes = (f"{point[name] / 1e9:.2f}" for name in ("estimate_bytes", "bytes", "temporary_bytes"))
    return (point["method"], *sizes, point["chosen"], f"{point['flop'] / 1e12:.2f}", point["exchanged"])


@dataclasses.dataclass(frozen=True)
class Work:
    """Multiplications and additions of one method's cells of Table 1, all seeds of a pack together."""

    training: int
    evaluation: int
    steps: int
    programs: int


def table1(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arithmetic of Table 1 on a topology, method by method: traced with as many classes and images as it has.

    Class names are made up with ImageNet's lengths; prompts are those of most datasets.

    Raises:
      ClipbiasError: there is no such topology, or its compiler is not installed.
    """
    topology, config = open_topology(arguments.topology), table1_config.get_config()
    clip, mesh = empty_clip(arguments.geometry), meshes.make_mesh(devices=topology.devices)
    rate = topology.chip.rates.get(arguments.dtype)
    if rate is None:
        known = ", ".join(topology.chip.rates)
        raise ClipbiasError(f"{topology.chip.title} has no products of {arguments.dtype}; choose from {known}.")
    points = []
    with topology():
        for name in arguments.methods or config.methods:
            found = [work_of(clip, name, dataset, config, mesh, arguments.dtype) for dataset in config.datasets]
            work = sum_of_work(found)
            seconds = (work.training + work.evaluation) / (rate * len(topology.devices) * OTHER_SHARE)
            points.append({"method": name, **dataclasses.asdict(work), "seconds": seconds})
            print(markdown(TABLE1_HEADS, [table1_line(points[-1])]).splitlines()[-1], flush=True)
    total = {"method": "all", **{key: sum(point[key] for point in points) for key in points[0] if key != "method"}}
    print(markdown(TABLE1_HEADS, map(table1_line, [*points, total])))
    facts = {"topology": str(topology), "share": OTHER_SHARE, "rate": rate, "devices": len(topology.devices)}
    return {"name": f"Table 1 on {topology.name}", **facts, "points": [*points, total]}


def work_of(clip: Clip, name: str, dataset: str, config: Any, mesh: Mesh, dtype: str) -> Work:
    """Of one method on one dataset, with all shots and seeds of the configuration; counted, not compiled."""
    entry, method = ENTRIES[dataset], make_method(name)
    task = Task(clip, name, model.class_names(entry.classes), dtype=dtype, groups=mesh.shape[meshes.DATA])
    runs = meshes.filled(mesh, len(config.seeds)) if method.draws else 1
    tested, packs = entry.sizes["test"], len(config.shots) if method.draws else 1
    evaluation = evaluation_programs(task, batch=config.eval_batch_size, runs=runs, mesh=mesh)
    batches = -(-tested // config.eval_batch_size)
    counts = {"image_features": batches, "answers": batches, "text_features": 1}
    evaluated = packs * sum(program.flop * counts[program.name] for program in evaluation)
    training = steps = 0
    programs = len(evaluation)
    if method.trains and jax.tree.leaves(task.shapes):
        recipe = method.recipe_for(Recipe.from_config(config), max(config.shots))
        images = max(config.shots) * entry.classes
        rows = min(images, recipe.batch_size)
        step = training_program(task, recipe, rows=rows, runs=runs, mesh=mesh, images=images).flop
        common = Recipe.from_config(config)
        steps = sum(method.recipe_for(common, shots).total_steps(shots * entry.classes) for shots in config.shots)
        training, programs = steps * step, programs + 1
    return Work(training, evaluated, steps, programs)


def sum_of_work(parts: Sequence[Work]) -> Work:
    """All of them together."""
    return Work(*(sum(getattr(part, field.name) for part in parts) for field in dataclasses.fields(Work)))


TABLE1_HEADS = ("method", "programs", "steps", "training (PFLOP)", "evaluation (PFLOP)", "estimated minutes")


def table1_line(point: dict[str, Any]) -> tuple[str, ...]:
    """One row of the table."""
    work = (f"{point[name] / 1e15:,.1f}" for name in ("training", "evaluation"))
    return (point["method"], f"{point['programs']}", f"{point['steps']:,}", *work, f"{point['seconds'] / 60:,.1f}")
