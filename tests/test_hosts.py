"""Several real processes, and a notice to stop."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest

from clipbias import hosts
from clipbias.errors import ClipbiasError
from experiments import common
from tests.forks import ROOT

# Prints what the processes exchange, then takes steps until they stop.
PROGRAM = """
import json, sys, time
from clipbias import hosts
if "leave" in sys.argv:
    hosts.SHUTDOWN_SECONDS = 1
hosts.start()
index = int(sys.argv[1])
say = lambda value: print("said", json.dumps(value), flush=True)  # gloo prints, too
say([
    hosts.multi_process(), hosts.is_first(),
    hosts.gather({"number": index, "text": "ä" * 300 * index}), hosts.from_first(lambda: ["decided by", index]),
])
hosts.assert_same("the model", "same")
try:
    hosts.assert_same("the images", index)
except ValueError as error:
    say(str(error))
with hosts.stoppable():
    steps = 1
    while not hosts.stops():
        steps += 1
        time.sleep(0.01)
        if steps == 100 and index == 1 and "fail" in sys.argv:
            raise RuntimeError("broken")
    say(steps)
if "leave" in sys.argv:
    hosts.leave()
    if hosts.is_first():
        time.sleep(2)
    say([hosts.multi_process(), hosts.is_first()])
sys.exit(hosts.Stopped().status)
"""


@contextlib.contextmanager
def two_processes(*arguments: str) -> Iterator[list[subprocess.Popen]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{probe.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with contextlib.ExitStack() as opened:
        started = []
        for index in range(2):
            command = [sys.executable, "-c", PROGRAM, str(index), *arguments]
            environment = {**os.environ, **cluster, "JAX_PROCESS_ID": str(index)}
            started.append(opened.enter_context(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)))
            opened.callback(started[-1].kill)
        yield started


def next_said(process: subprocess.Popen) -> Any:
    assert process.stdout is not None
    return next(json.loads(line[5:]) for line in process.stdout if line.startswith("said "))


@pytest.mark.ci
def test_two_processes_exchange_values_stop_at_the_same_step_and_leave_each_other():
    """After which the first may draw for longer than the other would wait."""
    with two_processes("leave") as processes:
        errors = set()
        for index, process in enumerate(processes):
            is_multi_process, first, gathered, decided = next_said(process)
            assert (is_multi_process, first, decided) == (True, index == 0, ["decided by", 0])
            assert gathered == [{"number": 0, "text": ""}, {"number": 1, "text": "ä" * 300}]
            errors.add(next_said(process))
        assert len(errors) == 1 and errors.pop().startswith("process 1 and process 0 do not agree on the images; ")
        time.sleep(0.3)
        processes[1].send_signal(signal.SIGTERM)  # to one of them alone
        steps = {next_said(process) for process in processes}
        assert len(steps) == 1 and steps.pop() > 1
        assert [next_said(process) for process in processes] == [[False, True], [False, False]]
        assert [process.wait(timeout=60) for process in processes] == [143, 143]


@pytest.mark.ci
@pytest.mark.parametrize("cause", ["fail", "kill"])
def test_where_one_process_ends_the_other_ends_too(cause):
    with two_processes(cause) as processes:
        for process in processes:
            next_said(process)
        begin = time.monotonic()
        if cause == "kill":
            processes[0].kill()
        assert all(process.wait(timeout=90) for process in processes)
        assert time.monotonic() - begin < 60


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_notice_sets_a_flag(number, status):
    before = signal.getsignal(signal.SIGTERM)
    with hosts.stoppable(), hosts.stoppable():
        hosts.check()
        assert not hosts.stops()
        signal.raise_signal(number)
        assert hosts.stops()
        with pytest.raises(hosts.Stopped) as stopped:
            hosts.check()
        assert stopped.value.status == status
        signal.raise_signal(signal.SIGTERM)  # a scheduler may send it more than once
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    hosts.check()
    assert not hosts.stops() and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ({"SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, []),
        ({"SLURM_NTASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, None),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "JAX_LOCAL_DEVICE_IDS": "0"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, []),
    ],
)
def test_a_process_with_a_node_for_itself_takes_all_its_devices(monkeypatch, variables, devices):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    joined: list[dict] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: joined.append(options))
    hosts.start()
    assert [options["local_device_ids"] for options in joined] == [devices]


def test_without_a_cluster_nothing_is_joined(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("joined a cluster"))
    hosts.start()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ClipbiasError, match="JAX_NUM_PROCESSES is 'two'; give a number"):
        hosts.start()


GONE = "INTERNAL: Gloo AllReduce failed: Connection closed by peer [127.0.0.1]:40000"


@pytest.mark.parametrize(
    ("cause", "lost"),
    [
        (jax.errors.JaxRuntimeError(GONE), True),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: the coordination service is not there"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), False),
        (OSError("Connection reset by peer"), False),  # such as of a download
    ],
)
def test_a_process_that_is_gone_is_no_fault_of_the_disk(cause, lost, monkeypatch, capsys):
    def checkpoint() -> None:
        try:
            raise cause
        except Exception as error:
            raise ClipbiasError("cannot open the checkpoints; see to the disk.") from error

    def step() -> None:
        raise cause

    def said(work: Callable[[], None]) -> str:
        assert common.status_of(work) == 1
        return capsys.readouterr().err

    disk = "error: cannot open the checkpoints; see to the disk.\n"
    assert said(checkpoint) == disk  # one process has no peers
    monkeypatch.setattr(hosts, "multi_process", lambda: True)
    ended = f"error: {hosts.PEER_ENDED}\n"
    assert said(checkpoint) == (ended if lost else disk)
    if lost:
        assert said(step) == ended
    else:
        with pytest.raises(type(cause)):
            common.status_of(step)
