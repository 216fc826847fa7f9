import jax
import numpy as np
import pytest

from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes


def test_axes_take_what_is_left() -> None:
    assert dict(meshes.make_mesh().shape) == {"run": 1, "data": jax.device_count()}
    assert dict(meshes.make_mesh(run=2).shape) == {"run": 2, "data": jax.device_count() // 2}
    assert dict(meshes.make_mesh(run=-1, data=2).shape) == {"run": jax.device_count() // 2, "data": 2}


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ({"SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, []),
        ({"SLURM_NTASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, None),
        ({"SLURM_NTASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1"}, None),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "JAX_LOCAL_DEVICE_IDS": "0"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, []),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, None),
    ],
)
def test_a_process_with_a_node_for_itself_takes_all_its_devices(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], devices: list[int] | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: joined.append(options))
    meshes.start_distributed()
    assert joined == [{"local_device_ids": devices}]


def test_nobody_is_joined_where_no_cluster_announces_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("joined a cluster"))
    meshes.start_distributed()


def test_too_many_devices() -> None:
    with pytest.raises(ClipbiasError, match="run=0 and data=8 has no devices; give at least 1 each"):
        meshes.make_mesh(run=0)
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
