"""A disk that fills up while something is saved: one sentence, and what was there before stays."""

import asyncio
import contextlib
import errno
import json
import logging as python_logging
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NoReturn

import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.explain.results import save_arrays
from clipbias.io import read_json_lines, write_tensors, write_text
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, write_csv
from clipbias.training import workdir
from clipbias.training.checkpoint import Checkpoints
from clipbias.training.metrics import MetricWriter
from clipbias.training.results import Results
from clipbias.training.workdir import STATE, open_workdir
from clipbias.tuning import Task
from clipbias.tuning.adapter import load_adapter, save_adapter
from experiments import common


@contextlib.contextmanager
def no_room_for(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, as on a disk with no more room than that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_last_checkpoint_stays(tmp_path: Path) -> None:
    state = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)}
    checkpoints = Checkpoints(tmp_path, identity={})
    checkpoints.save(1, state, [])
    checkpoints.wait()
    with (
        no_room_for(512),
        pytest.raises(
            ClipbiasError, match=r"checkpoint in .*: File too large; the previous checkpoint is intact, make room, or"
        ),
    ):
        checkpoints.save(2, {"a": state["a"] + 1}, [])
        checkpoints.wait()
    checkpoints.close()
    again = Checkpoints(tmp_path, identity={})
    step, restored, _ = again.restore(state)
    again.close()
    assert step == 1
    np.testing.assert_array_equal(restored["a"], state["a"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_first_checkpoint_speaks_of_no_former_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, identity={})
    with no_room_for(512), pytest.raises(ClipbiasError, match=r": File too large; make room, or see to the disk, and"):
        checkpoints.save(1, {"a": np.random.default_rng(0).normal(size=(64, 64))}, [])
        checkpoints.wait()
    checkpoints.close()


def test_the_last_adapter_stays(clip: Clip, tmp_path: Path) -> None:
    task, path = Task(clip, "bias", ("a", "b")), tmp_path / "adapter.safetensors"
    save_adapter(path, task, task.init(), notes={"n": 1})
    with no_room_for(64), pytest.raises(ClipbiasError, match=r"cannot write .*adapter\.safetensors"):
        save_adapter(path, task, task.init(), notes={"n": 2})
    assert load_adapter(path).notes == {"n": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["adapter.safetensors"]


def test_results_and_metrics_stay(tmp_path: Path) -> None:
    row = dict(protocol="few_shot", method="bias", dataset="d", shots=1, config_hash="x", status="ok", accuracy=1.0)
    path = tmp_path / "results.jsonl"
    Results(path).append([{**row, "seed": 1}])
    full = path.stat().st_size + 10
    with no_room_for(full), pytest.raises(ClipbiasError, match=r"cannot write .*results\.jsonl: File too large; make"):
        Results(path).append([{**row, "seed": 2}])
    assert path.stat().st_size == full  # the line that was cut short
    assert [kept["seed"] for kept in Results(path).rows] == [1]
    assert path.read_text().count("\n") == 1
    with (
        MetricWriter(tmp_path) as metrics,
        no_room_for(30),
        pytest.raises(ClipbiasError, match=r"metrics\.jsonl: File too large; make room, or see to the disk"),
    ):
        for step in range(9):
            metrics.write(step, {"loss": 1.0})
    assert read_json_lines(tmp_path / "metrics.jsonl") == [{"step": 0, "loss": 1.0}]


def test_arrays_tables_and_pictures_stay(tmp_path: Path) -> None:
    """Each writer of the library twice: with room, then without."""
    figure = style.new_figure(1, 1)
    figure.add_subplot().plot([0, 1])
    noise = np.random.default_rng(0).normal(size=200)
    drawing = CaptionedFigure("figure", "A figure", "Its caption.", figure, ("a",), tuple((float(x),) for x in noise))
    writers = {
        "a.npz": lambda: save_arrays(tmp_path / "a.npz", {"a": noise}),
        "b.csv": lambda: write_csv(tmp_path / "b.csv", ("a",), drawing.rows),
        "figure.pdf": lambda: drawing.save(tmp_path),
        "c.safetensors": lambda: write_tensors(tmp_path / "c.safetensors", {"a": noise}, {}),
    }
    for name, write in writers.items():
        write()
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with (
            no_room_for(64),
            pytest.raises(ClipbiasError, match=f"cannot write .*{name}: File too large"),
        ):
            write()
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_last_text_stays(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "first")
    with no_room_for(4), pytest.raises(ClipbiasError, match="cannot write"):
        write_text(tmp_path / "a", "second" * 100)
    assert (tmp_path / "a").read_text() == "first"


def test_orbax_tells_its_errors_to_us_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It logs them with a traceback, and raises them as well; what it wrote of others has nobody to be told to."""
    before = [*logging.get_absl_handler().filters]
    lost: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: lost.append(str(one.exc_value)))
    common.quiet()
    try:
        (told,) = [one for one in logging.get_absl_handler().filters if one not in before]
        own = ("name", python_logging.ERROR, "/site-packages/orbax/a.py", 1, "failed", ())
        assert not told(python_logging.LogRecord(*own, (OSError, OSError(), None)))
        assert told(python_logging.LogRecord(*own, None))
        elsewhere = (*own[:2], "/site-packages/jax/a.py", *own[3:])
        assert told(python_logging.LogRecord(*elsewhere, (OSError, OSError(), None)))
        loop = asyncio.new_event_loop()
        loop.close()

        class Telling:
            def __init__(self, tell: Callable[[], object]) -> None:
                self.tell = tell

            def __del__(self) -> None:
                self.tell()

        Telling(lambda: loop.call_soon_threadsafe(print))
        Telling(lambda: 1 / 0)
        assert lost == ["division by zero"]
    finally:
        logging.get_absl_handler().filters = before


def test_how_a_run_ended_is_noted_where_no_other_file_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def over(path: Path, mode: str, **options: int) -> IO[bytes]:
        assert "w" not in mode, "emptied first, the file might find no room for its content again"
        return open(path, mode, **options)

    before = "x" * 1000  # which what is written over it is shorter than
    with pytest.raises(ClipbiasError, match="the disk is full"), open_workdir(tmp_path, {}):
        state = json.loads((tmp_path / STATE).read_text())
        (tmp_path / STATE).write_text(json.dumps({**state, "error": before}))
        monkeypatch.setattr(tempfile, "mkstemp", full)
        monkeypatch.setattr(workdir, "open", over, raising=False)
        raise ClipbiasError("the disk is full")
    ended = json.loads((tmp_path / STATE).read_text())
    assert (ended["state"], ended["error"]) == ("failed", "the disk is full")
