"""`tools.export` as a user runs it."""

from pathlib import Path

import pytest
from absl.testing import flagsaver

import clipbias
from tools import export

DATA = Path(__file__).parents[1] / "data_files"
ADAPTER = str(DATA / "adapter_format_1.safetensors")
BASE = str(DATA / "tiny_quick_gelu")


def run(*arguments: str, **flags: str) -> int:
    with flagsaver.flagsaver(**flags):
        return export.main(["export", *arguments])


def test_an_adapter_of_prompts_and_one_of_biases(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(ADAPTER, str(tmp_path / "prompts"), base_model=BASE) == 0
    told = capsys.readouterr().out
    assert "adapter_format_1.safetensors as a program:" in told
    assert "classifier.stablehlo" in told
    task = clipbias.Task(clipbias.load(BASE), "bias", ("cat", "dog"))
    run_folder = tmp_path / "run"  # as experiments.train leaves it
    clipbias.save_adapter(run_folder / "adapter.safetensors", task, task.init(), method="bias")
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
