"""`clipbias export` as a user runs it."""

import os
import signal
from pathlib import Path

import pytest

import clipbias
import clipbias.export.folder
from clipbias.io import PART
from clipbias.tuning.adapter import save_adapter
from experiments import export
from tests.end_to_end.binaries import answer_here, refusal_here, succeed_here

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data_files"
ADAPTER = str(DATA / "adapter_format_1.safetensors")
BASE = str(DATA / "tiny_quick_gelu")


@pytest.mark.ci
def test_an_adapter_of_prompts_and_one_of_biases(tmp_path):
    printed, _ = succeed_here(export, {"adapters": ADAPTER, "model": BASE, "output": str(tmp_path / "prompts")})
    assert "adapter_format_1.safetensors as a program:" in printed and "classifier.stablehlo" in printed
    task = clipbias.Task(clipbias.load(BASE), "bias", ("cat", "dog"))
    run_folder = tmp_path / "run"  # as experiments.train leaves it
    save_adapter(run_folder / "adapter.safetensors", task, task.init())
    succeed_here(export, {"adapters": str(run_folder), "output": str(tmp_path / "biases")})
    assert clipbias.load(tmp_path / "biases").fingerprint == task.clip.fingerprint  # biases of zero


def test_mistakes_are_one_sentence(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    full, out = str(tmp_path / "full"), str(tmp_path / "out")
    for settings, message in (
        ({"adapters": ADAPTER}, "give an adapter and the folder to write"),
        ({"adapters": ADAPTER, "output": full, "model": BASE}, "exists already"),
        ({"adapters": ADAPTER, "output": out, "model": "demo"}, "does not fit"),
    ):
        assert message in refusal_here(export, settings)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "precious"]


@pytest.mark.parametrize(("notice", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_notice_to_stop_during_the_write_leaves_nothing(notice, status, tmp_path, monkeypatch):
    original = clipbias.export.folder.write_text

    def stopped(path: Path, text: str) -> None:
        original(path, text)
        assert list(tmp_path.glob(f"{PART}*"))
        os.kill(os.getpid(), notice)

    monkeypatch.setattr(clipbias.export.folder, "write_text", stopped)
    settings = {"adapters": ADAPTER, "model": BASE, "output": str(tmp_path / "out")}
    code, output = answer_here(export, settings)
    assert code == status and "stopped" in output and output.count("\n") == 1
    assert not list(tmp_path.iterdir())
