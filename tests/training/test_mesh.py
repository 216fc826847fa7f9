import jax
import numpy as np
import pytest

from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes


def test_axes_take_what_is_left() -> None:
    assert dict(meshes.make_mesh().shape) == {"run": 1, "data": jax.device_count()}
    assert dict(meshes.make_mesh(run=2).shape) == {"run": 2, "data": jax.device_count() // 2}
    assert dict(meshes.make_mesh(run=-1, data=2).shape) == {"run": jax.device_count() // 2, "data": 2}


def test_too_many_devices() -> None:
    with pytest.raises(ClipbiasError, match="needs 64 devices; there are 8"):
        meshes.make_mesh(run=8, data=8)


def test_arrays_come_back_as_they_went() -> None:
    mesh = meshes.make_mesh(run=2, data=4)
    values = {"a": np.arange(48.0).reshape(2, 8, 3), "b": np.float32(3)}
    placed = meshes.place(mesh, values, meshes.RUN, meshes.DATA)
    assert placed["a"].sharding.shard_shape(placed["a"].shape) == (1, 2, 3)
    batch = meshes.place_batch(mesh, values["a"])
    rows = meshes.place_rows(mesh, values["a"][0])
    assert rows.sharding.shard_shape(rows.shape) == (2, 3)
    for got, expected in ((placed["a"], values["a"]), (batch, values["a"]), (rows, values["a"][0])):
        np.testing.assert_array_equal(meshes.fetch(got), expected)
    assert meshes.fetch(placed["b"]) == 3


def test_runs_that_cannot_be_divided_are_everywhere() -> None:
    mesh = meshes.make_mesh(run=2, data=4)
    runs, batch = np.arange(6.0).reshape(3, 2), np.arange(24).reshape(3, 8)
    placed, images = meshes.place(mesh, runs, meshes.RUN), meshes.place_batch(mesh, batch)
    assert placed.sharding.shard_shape(placed.shape) == (3, 2)
    assert images.sharding.shard_shape(images.shape) == (3, 2)
    np.testing.assert_array_equal(meshes.fetch(placed), runs)
    np.testing.assert_array_equal(meshes.fetch(images), batch)
