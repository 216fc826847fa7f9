"""Placement of arrays on a mesh of devices with two axes.

`data` splits the images of a batch and the classes of the text tower; `run` splits independent runs, padded with copies
of the last one. Results and checkpoints have no copies, so their shapes are the same on every mesh.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clipbias.checks import Positive, check_value, shown
from clipbias.clip.params import Params
from clipbias.clip.precision import DATA as DATA
from clipbias.clip.precision import cast_weights
from clipbias.errors import ClipbiasError
from clipbias.sentences import counted

RUN = "run"

# Dictionaries, tuples and dataclasses of arrays, or of shapes in their place.
Tree = Any
Leaf = Any


def make_mesh(*, run: int | None = 1, data: int | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices as `[run, data]`; by default all remaining ones. Raises `ClipbiasError` if none fit."""
    check_value("run", run, Positive | None)
    check_value("data", data, Positive | None)
    devices = list(jax.devices() if devices is None else devices)
    by_process: dict[int, list[jax.Device]] = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device)
    each = min(map(len, by_process.values()))
    # A process feeds a rectangle of the mesh (`share`): a part of every run, where `run` divides its devices, so that
    # processes share the decoding of images that all runs see; else whole runs, or a part of one. The first shape with
    # the most devices wins.
    for part in range(each, 0, -1):
        total = part * len(by_process)
        rows = total // (data or 1) if run is None else run
        columns = total // max(rows, 1) if data is None else data
        shared = rows > 0 and part % rows == 0
        whole = columns > 0 and (part % columns == 0 or columns % part == 0)
        if rows * columns == total and (shared or whole):
            break
    else:
        raise ClipbiasError(
            f"a mesh of run={run} and data={data} cannot be made of {counted(len(by_process), 'process')} with "
            f"{counted(each, 'device')} each: a process must hold a part of every run, whole runs, or a part of one; "
            "give data=None for what fits."
        )
    if total < len(devices) and None in (run, data):
        logging.warning("%d of %d devices are left idle by run=%d.", len(devices) - total, len(devices), rows)
    grid = np.asarray([row[:part] for _, row in sorted(by_process.items())], dtype=object)
    if shared:
        # Devices of a process lie along `data` within each run.
        grid = grid.reshape(len(by_process), rows, part // rows).transpose(1, 0, 2)
    # Auto axes: with Explicit ones, gathering rows and concatenating prompts fail.
    return Mesh(grid.reshape(rows, columns), (RUN, DATA), axis_types=(AxisType.Auto, AxisType.Auto))


def as_mesh(mesh: Mesh | None) -> Mesh:
    """Returns a user's mesh; default: all devices. Raises `ClipbiasError` for other axes than `make_mesh` gives."""
    if mesh is None:
        return make_mesh()
    if not isinstance(mesh, Mesh) or mesh.axis_names != (RUN, DATA):
        raise ClipbiasError(
            f"mesh is {shown(mesh)}; give one of clipbias.training.make_mesh, with the axes ('run', 'data')."
        )
    return Mesh(mesh.devices, mesh.axis_names)  # whose axes are Auto; those of `jax.make_mesh` are Explicit


@dataclasses.dataclass(frozen=True)
class Share:
    """Part of arrays `[run, batch, …]` of this process: `rows` of the mesh, `part` of `parts` of a batch."""

    # A part is a multiple of so many images: each device of the process has equally many.

    rows: range
    part: int
    parts: int
    multiple: int

    def runs(self, mesh: Mesh, count: int) -> list[int]:
        """Returns the runs of this process, of `count` runs; the last one repeats as padding."""
        total = RunAxis(mesh, count).padded
        if total % mesh.shape[RUN]:  # every device computes all of them
            return list(range(total))
        each = total // mesh.shape[RUN]
        return [min(run, count - 1) for run in range(self.rows.start * each, self.rows.stop * each)]


def share(mesh: Mesh) -> Share:
    # A rectangle, as `make_mesh` arranges devices: rows and columns say all.
    held = np.vectorize(lambda device: device.process_index == jax.process_index(), otypes=[bool])(mesh.devices)
    rows, columns = (np.flatnonzero(held.any(axis)) for axis in (1, 0))
    return Share(
        range(int(rows[0]), int(rows[-1]) + 1),
        int(columns[0]) // len(columns),
        mesh.shape[DATA] // len(columns),
        len(columns),
    )


def rows(mesh: Mesh, count: int) -> int:
    """Rounds a number of images up to a multiple of the `data` axis, as every split array needs."""
    return count + -count % mesh.shape[DATA]


@dataclasses.dataclass(frozen=True)
class RunAxis:
    """The leading axis of arrays `[R, …]` of a job's `count` runs: its padding, and its place on the mesh."""

    mesh: Mesh
    count: int

    @property
    def padded(self) -> int:
        # One run alone is not padded: every device along the axis computes it either way, and without copies it needs
        # no `vmap`, which would cost a tenth of its step (`step.over_runs`).
        return self.count if self.count == 1 else self.count + -self.count % self.mesh.shape[RUN]

    def pad(self, tree: Tree) -> Tree:

        def of_leaf(leaf: Leaf) -> np.ndarray:
            leaf = np.asarray(leaf)
            # Copies, not zeros: a unit vector of zeros is NaN, which `jax_debug_nans` would report of no real run.
            return leaf if not leaf.ndim else leaf[np.minimum(np.arange(self.padded), len(leaf) - 1)]

        return jax.tree.map(of_leaf, tree)

    def place(self, tree: Tree) -> Tree:
        return device_put(self.mesh, self.pad(tree), RUN)

    def unpad(self, tree: Tree) -> Tree:
        # Nothing to cut: no program, and no copy of the learnables.
        if all(not leaf.ndim or leaf.shape[0] == self.count for leaf in jax.tree.leaves(tree)):
            return tree
        return _first_runs(self.mesh, tree, self.count)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _first_runs(mesh: Mesh, tree: Tree, runs: int) -> Tree:
    def of_leaf(leaf: jax.Array) -> jax.Array:
        # In a program: no process holds the whole of an array that others share.
        leaf = leaf[:runs] if leaf.ndim else leaf
        return jax.lax.with_sharding_constraint(leaf, sharding(mesh, leaf.shape, RUN))

    return jax.tree.map(of_leaf, tree)


def single_device() -> Mesh:
    return make_mesh(run=1, data=1, devices=jax.local_devices()[:1])


def is_there(mesh: Mesh) -> bool:
    """Whether programs can run on a mesh; for a mesh of `training.ahead` they can only be compiled."""
    return mesh.devices.flat[0] in jax.devices()


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    return device_put(mesh, tree)


def place_weights(mesh: Mesh, params: Params, dtype: str, *, shapes: bool = False) -> Params:
    """Puts the frozen weights on every device, in the types of a compute type; with `shapes`, as shapes alone."""
    # Whole on every device: CLIP's weights are small beside the activations of a batch, and gathering parts of them
    # would exchange them in every layer. Cast once, here: within the step every product would cast its kernel anew.
    cast = functools.partial(cast_weights, dtype=dtype)
    return replicate(mesh, jax.eval_shape(cast, params) if shapes else cast(params))


def device_put(mesh: Mesh, tree: Tree, *axes: str | None) -> Tree:
    """Puts a tree of arrays, equal on all processes, on the mesh, with leading axes split along `axes`."""

    def of_leaf(leaf: Leaf) -> Any:
        # Shapes stand for arrays where a step is planned, or compiled for devices that are not there.
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return abstract(mesh, leaf.shape, leaf.dtype, *axes)
        where = sharding(mesh, np.shape(leaf), *axes)
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable and not mesh.is_multi_process:
            return jax.device_put(leaf, where)  # copies nothing that lies there already
        # Several processes: each makes its own shards from its whole copy; `jax.device_put` would compare them first.
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index])

    return jax.tree.map(of_leaf, tree)


