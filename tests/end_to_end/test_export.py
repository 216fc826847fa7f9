"""`clipbias export` as a user runs it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver

import clipbias
import clipbias.export.folder
from clipbias.io import PART
from experiments import common, export

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data_files"
ADAPTER = str(DATA / "adapter_format_1.safetensors")
BASE = str(DATA / "tiny_quick_gelu")


def run(*arguments: str, **flags: str) -> int:
    with flagsaver.flagsaver(**flags):
        return common.answer_names(export.main, arguments)


def test_an_adapter_of_prompts_and_one_of_biases(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(ADAPTER, str(tmp_path / "prompts"), base_model=BASE) == 0
    told = capsys.readouterr().out
    assert "adapter_format_1.safetensors as a program:" in told
    assert "classifier.stablehlo" in told
    task = clipbias.Task(clipbias.load(BASE), "bias", ("cat", "dog"))
    run_folder = tmp_path / "run"  # as experiments.train leaves it
    clipbias.save_adapter(run_folder / "adapter.safetensors", task, task.init())
    assert run(str(run_folder), str(tmp_path / "biases")) == 0
    assert clipbias.load(tmp_path / "biases").fingerprint == task.clip.fingerprint  # biases of zero


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    for arguments, flags, message in (
        ([ADAPTER], {}, "give an adapter and the folder to write"),
        ([str(tmp_path / "none"), "out"], {}, "no adapter file"),
        ([ADAPTER, str(tmp_path / "full")], {"base_model": BASE}, "exists already"),
        ([ADAPTER, str(tmp_path / "out")], {"base_model": "demo"}, "does not fit"),
        ([ADAPTER, str(tmp_path / "out")], {"base_model": BASE, "form": "checkpoint"}, "cannot be folded"),
    ):
        assert run(*arguments, **flags) == 1
        told = capsys.readouterr().err
        assert told.startswith("error: ") and message in told and told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "precious"]


@pytest.mark.parametrize(("notice", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_notice_to_stop_during_the_write_leaves_nothing(
    notice: signal.Signals, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    original = clipbias.export.folder.write_text

    def stopped(path: Path, text: str) -> None:
        original(path, text)
        assert list(tmp_path.glob(f"{PART}*"))
        os.kill(os.getpid(), notice)

    monkeypatch.setattr(clipbias.export.folder, "write_text", stopped)
    assert run(ADAPTER, str(tmp_path / "out"), base_model=BASE) == status
    told = capsys.readouterr().err
    assert "stopped" in told and told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_wrong_flag_is_one_sentence(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "experiments.export", ADAPTER, str(tmp_path / "out"), "--form=onnx"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "<checkpoint|head|program|peft>" in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout
