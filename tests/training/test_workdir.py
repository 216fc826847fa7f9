"""What a work folder records of a run, however it ends."""

import json
import subprocess
from pathlib import Path

import pytest

from clipbias.errors import ClipbiasError
from clipbias.training import workdir
from clipbias.training.interruption import Interrupted
from clipbias.training.workdir import environment, open_workdir


def state(folder: Path) -> dict:
    return json.loads((folder / "state.json").read_text())


def test_a_run_that_ends_well(tmp_path: Path) -> None:
    with open_workdir(tmp_path, {"a": 1}):
        assert state(tmp_path)["state"] == "running"
    assert state(tmp_path)["state"] == "finished"
    assert state(tmp_path)["error"] is None
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("error", "expected", "sentence"),
    [
        (ClipbiasError("no such dataset;\nsecond line"), "failed", "no such dataset;"),
        (RuntimeError("a defect"), "failed", "RuntimeError: a defect"),
        (Interrupted("stopped at step 2 of 3"), "interrupted", "Interrupted: stopped at step 2 of 3"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
    ],
)
def test_a_run_that_does_not(error: BaseException, expected: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), open_workdir(tmp_path, {}):
        raise error
    assert (state(tmp_path)["state"], state(tmp_path)["error"]) == (expected, sentence)


def test_seconds_add_up_until_a_run_is_finished(tmp_path: Path) -> None:
    def write(name: str) -> None:
        (tmp_path / "state.json").write_text(json.dumps({"state": name, "seconds": 1000.0}))

    def opened(config: dict) -> float:
        with open_workdir(tmp_path, config):
            pass
        return state(tmp_path)["seconds"]

    assert opened({"a": (1, 2)}) < 1000
    write("interrupted")
    assert opened({"a": (1, 2)}) >= 1000
    assert opened({"a": (1, 2)}) < 1000  # it was finished; this is a run of its own
    write("failed")
    assert opened({"a": (1, 3)}) < 1000  # another configuration


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".state.json.abcd1234.json"
    left.write_text("{")
    with open_workdir(tmp_path, {}):
        assert not left.exists()


def test_the_environment_names_what_a_result_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(workdir, "ROOT", tmp_path)
    found = environment()
    packages = {"clipbias", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "transformers"}
    assert packages <= found["packages"].keys()
    assert found["python"].startswith("3.")
    assert found["devices"] == ["cpu cpu"] * 8
    assert found["git"] is None  # installed without its sources' repository
    (tmp_path / "file").write_text("a")
    git("init", "-q")
    git("add", "file")
    git("commit", "-qm", "a")
    found = environment()["git"]
    assert len(found["commit"]) == 40 and found["changed"] is False
    (tmp_path / "file").write_text("b")
    assert environment()["git"] == {"commit": found["commit"], "changed": True}
