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
from clipbias.training.workdir import ADAPTER, environment, open_workdir
from clipbias.tuning import make_method
from clipbias.tuning.registry import method_options


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
        (Stopped("stopped at step 2 of 3"), "interrupted", "Stopped: stopped at step 2 of 3"),
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


def test_a_second_process_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with open_workdir(tmp_path, {"run": 1}):
        (tmp_path / f"{PART}x").touch()  # what the first is writing just now
        with pytest.raises(ClipbiasError, match="another process works in"), open_workdir(tmp_path, {"run": 2}):
            pass
        assert (tmp_path / f"{PART}x").exists()
        assert json.loads((tmp_path / "config.json").read_text()) == {"run": 1}
    with open_workdir(tmp_path, {"run": 2}):
        assert json.loads((tmp_path / "config.json").read_text()) == {"run": 2}


def test_an_adapter_is_not_worked_over_with_other_settings(tmp_path: Path) -> None:
    with open_workdir(tmp_path, {"epochs": 1, "workdir": "a", "rates": (1, 2)}):
        (tmp_path / ADAPTER).write_text("tuned")
    with open_workdir(tmp_path, {"epochs": 1, "workdir": "b", "rates": (1, 2)}):
        pass
    for other in ({"epochs": 2, "workdir": "a", "rates": (1, 2)}, {"adapter": "x"}):
        with (
            pytest.raises(ClipbiasError, match=r"holds the adapter of a run with other settings \(.*epochs"),
            open_workdir(tmp_path, other),
        ):
            pass
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 1


def test_an_option_left_out_is_its_default(tmp_path: Path) -> None:
    def config(**options: object) -> dict:
        return {"method": "ivlp", "method_options": options}

    with open_workdir(tmp_path, config(vision_depth=2)):
        (tmp_path / ADAPTER).write_text("tuned")
    whole = method_options(make_method("ivlp", vision_depth=2))
    assert len(whole) > 1
    with open_workdir(tmp_path, config(**whole)):
        pass
    with (
        pytest.raises(ClipbiasError, match=r"other settings \(method_options\)"),
        open_workdir(tmp_path, config(**whole | {"vision_depth": 3})),
    ):
        pass


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for place in (tmp_path, tmp_path / "below"):
        (place / f"{PART}abc").mkdir()
        (place / f"{PART}abc" / "half.json").write_text("{")
    (tmp_path / "below" / "kept.json").write_text("{}")
    with open_workdir(tmp_path, {}):
        left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".lock", "config.json", "environment.json", "kept.json", "state.json"]


@pytest.mark.parametrize("inside", ["file/x", "/dev/null/x", "/proc/self/x", "/sys/x", "a\0b", "x" * 300])
def test_a_folder_that_cannot_be_made(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipbiasError, match=r"cannot write .*; choose another"), open_workdir(tmp_path / inside, {}):
        pass


def test_a_lock_that_is_a_link_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".lock").symlink_to(tmp_path / "precious")
    with open_workdir(tmp_path / "work", {}):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


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


def test_a_refused_command_leaves_a_finished_run_as_it_was(tmp_path: Path) -> None:
    def record() -> dict[str, str]:
        return {path.name: path.read_text() for path in tmp_path.glob("*.json")}

    with open_workdir(tmp_path, {"a": 1}):
        (tmp_path / "result.json").write_text("{}")
    before = record()
    with pytest.raises(ClipbiasError), open_workdir(tmp_path, {"a": 2}):
        assert state(tmp_path)["state"] == "running"
        raise ClipbiasError("no such dataset")
    assert record() == before
    with pytest.raises(ClipbiasError), open_workdir(tmp_path, {"a": 2}):
        (tmp_path / "result.json").write_text("half of it")
        raise ClipbiasError("an image cannot be read")
    assert state(tmp_path)["state"] == "failed"


def test_a_result_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    with open_workdir(tmp_path, {"dataset": "a", "mesh": 1}, keep="result.json"):
        (tmp_path / "result.json").write_text("{}")
    with open_workdir(tmp_path, {"dataset": "a", "mesh": 2}, keep="result.json"):
        pass
    with (
        pytest.raises(ClipbiasError, match=r"holds the result of a run with other settings \(dataset\)"),
        open_workdir(tmp_path, {"dataset": "b", "mesh": 1}, keep="result.json"),
    ):
        pass


def test_a_file_system_without_locks_is_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with open_workdir(tmp_path, {}), atomic_folder(tmp_path / "export") as folder:
        (folder / "a").touch()
    assert state(tmp_path)["state"] == "finished" and (tmp_path / "export" / "a").exists()
    assert sum("without locks" in record.getMessage() for record in caplog.records) == 1
