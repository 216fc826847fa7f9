"""Each fault that a process of a job is made to fail with is met, wherever what it replaces has gone since."""

import contextlib
import importlib
import io
from pathlib import Path

import pytest

import configs.demo
import experiments.table1
from experiments import common
from tools.faulty_process import FAILURES, install


@pytest.mark.parametrize("fault", FAILURES)
def test_a_fault_ends_the_command(fault: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, failure, _ = FAILURES[fault]
    module = importlib.import_module(where)
    monkeypatch.setattr(module, name, getattr(module, name))  # so that it is put back
    install(fault)
    config = configs.demo.get_config()
    config.model, config.methods, config.datasets = str(model), ("zero_shot",), ("demo/digits",)
    config.shots, config.seeds, config.mesh.data = (1,), (1,), 1
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            assert common.answer(experiments.table1.main, config, str(tmp_path)) == 1
        except OSError as error:  # a process by itself tells it with the place
            assert error is failure
            return
    assert failure.strerror in said.getvalue()
