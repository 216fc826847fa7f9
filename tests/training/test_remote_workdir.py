"""A work folder in an object store: fetched, kept up, and continued from after the machine is gone."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import configs.demo
import experiments.table1
from clipbias.errors import ClipbiasError
from clipbias.io import PART
from clipbias.training import loop, processes, remote_workdir
from clipbias.training.remote_workdir import Copy, local_folder
from experiments import common
from tests.bucket import Bucket
from tools.disturb import comparable

RUN = "gs://bucket/runs/one"


def names(bucket: Bucket) -> set[str]:
    return {path.removeprefix("/bucket/runs/one/") for path in bucket.find(RUN)}


def test_what_is_there_is_fetched_and_what_is_new_is_sent(bucket: Bucket) -> None:
    with local_folder(RUN) as folder:
        assert not list(folder.iterdir())
        (folder / "adapters").mkdir()
        for name in ("state.json", "results.jsonl", "adapters/a.safetensors", ".lock", f"{PART}x.json", "gone"):
            (folder / name).write_text(name)
        (folder / "3.orbax-checkpoint-tmp").mkdir()
        (folder / "3.orbax-checkpoint-tmp" / "half").touch()
    assert not folder.exists()
    assert names(bucket) == {"state.json", "results.jsonl", "adapters/a.safetensors", "gone"}
    order = [path.removeprefix(f"{RUN}/") for path in bucket.written]
    assert order == ["adapters/a.safetensors", "gone", "results.jsonl", "state.json"]
    bucket.written.clear()
    with local_folder(f"{RUN}/") as folder:
        assert (folder / "results.jsonl").read_text() == "results.jsonl"
        (folder / "results.jsonl").write_text("two")
        (folder / "gone").unlink()
    assert bucket.written == [f"{RUN}/results.jsonl"] and bucket.cat_file(f"{RUN}/results.jsonl") == b"two"
    assert names(bucket) == {"state.json", "results.jsonl", "adapters/a.safetensors"}


def test_it_is_kept_up_while_the_work_goes_on(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_workdir, "SECONDS", 0.02)
    with local_folder(RUN) as folder:
        bucket.refused = "busy"
        (folder / "one").write_text("1")
        time.sleep(0.1)
        bucket.refused = ""
        deadline = time.monotonic() + 20
        while "one" not in names(bucket):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_what_cannot_be_is_told_before_the_work(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.pipe_file("gs://bucket/runs/one/../../two/x", b"")
    with pytest.raises(ClipbiasError, match=r"holds '\.\./\.\./two/x', which is no plain path"), local_folder(RUN):
        pass
    bucket.pipe_file("gs://bucket/three/x", b"")
    monkeypatch.setattr(Bucket, "cat_file", lambda *_: 1 / 0)
    with pytest.raises(ClipbiasError, match="cannot read gs://bucket/three: division by zero; check --workdir"):
        local_folder("gs://bucket/three").__enter__()
    monkeypatch.setattr(processes, "several", lambda: True)
    with pytest.raises(ClipbiasError, match=r"several processes cannot share .* no locks; mount the bucket"):
        local_folder(RUN).__enter__()


def test_a_grid_that_was_stopped_continues_elsewhere(
    model: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = configs.demo.get_config()
    config.model, config.methods, config.datasets = str(model), ("vpt",), ("demo/digits",)
    config.shots, config.seeds, config.epochs, config.eval_batch_size, config.mesh.data = (1,), (1,), 3, 100, 1
    assert common.answer(experiments.table1.main, config, str(tmp_path / "whole")) == 0
    original, calls = loop.train_step, []

    def noticed(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", noticed)
        assert common.answer(experiments.table1.main, config, RUN) == 143
    assert "has no lock" in caplog.text and any("checkpoints/" in name for name in names(bucket))
    assert common.answer(experiments.table1.main, config, RUN) == 0
    assert not any("checkpoints/" in name for name in names(bucket))
    (tmp_path / "again").mkdir()
    Copy(RUN, tmp_path / "again").fetch()
    assert comparable(tmp_path / "whole") == comparable(tmp_path / "again")
