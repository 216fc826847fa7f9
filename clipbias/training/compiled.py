"""The compiled programs of a group of runs as its compiler reports them: memory, and exchanges between devices.

They are compiled for the devices of a mesh, present or absent (`training.ahead`). Nothing is run.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

import jax

from clipbias.sentences import counted
from clipbias.training import mesh as meshes
from clipbias.training.device_memory import format_bytes
from clipbias.training.job import TrainJob, plan_stages
from clipbias.training.memory import describe_plan, fit_evaluation
from clipbias.training.programs import Program, evaluation_programs, features_program, training_program
from clipbias.tuning import parameter_count
from clipbias.tuning.feature_method import sampling_of


def describe(job: TrainJob) -> list[str]:
    """Shapes, parameters, plan and compiled programs of a job, as lines. Nothing is run.

    Raises:
      ClipbiasError: a memory setting is out of range.
    """
    task = job.task
    mesh = job.context.mesh
    compute = job.context.compute
    stages = plan_stages(job)
    tested = [len(evaluation.dataset.split("test")) for evaluation in job.protocol.evaluations]
    batch = min(compute.eval_batch_size, *tested)
    lines = _describe_shapes(job, stages, rows=stages[0].rows if stages else batch)
    if (sampling := sampling_of(task.method)) is not None:
        shards = mesh.shape[meshes.DATA]
        images = -(-min(batch, job.examples) // shards) * shards
        lines.append(describe_program(features_program(task, sampling, batch=images, mesh=mesh)))
    for stage in stages:
        assert stage.plan is not None, "stages are planned"
        program = training_program(stage.task, stage.training, stage.step_shape)
        lines.append(f"{describe_program(program)}; {describe_plan(stage.plan)}")
    evaluated = fit_evaluation(task, runs=job.padded_runs, mesh=mesh)
    programs = evaluation_programs(evaluated, batch=batch, runs=job.padded_runs, mesh=mesh)
    return lines + [describe_program(program) for program in programs]


def _describe_shapes(job: TrainJob, stages: Sequence[TrainJob], rows: int) -> list[str]:
    """Steps, parameters, texts, and how images and classes are shared by the devices."""
    task = job.task
    mesh = job.context.mesh
    devices = mesh.shape[meshes.DATA]
    classes = len(task.class_names)
    steps = sum(stage.steps for stage in stages)
    counts = parameter_count(task.shapes)
    parts = ", ".join(f"{counts[part]:,} {part}" for part in ("vision", "text", "shared") if counts[part])
    leaves = jax.tree_util.tree_leaves_with_path(task.shapes)
    return [
        f"{counted(job.examples, 'training image')}, {counted(steps, 'step')}" if steps else "no training steps",
        f"parameters per run: {counts['total']:,} ({parts})" if counts["total"] else "no parameters",
        *(f"  {'/'.join(str(getattr(key, 'key', key)) for key in path)} {list(leaf.shape)}" for path, leaf in leaves),
        f"{counted(classes, 'class')}, text tokens {list(task.text.ids.shape)}",
        f"data={devices}: {-(-rows // devices)} of {rows} images and {-(-classes // devices)} of {classes} classes per "
        f"device; run={mesh.shape[meshes.RUN]}: {counted(len(job.runs), 'run')} side by side",
    ]


def describe_program(program: Program) -> str:
    """Memory of a device and exchanges of a program, as its compiler reports them."""
    compiled = program.lower().compile()
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    assert memory is not None and text is not None, "the compilers of CPUs, GPUs and TPUs report them"
    sizes = {
        "arguments": int(memory.argument_size_in_bytes),
        "temporaries": int(memory.temp_size_in_bytes),
        "output": int(memory.output_size_in_bytes - memory.alias_size_in_bytes),
    }
    parts = " + ".join(f"{format_bytes(size)} {name}" for name, size in sizes.items())
    exchanged = describe_exchanges(exchanges(text))
    return f"{program.name}: {format_bytes(sum(sizes.values()))} per device ({parts}), {exchanged}"


KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_EXCHANGE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.-]+)")
_BODY = re.compile(r"body=%?([\w.-]+)")
_SHAPE = re.compile(r"([a-z]+)(\d*)(?:e\dm\d\w*)?\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One exchange (collective) of a program: its kind, the bytes of its result on each device, whether in a loop."""

    kind: str
    bytes: int
    looped: bool


def exchanges(program: str) -> list[Exchange]:
    """The exchanges in the text of a compiled program (`compiled.as_text()`), in its order."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations.setdefault(match[1], [])
        elif " = " in line:
            lines.append(line)
    looped = set[str]()
    waiting = [name for each in computations.values() for name in _BODY.findall("\n".join(each))]
    while waiting:  # all that the bodies of loops call
        if (name := waiting.pop()) not in looped and name in computations:
            looped.add(name)
            called = " ".join(_CALLED.findall("\n".join(computations[name])))
            waiting += re.findall(r"[\w.-]+", called)
    matches = ((name, _EXCHANGE.search(line)) for name, each in computations.items() for line in each)
    return [Exchange(match[2], _result_bytes(*match.groups()), name in looped) for name, match in matches if match]


def _result_bytes(result: str, kind: str, start: str | None) -> int:
    """Of a result such as `(f32[8,4]{1,0}, f32[])`. The start of some kinds returns its operands before its results."""
    sizes = [
        math.prod(map(int, filter(None, shape.split(",")))) * (int(bits) if bits else 8) // 8
        for _, bits, shape in _SHAPE.findall(result)
    ]
    if start and kind in ("all-gather", "collective-permute") and len(sizes) % 2 == 0:
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)


def describe_exchanges(exchanges: Sequence[Exchange]) -> str:
    """Such as "4 all-reduces of 1.2 MB, none in a loop", with the bytes of all of a kind."""
    if not exchanges:
        return "nothing exchanged"
    counts = collections.Counter(exchange.kind for exchange in exchanges)
    parts = [
        f"{count} {kind}{'s' if count > 1 else ''} of {format_bytes(_total_bytes(exchanges, kind))}"
        for kind, count in counts.items()
    ]
    looped = sum(exchange.looped for exchange in exchanges)
    return f"{' and '.join(parts)}, {looped or 'none'} in a loop"


def _total_bytes(exchanges: Sequence[Exchange], kind: str) -> int:
    return sum(exchange.bytes for exchange in exchanges if exchange.kind == kind)
