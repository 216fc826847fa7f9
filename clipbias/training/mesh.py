"""Devices as a mesh with two axes, and where arrays live on it.

`data` splits the images of a batch and the classes of the text tower; `run` splits independent runs. The frozen weights
are on every device. The same code runs on one CPU, one GPU, several, and a pod.

Runs whose number is not a multiple of `run` are all computed along the whole of that axis: their arrays have the same
shapes on every mesh, so that a checkpoint of one continues on any other.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clipbias.errors import ClipbiasError

RUN, DATA = "run", "data"


def start_distributed(
    *, coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the processes of a job before any device is touched.

    With nothing given, joins only where a cluster announces itself: a TPU pod, SLURM or Open MPI with several tasks, or
    the variables `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.
    """
    # A notice to stop is for the training loop (`interruption`); JAX's own service would take it and tell nobody.
    jax.config.update("jax_enable_preemption_service", False)
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator:
        processes = processes if processes is not None else int(os.environ.get("JAX_NUM_PROCESSES", "1"))
        process = process if process is not None else int(os.environ.get("JAX_PROCESS_ID", "0"))
        jax.distributed.initialize(coordinator, processes, process, local_device_ids=_local_devices())
    elif _is_cluster():
        jax.distributed.initialize(local_device_ids=_local_devices())
    elif _is_tpu_host():
        with contextlib.suppress(ValueError):  # a host by itself: there is nobody to join
            jax.distributed.initialize()
    if jax.distributed.is_initialized():
        logging.info("process %d of %d", jax.process_index(), jax.process_count())


def _is_cluster() -> bool:
    def many(variable: str) -> bool:
        return int(os.environ.get(variable) or 1) > 1

    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return many("SLURM_NTASKS") or many("OMPI_COMM_WORLD_SIZE") or "," in workers


def _is_tpu_host() -> bool:
    files = ("/dev/accel0", "/dev/vfio/0")
    return importlib.util.find_spec("libtpu") is not None and any(map(os.path.exists, files))


def _local_devices() -> list[int] | None:
    """All devices (an empty list) where one process has a node for itself, else one for each process (`None`).

    JAX by itself gives each process of SLURM and Open MPI one device, also where no other would take the rest.
    """
    if "JAX_LOCAL_DEVICE_IDS" in os.environ:  # which JAX reads
        return None
    slurm = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # as in "8", "1(x4)" or "2(x3),1"
    counts = re.findall(r"(\d+)(?:\(x\d+\))?", slurm) or [os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")]
    return [] if set(counts) == {"1"} else None


def make_mesh(*, run: int = 1, data: int = -1, devices: Any = None) -> Mesh:
    """Arranges the devices as `[run, data]`; -1 takes all that are left. Every process holds a part of every run.

    Raises:
      ClipbiasError: the devices cannot be divided that way.
    """
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    if run == -1:
        run = count // max(data, 1)
    if data == -1:
        data = count // max(run, 1)
    if run < 1 or data < 1:
        raise ClipbiasError(
            f"a mesh of run={run} and data={data} has no devices; give at least 1 each, or -1 for the rest."
        )
    if run * data > count:
        raise ClipbiasError(f"a mesh of run={run} and data={data} needs {run * data} devices; there are {count}.")
    processes = len({device.process_index for device in devices[: run * data]})
    per_process = run * data // processes
    if per_process % run:
        raise ClipbiasError(f"run={run} must divide the {per_process} devices of each process.")
    grid = np.asarray(devices[: run * data], dtype=object).reshape(processes, run, per_process // run)
    return Mesh(grid.transpose(1, 0, 2).reshape(run, data), (RUN, DATA), axis_types=(AxisType.Auto, AxisType.Auto))


def single_device() -> Mesh:
    """A mesh of this process's first device."""
    return make_mesh(run=1, data=1, devices=jax.local_devices()[:1])


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Puts a tree of host arrays on every device, once; of shapes alone, says that they would lie there."""
    return place(mesh, tree)


def place(mesh: Mesh, tree: Any, *axes: str | None) -> Any:
    """Puts a tree of host arrays, equal on all processes, on the mesh.

    Args:
      mesh: the devices.
      tree: of arrays; where a leaf is a `jax.ShapeDtypeStruct`, only its sharding is added.
      *axes: what the leading axes are split along; `run` at most the first.
    """

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(mesh, leaf.shape, *axes))
        leaf = np.asarray(leaf)
        where = sharding(mesh, leaf.shape, *axes)
        return jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index])

    return jax.tree.map(one, tree)


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts `[run, batch, …]` arrays on the mesh; each process passes its own share of the batch axis."""

    def one(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_process_local_data(sharding(mesh, leaf.shape, RUN, DATA), leaf)

    return jax.tree.map(one, batch)


def place_rows(mesh: Mesh, rows: Any) -> jax.Array:
    """Puts `[batch, …]` rows on the mesh, split along `data` and the same for all runs.

    Each process passes its share.
    """
    return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(DATA)), np.asarray(rows))


def shapes(tree: Any) -> Any:
    """A tree of arrays as their shapes and types alone."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def sharding(mesh: Mesh, shape: Sequence[int] = (), *axes: str | None) -> NamedSharding:
    """How an array of this shape lies on the mesh, its leading axes split along `axes`, as far as it has so many.

    Runs whose number is no multiple of the `run` axis are not split: every device along it computes all of them.
    """
    fitted = [None if axis == RUN and shape[0] % mesh.shape[RUN] else axis for axis in axes[: len(shape)]]
    return NamedSharding(mesh, PartitionSpec(*fitted))


def fetch(tree: Any) -> Any:
    """A tree of device arrays as NumPy arrays, whole on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return jax.tree.map(lambda leaf: np.asarray(multihost_utils.process_allgather(leaf, tiled=True)), tree)
