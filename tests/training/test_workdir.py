"""What a work folder records of a run, however it ends."""

import errno
import fcntl
import json
import subprocess
from pathlib import Path

import pytest

from clipbias.errors import ClipbiasError
from clipbias.hosts import Stopped
from clipbias.io import PART, atomic_folder
from clipbias.training import workdir
from clipbias.training.workdir import environment, open_workdir


def state(folder: Path) -> dict:
    return json.loads((folder / "state.json").read_text())


@pytest.mark.parametrize(
    ("error", "expected", "sentence"),
    [
        (ClipbiasError("no such dataset;\nsecond line"), "failed", "no such dataset;"),
        (Stopped("stopped at step 2 of 3"), "interrupted", "Stopped: stopped at step 2 of 3"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
    ],
)
def test_a_run_that_does_not(error, expected, sentence, tmp_path):
    with pytest.raises(type(error)), open_workdir(tmp_path, {}):
        raise error
    assert (state(tmp_path)["state"], state(tmp_path)["error"]) == (expected, sentence)


def test_seconds_of_all_processes_add_up(tmp_path):
    def write(name: str) -> None:
        (tmp_path / "state.json").write_text(json.dumps({"state": name, "seconds": 1000.0}))

    def opened() -> float:
        with open_workdir(tmp_path, {}):
            pass
        return state(tmp_path)["seconds"]

    for name in ("interrupted", "running", "finished"):
        write(name)
        assert opened() >= 1000
    (tmp_path / "state.json").write_text("{")  # damaged
    assert opened() < 1000


def test_parts_share_a_folder_and_each_has_its_own_state(tmp_path):
    with open_workdir(tmp_path, {"part": "1/2"}, part=(0, 2)) as folder:
        assert folder == tmp_path
        with pytest.raises(ClipbiasError, match="another process works in"), open_workdir(tmp_path, {}, part=(0, 2)):
            pass
        with pytest.raises(RuntimeError), open_workdir(tmp_path, {"part": "2/2"}, part=(1, 2)):
            raise RuntimeError("a defect")
        assert state(tmp_path / "parts" / "1-of-2")["state"] == "running"
    states = [state(tmp_path / "parts" / name)["state"] for name in ("1-of-2", "2-of-2")]
    assert states == ["finished", "failed"] and not (tmp_path / "state.json").exists()
    assert json.loads((tmp_path / "config.json").read_text()) == {"part": None}
    for place in (tmp_path, tmp_path / "parts" / "2-of-2"):
        assert json.loads((place / "environment.json").read_text())["python"].startswith("3.")


def test_a_second_process_is_refused_and_changes_nothing(tmp_path):
    with open_workdir(tmp_path, {"run": 1}):
        assert state(tmp_path)["state"] == "running"
        (tmp_path / f"{PART}x").touch()  # what the first is writing just now
        with pytest.raises(ClipbiasError, match="another process works in"), open_workdir(tmp_path, {"run": 2}):
            pass
        assert (tmp_path / f"{PART}x").exists()
        assert json.loads((tmp_path / "config.json").read_text()) == {"run": 1}
    with open_workdir(tmp_path, {"run": 2}):
        assert json.loads((tmp_path / "config.json").read_text()) == {"run": 2}
    assert (state(tmp_path)["state"], state(tmp_path)["error"]) == ("finished", None)


def test_the_environment_names_what_a_result_depends_on(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(workdir, "ROOT", tmp_path)
    facts = environment()
    assert {"clipbias", "jax", "numpy"} <= facts["packages"].keys() and facts["devices"] == ["cpu cpu"] * 8
    assert facts["git"] is None  # installed without its sources' repository
    (tmp_path / "file").write_text("a")
    git("init", "-q")
    git("add", "file")
    git("commit", "-qm", "a")
    facts = environment()["git"]
    assert len(facts["commit"]) == 40 and facts["changed"] is False
    (tmp_path / "file").write_text("b")
    assert environment()["git"] == {"commit": facts["commit"], "changed": True}


def test_a_file_system_without_locks_is_worked_on(tmp_path, monkeypatch, caplog):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with open_workdir(tmp_path, {}), atomic_folder(tmp_path / "export") as folder:
        (folder / "a").touch()
    assert state(tmp_path)["state"] == "finished" and (tmp_path / "export" / "a").exists()
    assert sum("without locks" in record.getMessage() for record in caplog.records) == 1
