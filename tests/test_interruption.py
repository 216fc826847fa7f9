"""A notice to stop ends what is being done, wherever it comes."""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipbias import interruption
from clipbias.interruption import SIGNALS, Interrupted, check, noted
from experiments import common

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("number", SIGNALS)
def test_it_is_seen_where_it_is_looked_for(number: int) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    with noted() as outer, noted() as notice:
        check()
        os.kill(os.getpid(), number)
        assert outer.given == notice.given == number
        with pytest.raises(Interrupted) as found:
            check()
    assert found.value.status == 128 + number
    assert [signal.getsignal(one) for one in SIGNALS] == before
    check()  # it was for that block


def test_it_is_not_lost_where_nothing_can_be_raised() -> None:
    class Finalised:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def running(phase: str, _: dict) -> None:
        if phase == "start":
            os.kill(os.getpid(), signal.SIGINT)

    with noted() as notice:
        Finalised()
        assert notice.given == signal.SIGTERM
    with noted() as notice, contextlib.ExitStack() as opened:
        gc.callbacks.append(running)
        opened.callback(gc.callbacks.remove, running)
        gc.collect()
        assert notice.given == signal.SIGINT


def test_a_second_one_does_what_it_does_without() -> None:
    with noted():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def program(folder: Path, body: str, grace: float) -> subprocess.Popen:
    """A program that prints "ready" where a signal is to be sent, and has a file in the making."""
    text = f"""
    import contextlib, hashlib, signal, sys, time
    from pathlib import Path
    from clipbias import folders, interruption
from clipbias import io as files
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interruption.GRACE = interruption.Notice.grace = {grace}
    interruption.watch()
    folder = Path({str(folder)!r})
    def begin():
        notice = opened.enter_context(interruption.noted())
        notice.grace = {grace}
        opened.enter_context(interruption.last_words(lambda said: files.write_text(folder / "state", said)))
        opened.enter_context(files.atomic_path(folder / "result")).write_text("half")
        opened.enter_context(folders.atomic_folder(folder / "export")).joinpath("half").touch()
        print("ready", flush=True)
    with contextlib.ExitStack() as opened:
        {body}
    """
    command = [sys.executable, "-c", textwrap.dedent(text)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("body", "signals", "grace", "left"),
    [
        (
            "begin(); hashlib.pbkdf2_hmac('sha256', b'', b'', 2 * 10**9)",
            ["SIGTERM"],
            0.2,
            {"state"},
        ),  # looks for nothing
        ("begin(); time.sleep(100)", ["SIGINT", "SIGTERM"], 100, {"state"}),  # the second one ends it at once
        ("print('ready', flush=True); time.sleep(100)", ["SIGINT"], 100, set()),  # nobody looks for it yet
    ],
)
def test_a_program_ends(body: str, signals: list[str], grace: float, left: set[str], tmp_path: Path) -> None:
    process = program(tmp_path, body, grace)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for name in signals:
        process.send_signal(getattr(signal, name))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.3)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, signals[0])
    assert said == "stopped; the same command continues.\n"
    assert {path.name for path in tmp_path.iterdir()} == left


def test_work_that_is_done_is_not_undone(tmp_path: Path) -> None:
    process = program(tmp_path, "interruption.leave(3); print('ready', flush=True); time.sleep(100)", 100)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 3


@pytest.mark.parametrize("status", [0, 1, 143])
def test_only_a_good_end_waits_for_what_still_runs(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk failed, the storage library's threads wait for minutes for what will not come."""
    ended: list[int] = []
    monkeypatch.setattr(interruption, "_watch", types.SimpleNamespace(outcome=None))
    monkeypatch.setattr(os, "_exit", ended.append)
    assert common.end(status) == status
    assert ended == ([status] if status else [])


def test_the_end_of_the_interpreter_is_not_disturbed(tmp_path: Path) -> None:
    """A finaliser that is called after all that was registered for the end."""
    body = "sys.modules['last'] = type('Last', (), {'__del__': lambda _: (print('ready', flush=True), sleep(1))})()"
    process = program(tmp_path, f"sleep = time.sleep; interruption.leave(0); {body}", 100)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0


@pytest.fixture
def slow_import(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment in which the first library that binaries import takes long."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(100)\n")
    yield {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}


@pytest.mark.parametrize("module", ["experiments.train", "experiments.export"])
def test_binaries_watch_before_they_import_anything(module: str, slow_import: dict[str, str]) -> None:
    command = [sys.executable, "-m", module]
    process = subprocess.Popen(
        command, cwd=ROOT, env=slow_import, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, said.count("\n"), said[:8]) == (143, 1, "stopped;"), json.dumps(said)
