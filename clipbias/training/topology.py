"""Accelerators that are not there: the compilers of TPUs and NVIDIA GPUs make programs for them on any machine.

What they say of a program is what it would be there: memory, exchanges between devices, and that it compiles at all.
Nothing can be run or timed.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from clipbias.clip.target import Target, traced_for
from clipbias.errors import ClipbiasError

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of accelerator.

    Attributes:
      title: what it is called.
      memory: bytes that programs may have on each device by default. Of a TPU they are what its compiler grants; of a
        GPU three quarters of its memory, which JAX reserves unless it is told otherwise.
      rates: multiplications and additions per second at most, by the compute type of a product, as its maker states.
      capability: of an NVIDIA GPU.
      form: how many there are, as the part of a topology behind the colon is written.
    """

    title: str
    memory: int
    rates: dict[str, float]
    capability: float = 0.0
    form: str = r"\d+x\d+"
    example: str = "4x4"

    @property
    def target(self) -> Target:
        """For which programs are traced."""
        return Target("gpu" if self.capability else "tpu", self.capability, self.memory, self.rates)


def _tpu(title: str, memory: float, rate: float, **options: Any) -> Chip:
    """A TPU multiplies in bfloat16 alone: float32 takes six passes, "bfloat16_3x" three."""
    rates = {"bfloat16": rate, "bfloat16_3x": rate / 3, "float32": rate / 6}
    return Chip(title, int(memory * GIB), rates, **options)


# TPUs: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm. H100: NVIDIA's data sheet, without sparsity.
CHIPS = {
    "v5e": _tpu("TPU v5e", 15.75, 197e12),
    "v5p": _tpu("TPU v5p", 95.74, 459e12, form=r"\d+x\d+x\d+", example="2x2x2"),
    "v6e": _tpu("TPU v6e", 31.25, 918e12),
    "h100": Chip(
        "H100 SXM",
        int(0.75 * 80 * GIB),
        {"bfloat16": 989.4e12, "tensorfloat32": 494.7e12, "float32": 66.9e12},
        capability=9.0,
        form=r"\d+x\d+x\d+",
        example="1x1x8",
    ),
}

# What the GPU's compiler is told of an H100 instead of asking it: NVIDIA's figures of the SXM card with HBM3.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  registers_per_block_limit: 65536  registers_per_core_limit: 65536
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000  device_memory_size: 84942979072  l2_cache_size: 52428800
  device_vendor: "NVIDIA Corporation"  name: "NVIDIA H100 80GB HBM3"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: as in "v5e:4x4".
      chip: what they are.
      devices: for a mesh; of a pod with the processes of its hosts.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]

    def __str__(self) -> str:
        hosts = len({device.process_index for device in self.devices})
        several = f" on {hosts} hosts" if hosts > 1 else ""
        return f"{self.name}, {len(self.devices)} x {self.chip.title}{several}"

    @property
    def compiler(self) -> str:
        """Which compiler makes the programs, with its version."""
        package = "jax-cuda12-pjrt" if self.chip.capability else "libtpu"
        return f"{package} {importlib.metadata.version(package)} of jax {jax.__version__}"

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Has programs traced and planned as on these devices."""
        with traced_for(self.chip.target):
            yield


def open_topology(name: str) -> Topology:
    """The devices that a name such as "v5e:4x4" or "h100:1x1x8" (slices x hosts x GPUs) stands for.

    JAX must not have touched a device before. It keeps to the CPU from then on.

    Raises:
      ClipbiasError: there is no such topology, or its compiler is not installed.
    """
    kind, _, form = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or not re.fullmatch(chip.form, form):
        known = ", ".join(f"{kind}:{chip.example}" for kind, chip in CHIPS.items())
        raise ClipbiasError(f"topology is {name!r}; give devices and how many there are, such as {known}.")
    jax.config.update("jax_platforms", "cpu")
    try:
        devices = (_gpus if chip.capability else _tpus)(name, form)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ClipbiasError(f"there is no topology {name!r}: {reason}") from error
    return Topology(name, chip, devices)


def _needs(module: str, extra: str, name: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ClipbiasError(
            f"the compiler for {name} is not installed: pip install 'jax[{extra}]=={jax.__version__}' brings it."
        )


def _tpus(name: str, form: str) -> Sequence[Any]:
    _needs("libtpu", "tpu", name)
    # What the library would else ask of the cloud's own service, and wait for.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # One process at a time may use a TPU; any number may compile.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def _gpus(name: str, form: str) -> Sequence[Any]:
    _needs("jax_plugins.xla_cuda12", "cuda12", name)
    # There is no card to try kernels on.
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="cuda", topology=form, target_config=_H100).devices
