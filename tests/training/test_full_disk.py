"""A disk that fills up while something is saved: one sentence, and what was there before stays."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.files import write_text
from clipbias.training.checkpoint import Checkpoints
from clipbias.tuning import Task
from clipbias.tuning.adapter import load_adapter, save_adapter


@contextlib.contextmanager
def no_room_for(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, as on a disk with no more room than that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_last_checkpoint_stays(tmp_path: Path) -> None:
    state = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)}
    checkpoints = Checkpoints(tmp_path, identity={})
    checkpoints.save(1, state)
    checkpoints.wait()
    with (
        no_room_for(512),
        pytest.raises(ClipbiasError, match=r"cannot save a checkpoint in .*: File too large; the previous"),
    ):
        checkpoints.save(2, {"a": state["a"] + 1})
        checkpoints.wait()
    checkpoints.close()
    again = Checkpoints(tmp_path, identity={})
    step, restored = again.restore(state)
    again.close()
    assert step == 1
    np.testing.assert_array_equal(restored["a"], state["a"])


def test_the_last_adapter_stays(clip: Clip, tmp_path: Path) -> None:
    task, path = Task(clip, "bias", ("a", "b")), tmp_path / "adapter.safetensors"
    save_adapter(path, task, task.init(), method="bias", notes={"n": 1})
    with no_room_for(64), pytest.raises(ClipbiasError, match=r"cannot write .*adapter\.safetensors"):
        save_adapter(path, task, task.init(), method="bias", notes={"n": 2})
    assert load_adapter(path).notes == {"n": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["adapter.safetensors"]


def test_the_last_text_stays(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "first")
    with no_room_for(4), pytest.raises(ClipbiasError, match="cannot write"):
        write_text(tmp_path / "a", "second" * 100)
    assert (tmp_path / "a").read_text() == "first"
