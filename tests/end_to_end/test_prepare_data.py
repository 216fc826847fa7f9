"""`clipbias prepare_data` as a user runs it."""

import os
import signal

import pytest

from clipbias import data
from clipbias.data import transforms
from experiments import prepare_data
from tests.data import miniatures
from tests.end_to_end.binaries import answer_here, refusal_here, succeed_here


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return miniatures.make_all(tmp_path_factory.mktemp("all"))


def test_check_lists_all_fifteen(root, capsys):
    assert answer_here(prepare_data, {"data_dir": str(root)}) == (1, "")
    assert sum(" differs " in line for line in capsys.readouterr().out.splitlines()) == 15


BUILD = {"action": "build", "datasets": ("ucf101",)}


def test_build_then_load(root, tmp_path):
    printed, _ = succeed_here(prepare_data, BUILD | {"data_dir": str(root), "output": str(tmp_path)})
    assert f"ucf101: {tmp_path}/ucf101_coop/1.0.0" in printed
    built, made_of = (data.load("ucf101", data_dir=place).splits["val"] for place in (tmp_path, root))
    assert built.keys == made_of.keys


@pytest.mark.parametrize(("notice", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_notice_to_stop_during_a_build_leaves_nothing(root, tmp_path, monkeypatch, notice, status):
    original = transforms.check_format

    def stopped(encoded, key):
        original(encoded, key)
        os.kill(os.getpid(), notice)

    monkeypatch.setattr(transforms, "check_format", stopped)
    out = tmp_path / "shards"
    code, output = answer_here(prepare_data, BUILD | {"data_dir": str(root), "output": str(out)})
    assert code == status and "stopped; the same command" in output
    assert not out.exists()


def test_mistakes_are_one_sentence(root, tmp_path):
    draw = {"action": "draw", "output": str(tmp_path / "sheet.png")}
    for settings, message in (
        ({}, "check needs --config.data_dir"),
        (BUILD | {"data_dir": str(root)}, "build needs --config.datasets, and --config.output"),
        (draw, "draw needs --config.datasets with one name"),
        (draw | {"datasets": ("ucf101",), "data_dir": str(tmp_path / "nowhere")}, "there is no folder"),
    ):
        assert message in refusal_here(prepare_data, settings)
