import dataclasses

import jax
import numpy as np
import pytest

from clipbias.training import placement


def test_a_mesh_of_jax_is_computed_on_as_those_made_here():
    assert placement.as_mesh(jax.make_mesh((1, jax.device_count()), ("run", "data"))) == placement.as_mesh(None)


def test_arrays_come_back_as_they_went():
    mesh = placement.make_mesh(run=2, data=4)
    values = {"a": np.arange(48.0).reshape(2, 8, 3), "b": np.float32(3)}
    placed = placement.device_put(mesh, values, placement.RUN, placement.DATA)
    assert placed["a"].sharding.shard_shape(placed["a"].shape) == (1, 2, 3)
    batch = placement.place_batch(mesh, values["a"])
    rows = placement.place_rows(mesh, values["a"][0])
    assert rows.sharding.shard_shape(rows.shape) == (2, 3)
    for got, expected in ((placed["a"], values["a"]), (batch, values["a"]), (rows, values["a"][0])):
        np.testing.assert_array_equal(placement.device_get(got), expected)
    assert placement.device_get(placed["b"]) == 3
    # Runs that cannot be divided are everywhere.
    three = np.arange(24).reshape(3, 8)
    images = placement.place_batch(mesh, three)
    assert images.sharding.shard_shape(images.shape) == (3, 2)
    np.testing.assert_array_equal(placement.device_get(images), three)


@dataclasses.dataclass(frozen=True)
class Device:
    """Of another process."""

    id: int
    process_index: int
    platform: str = "cpu"


def devices(processes: int, each: int) -> list[Device]:
    return [Device(process * each + number, process) for process in range(processes) for number in range(each)]


@pytest.mark.parametrize(
    ("processes", "each", "settings", "shape"),
    [
        (8, 8, {"run": 64}, (64, 1)),
        (8, 8, {"run": 16}, (16, 4)),
        (8, 8, {"run": 3}, (3, 16)),  # 16 devices are left idle
        (4, 4, {"run": 2, "data": 8}, (2, 8)),
        (4, 4, {"run": None, "data": 2}, (8, 2)),
        (1, 8, {"run": 3}, (3, 2)),
    ],
)
def test_processes_hold_equal_parts_that_make_up_the_whole(monkeypatch, processes, each, settings, shape):
    mesh = placement.make_mesh(**settings, devices=devices(processes, each))
    assert mesh.devices.shape == shape
    assert len({device.id for device in mesh.devices.flat}) == shape[0] * shape[1]
    held = np.zeros(shape, int)
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        share = placement.share(mesh)
        columns = slice(share.part * share.multiple, (share.part + 1) * share.multiple)
        assert share.parts * share.multiple == shape[1]
        part = mesh.devices[share.rows.start : share.rows.stop, columns]
        assert part.size and {device.process_index for device in part.flat} == {process}
        held[share.rows.start : share.rows.stop, columns] += 1
    assert (held == 1).all()


def test_the_runs_of_a_process(monkeypatch):
    mesh = placement.make_mesh(run=16, devices=devices(8, 8))
    monkeypatch.setattr(jax, "process_index", lambda: 7)
    share = placement.share(mesh)
    assert share.runs(mesh, 33) == [32] * 6  # three for each device along the axis, of which these fill up
    assert share.runs(mesh, 96) == list(range(84, 96))
    assert share.runs(mesh, 1) == [0]


def test_runs_are_filled_up_and_cut_again():
    mesh = placement.make_mesh(run=4, data=2)
    assert [placement.RunAxis(mesh, runs).padded for runs in (1, 3, 4, 9)] == [1, 4, 4, 12]
    tree = {"a": np.arange(6.0).reshape(3, 2), "count": np.int32(5)}
    axis = placement.RunAxis(mesh, 3)
    placed = axis.place(tree)
    assert placed["a"].sharding.shard_shape(placed["a"].shape) == (1, 2)
    np.testing.assert_array_equal(placement.device_get(placed["a"])[3], tree["a"][2])
    jax.tree.map(np.testing.assert_array_equal, placement.device_get(axis.unpad(placed)), tree)
    assert axis.unpad(placed)["a"].sharding.is_equivalent_to(placement.sharding(mesh, (3, 2), placement.RUN), 2)