def constrain(mesh: Mesh, tree: Tree, *axes: str | None) -> Tree:
    """Constrains arrays within a jitted function to lie as `device_put` would put them."""
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding(mesh, leaf.shape, *axes)), tree)


def place_batch(mesh: Mesh, batch: Tree, *, runs: bool = True) -> Tree:
    """Puts `[run, batch, …]` arrays, each process its `share`, on the mesh; without `runs` the first axis is whole."""

    def of_leaf(leaf: Leaf) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_process_local_data(sharding(mesh, leaf.shape, RUN if runs else None, DATA), leaf)

    return jax.tree.map(of_leaf, batch)


def place_rows(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """Puts `[batch, …]` rows on the mesh, split along `data`, for all runs; each process passes its own `share`."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(DATA)), np.asarray(rows))


def traced_on(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes `jax.sharding.get_abstract_mesh()` return the mesh while a function is traced."""

    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def shapes(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def abstract(mesh: Mesh, shape: Sequence[int], dtype: Any, *axes: str | None) -> Leaf:
    """Returns shape, type and sharding in place of an array that `device_put` would split along `axes`."""
    return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding(mesh, shape, *axes))


def is_abstract(tree: Tree) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def sharding(mesh: Mesh, shape: Sequence[int] = (), *axes: str | None) -> NamedSharding:
    """Returns the sharding of an array of this shape, with its leading axes split along `axes`."""
    # Runs whose number is no multiple of the axis (one run alone) lie whole on all devices along it.
    fitted = [None if axis == RUN and shape[0] % mesh.shape[RUN] else axis for axis in axes[: len(shape)]]
    return NamedSharding(mesh, PartitionSpec(*fitted))


def device_get(tree: Tree) -> Tree:
    """Fetches a tree of device arrays, whole on every process. All processes must call this."""
    # Whoever calls it waits until the devices have computed the arrays: the loop of steps does so one step late.
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def of_leaf(leaf: Leaf) -> np.ndarray:
        # Every process has a replicated array; gathering it would cost an exchange.
        if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
            return np.asarray(leaf.addressable_data(0))
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(of_leaf, tree)
