import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.loop import Checkpoints
from tests.forks import ROOT


def state(value: float) -> dict[str, Any]:
    return {"a": jnp.full((2, 3), value), "b": [jnp.arange(4)]}


def save(folder: Path, steps: tuple[int, ...]) -> None:
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(step, state(step), [step / 7, float("nan")])
    checkpoints.close()


def restore(folder: Path, like: Any = None) -> Any:
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(like or state(0))
    finally:
        checkpoints.close()


def test_nothing_to_restore(tmp_path: Path) -> None:
    assert restore(tmp_path / "new") is None


def test_the_latest_of_two_comes_back(tmp_path: Path) -> None:
    save(tmp_path, (1, 2, 3))
    step, restored, losses = restore(tmp_path)
    assert step == 3 and losses[0] == 3 / 7 and np.isnan(losses[1])
    np.testing.assert_array_equal(restored["a"], state(3)["a"])
    np.testing.assert_array_equal(restored["b"][0], np.arange(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    save(tmp_path, (1,))
    for like in ({"a": jnp.zeros((2, 4)), "b": [jnp.arange(4)]}, {"c": jnp.zeros(3)}):
        with pytest.raises(ClipbiasError, match=r"cannot read the checkpoint of step 1 .*remove that folder to start"):
            restore(tmp_path, like)
    for path in tmp_path.rglob("*METADATA*"):
        path.write_text("{")
    with pytest.raises(ClipbiasError, match=r"cannot (open|read) the checkpoint.*remove that folder to start anew"):
        restore(tmp_path)


def test_a_state_moves_to_another_mesh(tmp_path: Path) -> None:
    values = {"a": np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, meshes.device_put(meshes.make_mesh(run=2, data=4), values, meshes.RUN), [])
    checkpoints.close()
    step, restored, _ = restore(tmp_path, {"a": np.zeros((2, 4), np.float32)})
    moved = meshes.device_get(meshes.device_put(meshes.make_mesh(run=1, data=8), restored, meshes.RUN))
    assert step == 5
    np.testing.assert_array_equal(moved["a"], values["a"])


@pytest.mark.ci
def test_a_kill_within_a_save_leaves_the_step_before_it(tmp_path: Path) -> None:
    program = """
import sys
import numpy as np
from clipbias.training.loop import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
for step in range(1, 10**6):
    checkpoints.save(step, {"a": np.full(10**6, step)}, [])
    if step > 1:
        print("said", step - 1, flush=True)  # which is on disk: the next one is being saved
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        before = next(int(line[5:]) for line in run.stdout if line == "said 3\n")
        run.send_signal(signal.SIGKILL)
    step, restored, _ = restore(tmp_path, {"a": np.zeros(10**6, np.int64)})
    assert step >= before
    np.testing.assert_array_equal(restored["a"], step)
    save(tmp_path / "on", (step + 1,))
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]
