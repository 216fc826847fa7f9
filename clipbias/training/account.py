"""What the compiler says of each program of a pack, and what the plan chose or would choose instead."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from clipbias.data.protocols import Plan
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.evaluation_plan import fit_evaluation
from clipbias.training.exchanges import Exchange, exchanges
from clipbias.training.loop import rows_per_step
from clipbias.training.packs import Pack, evaluated_on
from clipbias.training.plan import StepPlan, plan_step
from clipbias.training.programs import Program, evaluation_programs, features_program, training_program
from clipbias.training.settings import AUTO
from clipbias.training.trainer import Trainer
from clipbias.tuning import Task
from clipbias.tuning.feature_method import sampling_of

# Another mesh is told only where it saves so much of the arithmetic of a device.
WORTH_TELLING = 0.05


@dataclasses.dataclass(frozen=True)
class Account:
    """What a compiled program needs of each device, in bytes, and what the devices exchange.

    Attributes:
      program: what was compiled.
      arguments, temporaries, output: as the compiler plans them, without output in the place of arguments.
      exchanged: every exchange in the program.
      text: the compiled program.
    """

    program: Program
    arguments: int
    temporaries: int
    output: int
    exchanged: Sequence[Exchange]
    text: str = dataclasses.field(repr=False)

    @property
    def bytes(self) -> int:
        """Of one device in all."""
        return self.arguments + self.temporaries + self.output

    def __str__(self) -> str:
        sizes = ((self.arguments, "arguments"), (self.temporaries, "temporaries"), (self.output, "output"))
        told = " + ".join(f"{told_bytes(size)} {name}" for size, name in sizes)
        return f"{self.program.name}: {told_bytes(self.bytes)} per device ({told}), {told_exchanges(self.exchanged)}"


def account(program: Program) -> Account:
    """Compiles a program and reads what its compiler says."""
    compiled = program.compile()
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    return Account(
        program,
        arguments=int(memory.argument_size_in_bytes),
        temporaries=int(memory.temp_size_in_bytes),
        output=int(memory.output_size_in_bytes - memory.alias_size_in_bytes),
        exchanged=exchanges(text),
        text=text,
    )


def told_bytes(count: int) -> str:
    """Such as "1.25 GB", "36 MB" or "512 B"."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def told_exchanges(exchanged: Sequence[Exchange]) -> str:
    """Such as "4 all-reduces of 1.2 MB, none in a loop", the bytes being those of all of a kind."""
    if not exchanged:
        return "nothing exchanged"
    counts = collections.Counter(one.kind for one in exchanged)
    parts = [
        f"{count} {kind}{'s' if count > 1 else ''} of {told_bytes(sum(e.bytes for e in exchanged if e.kind == kind))}"
        for kind, count in counts.items()
    ]
    looped = sum(one.looped for one in exchanged)
    return f"{' and '.join(parts)}, {looped or 'none'} in a loop"


