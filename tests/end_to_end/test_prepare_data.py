"""`clipbias prepare_data` as a user runs it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import array_record.python.array_record_data_source  # noqa: F401 (flagsaver would forget its flags otherwise)
import pytest
from absl.testing import flagsaver
from PIL import Image

from clipbias import data
from clipbias.data import transforms
from experiments import common, prepare_data
from tests.data import miniatures

ROOT = Path(__file__).parents[2]


def run(*arguments):
    line = [sys.executable, "-m", "experiments.prepare_data", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return miniatures.make_all(tmp_path_factory.mktemp("all"))


def test_check_lists_all_fifteen(root):
    done = run("check", f"--data_dir={root}")
    assert done.returncode == 1 and done.stderr == ""
    assert sum(" differs " in line for line in done.stdout.splitlines()) == 15


def test_nothing_found_is_no_failure(tmp_path, capsys):
    with flagsaver.flagsaver(data_dir=str(tmp_path)):
        assert prepare_data.main(["check", "eurosat"]) == 0
    told = capsys.readouterr().out
    assert "missing" in told and "EuroSAT: there is no folder" in told


def test_build_then_load(root, tmp_path, capsys):
    with flagsaver.flagsaver(data_dir=str(root), out_dir=str(tmp_path)):
        assert prepare_data.main(["build", "ucf101"]) == 0
    assert f"ucf101: {tmp_path}/ucf101_coop/1.0.0" in capsys.readouterr().out
    built, made_of = (data.load("ucf101", data_dir=place).splits["val"] for place in (tmp_path, root))
    assert built.keys == made_of.keys


@pytest.mark.parametrize(("notice", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_notice_to_stop_during_a_build_leaves_nothing(root, tmp_path, capsys, monkeypatch, notice, status):
    original = transforms.check_format

    def stopped(encoded, key):
        original(encoded, key)
        os.kill(os.getpid(), notice)

    monkeypatch.setattr(transforms, "check_format", stopped)
    out = tmp_path / "shards"
    with flagsaver.flagsaver(data_dir=str(root), out_dir=str(out)):
        assert common.answer_names(prepare_data.main, ["build", "ucf101"]) == status
    assert "stopped; the same command" in capsys.readouterr().err
    assert not out.exists()


def test_a_wrong_flag_is_one_sentence():
    done = run("show", "eurosat", "--shots=none")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "--shots=none" in done.stderr and done.stderr.count("\n") == 1


def test_show_writes_a_picture(root, tmp_path):
    with flagsaver.flagsaver(data_dir=str(root), shots=2, picture=str(tmp_path / "sheet.png")):
        assert prepare_data.main(["show", "oxford_pets"]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] >= 480


def test_mistakes_are_one_sentence(root, tmp_path, capsys):
    for arguments, flags, message in (
        (["chek"], {}, "must be one of check, build, show"),
        (["check"], {}, "check needs --data_dir"),
        (["check", "eurosta"], {"data_dir": root}, "did you mean eurosat"),
        (["build", "ucf101"], {"data_dir": root}, "build needs the name of a dataset and --out_dir"),
        (["show", "ucf101"], {"data_dir": tmp_path / "nowhere"}, "there is no folder"),
        (["show"], {"data_dir": root}, "show needs the name of one dataset, got 0"),
    ):
        with flagsaver.flagsaver(**{name: str(value) for name, value in flags.items()}):
            assert common.answer_names(prepare_data.main, arguments) == 1
        told = capsys.readouterr().err
        assert told.startswith("error: ") and message in told and told.count("\n") == 1
