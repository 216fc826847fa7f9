"""Ahead-of-time compilation for absent accelerators, and the compiler's report on a job's programs.

The compilers of TPUs and NVIDIA GPUs run on any machine and report memory and collectives. Nothing can run or be timed.
Only this module uses private parts of JAX.
"""

import collections
import contextlib
import dataclasses
import importlib.metadata
import importlib.resources
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from clipbias.clip.precision import AWAY, Target
from clipbias.errors import ClipbiasError
from clipbias.sentences import counted
from clipbias.training import memory, placement
from clipbias.training.device import format_bytes
from clipbias.training.loop import TrainJob, plan_stages
from clipbias.tuning import parameter_count
from clipbias.tuning.method import sampling_of

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Type of accelerator: a program's bytes on each device, and the pattern (`form`) of a topology's shape."""

    # A TPU's compiler grants this memory; of a GPU JAX reserves three quarters.

    title: str
    memory: int
    capability: float = 0.0
    form: str = r"\d+x\d+"
    example: str = "4x4"

    @property
    def target(self) -> Target:
        return Target("gpu" if self.capability else "tpu", self.capability, self.memory)


_THREE = r"\d+x\d+x\d+"
CHIPS = {
    "v5e": Chip("TPU v5e", int(15.75 * GIB)),
    "v5p": Chip("TPU v5p", int(95.74 * GIB), form=_THREE, example="2x2x2"),
    "v6e": Chip("TPU v6e", int(31.25 * GIB)),
    "h100": Chip("H100 SXM", 60 * GIB, 9.0, form=_THREE, example="1x1x8"),
}

# Recent enough for every attention kernel: there is no card whose own could be asked for.
_CUDNN_VERSION = 91200


@dataclasses.dataclass
class Topology:
    """Absent devices, such as "v5e:4x4"."""

    name: str
    chip: Chip
    devices: Sequence[jax.Device]

    def __str__(self) -> str:
        hosts = len({device.process_index for device in self.devices})
        where = f" on {hosts} hosts" if hosts > 1 else ""
        return f"{self.name}, {len(self.devices)} x {self.chip.title}{where}"

    @property
    def compiler(self) -> str:
        package = "jax-cuda12-pjrt" if self.chip.capability else "libtpu"
        return f"{package} {importlib.metadata.version(package)} of jax {jax.__version__}"


@contextlib.contextmanager
def traced_for(target: Target) -> Iterator[None]:
    """Traces programs as on an absent device; they can be compiled but not run.

    JAX caches traced programs by shapes and types: call `jax.clear_caches` before equal ones for another device.
    """
    from jax._src.cudnn import fused_attention_stablehlo as checks  # JAX asks these before it traces cuDNN's attention

    answers: dict[str, Callable[..., Any]] = {
        "check_cudnn_version": lambda: _CUDNN_VERSION,
        "check_compute_capability": lambda least: target.capability >= float(least),
        "is_cuda_compute_capability_equal": lambda capability: target.capability == float(capability),
    }
    originals = {name: getattr(checks, name) for name in answers if target.capability}
    token = AWAY.set(target)
    try:
        for name in originals:
            setattr(checks, name, answers[name])
        yield
    finally:
        for name, check in originals.items():
            setattr(checks, name, check)
        AWAY.reset(token)


def open_topology(name: str) -> Topology:
    """Opens a topology such as "v5e:4x4" or "h100:1x1x8" (slices x hosts x GPUs).

    JAX must not have touched a device before. It stays on the CPU from then on.
    """
    kind, _, form = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or not re.fullmatch(chip.form, form):
        known = ", ".join(f"{kind}:{chip.example}" for kind, chip in CHIPS.items())
        raise ClipbiasError(f"topology is {name!r}; give devices and how many there are, such as {known}.")
    module, extra = ("jax_plugins.xla_cuda12", "cuda12") if chip.capability else ("libtpu", "tpu")
    if importlib.util.find_spec(module) is None:
        raise ClipbiasError(
            f"the compiler for {name} is not installed: pip install 'jax[{extra}]=={jax.__version__}' brings it."
        )
    jax.config.update("jax_platforms", "cpu")
    if chip.capability:
        flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"  # there is no card to try kernels on
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        # The compiler would ask a card for these: NVIDIA's figures of the H100 SXM with HBM3.
        card = importlib.resources.files("clipbias").joinpath("assets/h100.pbtxt").read_text("utf-8")
        options = {"platform": "cuda", "topology": form, "target_config": card}
    else:
        # libtpu would ask the cloud's metadata service for these, and wait. Any number of processes may compile.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        options = {"platform": "tpu", "topology_name": name}
    from jax.experimental import topologies

    try:
        return Topology(name, chip, topologies.get_topology_desc(**options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ClipbiasError(f"there is no topology {name!r}: {reason}") from error


def describe(job: TrainJob) -> list[str]:
    """Describes shapes, parameters, plan and compiled programs of a job in lines. Runs nothing."""
    task = job.task
    mesh = job.context.mesh
    stages = plan_stages(job)
    tested = [len(evaluation.dataset.split("test")) for evaluation in job.protocol.evaluations]
    batch = min(job.context.compute.eval_batch_size, *tested)
    steps = sum(stage.steps for stage in stages)
    counts = parameter_count(task.shapes)
    parts = ", ".join(f"{counts[part]:,} {part}" for part in ("vision", "text", "shared") if counts[part])
    rows, classes, shards = stages[0].rows if stages else batch, len(task.class_names), mesh.shape[placement.DATA]
    lines = [
        f"{counted(job.examples, 'training image')}, {counted(steps, 'step')}" if steps else "no training steps",
        f"parameters per run: {counts['total']:,} ({parts})" if counts["total"] else "no parameters",
    ]
    for path, leaf in jax.tree_util.tree_leaves_with_path(task.shapes):
        lines.append(f"  {'/'.join(str(getattr(key, 'key', key)) for key in path)} {list(leaf.shape)}")
    lines += [
        f"{counted(classes, 'class')}, text tokens {list(task.text.ids.shape)}",
        f"data={shards}: {-(-rows // shards)} of {rows} images and {-(-classes // shards)} of {classes} classes per "
        f"device; run={mesh.shape[placement.RUN]}: {counted(len(job.runs), 'run')} side by side",
    ]
    if (sampling := sampling_of(task.method)) is not None:
        images = -(-min(batch, job.examples) // shards) * shards
        lines.append(describe_program(memory.features_program(task, sampling, batch=images, mesh=mesh)))
    for stage in stages:
        assert stage.plan is not None, "stages are planned"
        program = memory.training_program(stage.task, stage.training, stage.step_shape)
        lines.append(f"{describe_program(program)}; {memory.describe_plan(stage.plan)}")
    evaluated = memory.fit_evaluation(task, runs=job.run_axis.padded, mesh=mesh)
    programs = memory.evaluation_programs(evaluated, batch=batch, runs=job.run_axis.padded, mesh=mesh)
    return lines + [describe_program(program) for program in programs]


def describe_program(program: memory.Program) -> str:
    # As the compiler reports memory and exchanges: a model of either would be a second truth.
    compiled = program.lower().compile()
    analysis = compiled.memory_analysis()
    text = compiled.as_text()
    assert analysis is not None and text is not None, "the compilers of CPUs, GPUs and TPUs report them"
    sizes = {
        "arguments": int(analysis.argument_size_in_bytes),
        "temporaries": int(analysis.temp_size_in_bytes),
        "output": int(analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
    }
    parts = " + ".join(f"{format_bytes(size)} {name}" for name, size in sizes.items())
    exchanged = describe_exchanges(exchanges(text))
    return f"{program.name}: {format_bytes(sum(sizes.values()))} per device ({parts}), {exchanged}"


COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_EXCHANGE = re.compile(rf"= (.+?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.-]+)")
_BODY = re.compile(r"body=%?([\w.-]+)")
_SHAPE = re.compile(r"([a-z]+)(\d*)(?:e\dm\d\w*)?\[([\d,]*)\]")


class Exchange(NamedTuple):
    """Collective of a program: its kind, the bytes of its result on each device, and whether it is in a loop."""

    kind: str
    bytes: int
    looped: bool


def exchanges(program: str) -> list[Exchange]:
    """Finds the exchanges in the text of a compiled program (`compiled.as_text()`), in its order."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    # By computation: a loop is one whose body is another computation of the text.
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
            waiting += re.findall(r"[\w.-]+", " ".join(_CALLED.findall("\n".join(computations[name]))))
    found = []
    for name, each in computations.items():
        for match in filter(None, map(_EXCHANGE.search, each)):
            result, kind, start = match.groups()  # of a result such as `(f32[8,4]{1,0}, f32[])`
            # A type without a number of bits is `pred`, a byte.
            sizes = [
                math.prod(map(int, filter(None, shape.split(",")))) * (int(bits) if bits else 8) // 8
                for _, bits, shape in _SHAPE.findall(result)
            ]
            # The start of some kinds returns its operands before its results.
            if start and kind in ("all-gather", "collective-permute") and len(sizes) % 2 == 0:
                sizes = sizes[len(sizes) // 2 :]
            found.append(Exchange(kind, sum(sizes), name in looped))
    return found


def describe_exchanges(exchanges: Sequence[Exchange]) -> str:
    """Returns words such as "4 all-reduces of 1.2 MB, none in a loop", with the bytes of each kind."""
    if not exchanges:
        return "nothing exchanged"
    parts = []
    for kind, count in collections.Counter(exchange.kind for exchange in exchanges).items():
        total = sum(exchange.bytes for exchange in exchanges if exchange.kind == kind)
        parts.append(f"{count} {kind}{'s' if count > 1 else ''} of {format_bytes(total)}")
    return f"{' and '.join(parts)}, {sum(exchange.looped for exchange in exchanges) or 'none'} in a loop"