def pack_programs(trainer: Trainer, pack: Pack, draws: Sequence[Plan]) -> list[Program]:
    """The programs that a pack's training and evaluation call, as they would be called."""
    task, runs, plan = trainer.prepare(pack, draws)
    mesh, found, images = trainer.mesh, list[Program](), len(runs[0].train)
    sampling, count = sampling_of(task.method), meshes.filled(trainer.mesh, len(runs))
    if sampling is not None:
        size = -(-min(trainer.settings.eval_batch_size, images) // mesh.shape[meshes.DATA]) * mesh.shape[meshes.DATA]
        found.append(features_program(task, sampling, batch=size, mesh=mesh))
    if plan is not None:
        for method, recipe in trainer.stages(pack):
            bound, own = task, plan
            if method is not task.method:
                bound, own = trainer.plan_stage(pack, draws[0].source, runs, method, recipe)
            where: dict[str, Any] = dict(rows=rows_per_step([run.train for run in runs], recipe), images=images)
            found.append(training_program(bound, recipe, **where, runs=count, mesh=mesh, parts=own.parts))
    return found + tested_programs(trainer, pack, draws)


def tested_programs(trainer: Trainer, pack: Pack, draws: Sequence[Plan]) -> list[Program]:
    """The programs that a pack's evaluation calls."""
    mesh, count, most = trainer.mesh, meshes.filled(trainer.mesh, len(pack.cells)), trainer.settings.eval_batch_size
    sizes = dict.fromkeys((dataset, min(most, len(split))) for dataset, split in evaluated_on(pack, draws))
    found = []
    for dataset, batch in sizes:
        evaluated = fit_evaluation(
            lambda dataset=dataset, **memory: trainer.cache.task(pack, dataset, **memory), runs=count, mesh=mesh
        )
        found += evaluation_programs(evaluated, batch=batch, runs=count, mesh=mesh, judged=pack.tries)
    return found


def told_mesh(trainer: Trainer, task: Task, rows: int, runs: int) -> str:
    """How each axis of the mesh is split."""
    data, run = trainer.mesh.shape[meshes.DATA], trainer.mesh.shape[meshes.RUN]
    images, classes = -(-rows // data), -(-len(task.class_names) // data)
    filled = meshes.filled(trainer.mesh, runs)
    each = filled // run if not filled % run else filled
    split = f"data={data}: {images} of {rows} images and {classes} of {len(task.class_names)} classes per device"
    return f"{split}; run={run}: {each} of {runs} runs per device"


def instead(trainer: Trainer, pack: Pack, draws: Sequence[Plan], *, devices: Sequence[Any] | None = None) -> list[str]:
    """What would be chosen in place of settings that the configuration gives, and of its mesh; empty where the same."""
    _, runs, plan = trainer.prepare(pack, draws)
    if plan is None:
        return []
    method, recipe = trainer.stages(pack)[0]
    rows, images = rows_per_step([run.train for run in runs], recipe), len(runs[0].train)
    shared: dict[str, Any] = dict(rows=rows, images=images)
    found = []
    settings = trainer.settings
    if (settings.remat, settings.class_chunks, settings.micro_batch) != (AUTO, 0, 0):
        own = plan_step(
            lambda **memory: trainer.cache.task(pack, draws[0].source, method, **memory),
            recipe,
            runs=meshes.filled(trainer.mesh, len(runs)),
            mesh=trainer.mesh,
            **shared,
        )[1]
        if (own.remat, own.chunks, own.parts) != (plan.remat, plan.chunks, plan.parts):
            found.append(f"remat=auto, class_chunks=0 and micro_batch=0 would take: {own}")

    def each(mesh: Mesh) -> float:
        """Multiplications and additions of one device in a step of one run."""
        bound = trainer.cache.task(pack, draws[0].source, method, groups=mesh.shape[meshes.DATA], **plan.options)
        filled = meshes.filled(mesh, len(runs))
        program = training_program(bound, recipe, runs=filled, mesh=mesh, **shared, parts=plan.parts)
        return program.flop / mesh.devices.size

    if devices is not None and len(runs) > 1:
        here, best = each(trainer.mesh), None
        for run in range(1, len(runs) + 1):
            if len(runs) % run or run == trainer.mesh.shape[meshes.RUN]:
                continue
            try:
                mesh = meshes.make_mesh(run=run, devices=devices)
            except ClipbiasError:
                continue
            other = each(mesh)
            if other < (1 - WORTH_TELLING) * here and (best is None or other < best[0]):
                best = other, mesh
        if best is not None:
            less = f"{100 * (1 - best[0] / here):.0f} % less arithmetic per device"
            found.append(f"mesh.run={best[1].shape[meshes.RUN]} would take {less} ({best[1].devices.size} devices)")
    return found


def chosen(plan: StepPlan, runs: int) -> str:
    """The settings that a step has."""
    side = f"{runs} run{'s' if runs > 1 else ''} side by side"
    fits = "" if plan.fits else "; it does not fit"
    classes, images = (f"{count} part{'s' if count > 1 else ''}" for count in (plan.chunks, plan.parts))
    return f"keeping {plan.remat}, classes in {classes}, images in {images}, {side}{fits}"


def account_lines(
    trainer: Trainer, pack: Pack, *, devices: Sequence[Any] | None = None, learned: bool = False
) -> list[str]:
    """What is told of a pack beside its forecast: every program, the mesh, what was chosen, and what would be.

    Of one whose trials have `learned` already, the programs of its evaluation alone.
    """
    draws = trainer.cache.plans(pack)
    if learned:
        return [f"  {account(program)}" for program in tested_programs(trainer, pack, draws)]
    task, runs, plan = trainer.prepare(pack, draws)
    rows = trainer.settings.eval_batch_size
    if plan is not None:
        rows = rows_per_step([run.train for run in runs], trainer.stages(pack)[0][1])
    lines = [f"  {told_mesh(trainer, task, rows, len(runs))}"]
    lines += [f"  {account(program)}" for program in pack_programs(trainer, pack, draws)]
    if plan is not None:
        lines.append(f"  chosen: {chosen(plan, len(runs))}")
        lines += [f"  instead: {line}" for line in instead(trainer, pack, draws, devices=devices)]
    return lines
