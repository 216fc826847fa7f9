"""Disturbs one process of a job and checks that all end alike, and that the same command then continues.

    python -m tools.disturb_processes --work=/tmp/disturbed
    python -m tools.disturb_processes --work=/tmp/disturbed --processes=4 kill stop
    python -m tools.disturb_processes --work=/tmp/disturbed --program=explain

A grid or a study runs in several real processes, once undisturbed. Then, in a folder of its own for each way of
disturbing it, one process is killed or stopped, finds a damaged image or checkpoint, or fails (`faulty_process.py`), or
is told to stop, once or twice. All others must end within 90 seconds, within 5 after a second notice, with the same
sentence and the same status and without a traceback; and the same command, given again, must end with the results of
the undisturbed job, to the last bit. The exit status is 0 if all do.
"""

import argparse
import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipbias.errors import ClipbiasError
from clipbias.io import read_json, read_json_lines
from tools.disturb import COMMANDS, Command, Trials, comparable

# How long all may take from the disturbance to their end, after a second notice, and how long a job that nothing
# disturbs.
LIMIT, AT_ONCE, LENGTH = 90.0, 5.0, 600.0


@dataclasses.dataclass(frozen=True)
class Program:
    """What runs in several processes.

    Attributes:
      command: what to run.
      progress: how far it is, a number that grows.
      begun: the progress from which it is in the middle of its work.
      results: what must be the same in two jobs, however often they were disturbed.
    """

    command: Command
    progress: Callable[[Path], int]
    begun: int
    results: Callable[[Path], Mapping[str, Any]]


def steps(folder: Path) -> int:
    """How many steps of a grid's training were done."""
    return sum(len(read_json_lines(path)) for path in folder.glob("runs/*/metrics.jsonl"))


def cells(folder: Path) -> dict[str, Any]:
    """The results of a grid."""
    found = {name: value for name, value in comparable(folder).items() if name.startswith(("adapters/", "table."))}
    lines = [line for line in read_json_lines(folder / "results.jsonl") if line["status"] == "ok"]
    return found | {f"{one['dataset']} {one['seed']}": (one["accuracy"], one["loss"]) for one in lines}


def findings(folder: Path) -> dict[str, Any]:
    """The results of a study, whose report is of them."""
    return {name: value for name, value in comparable(folder).items() if name.startswith("results.")}


PROGRAMS = {
    "table1": Program(
        Command(
            "experiments.table1",
            "--config=configs/demo.py --config.model={model} --config.methods=('bias',) "
            "--config.datasets=('demo/digits','demo/fashion') --config.shots=(2,) --config.seeds=(1,2) "
            "--config.epochs=12 --config.checkpoint_seconds=0.0 --workdir={out}",
        ),
        steps,
        4,
        cells,
    ),
    "explain": Program(
        dataclasses.replace(
            COMMANDS["explain"],
            arguments=COMMANDS["explain"].arguments + " --config.figures=vision_attention,similarity",
        ),
        lambda folder: len(list(folder.glob("parts/*.npz"))),
        1,
        findings,
    ),
}
CELLS = 4


class Job:
    """The processes of one start of a program."""

    def __init__(self, program: Program, trials: Trials, folders: Sequence[Path], **faults: str) -> None:
        """Starts a process for each folder; `process1="image"` is a fault of that one."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.program, self.folder, self.processes = program, folders[0], []
        for number, folder in enumerate(folders):
            job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(folders))}
            job["JAX_PROCESS_ID"] = str(number)
            module, arguments = program.command.module, program.command.arguments.replace("{out}", str(folder))
            if fault := faults.get(f"process{number}"):
                module, arguments = "tools.faulty_process", f"{fault} {module} {arguments}"
            self.processes.append(trials.start(module, arguments, job))

    def await_middle(self) -> None:
        """Waits until it is in the middle of its work."""
        deadline = time.monotonic() + LENGTH
        while self.program.progress(self.folder) < self.program.begun:
            if time.monotonic() > deadline or any(process.poll() is not None for process in self.processes):
                break
            time.sleep(0.05)

    def ends(self, seconds: float, *, but: int | None = None) -> list[tuple[int, str]]:
        """How all processes end, but for one: status and errors. One that does not is killed."""
        deadline, found = time.monotonic() + seconds, []
        for number, process in enumerate(self.processes):
            if number == but:
                continue
            try:
                _, errors = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                _, errors = process.communicate()
                errors += "\n(it did not end by itself)"
            found.append((process.returncode, errors))
        for process in self.processes:
            process.kill()
        return found


# Starts a job in that folder, and disturbs it: the job, and the process that is gone.
Disturb = Callable[[Program, Trials, Sequence[Path]], tuple[Job, int | None]]


def _signalled(how: signal.Signals, *numbers: int, times: int = 1, gone: bool = False, early: bool = False) -> Disturb:
    """Sends processes, all without numbers, a signal so many times."""

    def disturb(program: Program, trials: Trials, folders: Sequence[Path]) -> tuple[Job, int | None]:
        job = Job(program, trials, folders)
        _await_start(folders[0]) if early else job.await_middle()
        for time_ in range(times):
            time.sleep(0.3 if time_ else 0.0)
            for number in numbers or range(len(folders)):
                job.processes[number].send_signal(how)
        return job, numbers[0] if gone else None

    return disturb


def _await_start(folder: Path) -> None:
    """Waits until the work folder is open, when programs are compiled."""
    deadline = time.monotonic() + LIMIT
    while not (folder / "state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _fails(number: int, fault: str) -> Disturb:
    return lambda program, trials, folders: (Job(program, trials, folders, **{f"process{number}": fault}), None)


def _elsewhere(program: Program, trials: Trials, folders: Sequence[Path]) -> tuple[Job, int | None]:
    """Process 1 has a folder of its own under the same name."""
    first = folders[0]
    return Job(program, trials, [first, first.with_name(f"{first.name}_view"), *folders[2:]]), None


SCENARIOS: Mapping[str, Disturb] = {
    "image": _fails(1, "image"),
    "evaluation": _fails(1, "evaluation"),
    "program": _fails(1, "program"),
    "disk_of_first": _fails(0, "disk"),
    "disk": _fails(1, "disk"),
    "table": _fails(0, "table"),
    "kill": _signalled(signal.SIGKILL, 1, gone=True),
    "kill_first": _signalled(signal.SIGKILL, 0, gone=True),
    "stop": _signalled(signal.SIGSTOP, 1, gone=True),
    "stop_first": _signalled(signal.SIGSTOP, 0, gone=True),
    "notice": _signalled(signal.SIGTERM, 1),
    "notice_twice": _signalled(signal.SIGTERM, times=2, early=True),
    "notice_twice_one": _signalled(signal.SIGTERM, 1, times=2, early=True),
    "notice_twice_first": _signalled(signal.SIGTERM, 0, times=2, early=True),
    "interrupt_twice": _signalled(signal.SIGINT, times=2, early=True),
    "interrupt_twice_late": _signalled(signal.SIGINT, times=2),
    "elsewhere": _elsewhere,
}
# Those after which all is done as if nothing had happened, for the process concerned writes nothing.
HARMLESS = ("disk",)
# Those that make sense for a study, too.
OF_STUDIES = (
    *("image", "kill", "kill_first", "stop", "stop_first", "notice", "notice_twice", "notice_twice_one"),
    *("interrupt_twice_late", "elsewhere"),
)


def sentence(errors: str) -> str:
    """The last line that a process left."""
    return (errors.strip().splitlines() or [""])[-1]


def disturbed(name: str, program: Program, trials: Trials, count: int, whole: Mapping[str, Any]) -> Iterator[str]:
    """Disturbs a job in one way; yields what is not as it should be."""
    out = trials.work / name
    job, gone = SCENARIOS[name](program, trials, [out] * count)
    began = time.monotonic()
    ends = job.ends(LENGTH if gone is None else LIMIT, but=gone)
    took = time.monotonic() - began
    # Of those that ended well the last line is that of a bar.
    said, statuses = {sentence(errors) for status, errors in ends if status}, {status for status, _ in ends}
    try:
        state = read_json(out / "state.json", dict)
    except ClipbiasError as error:
        state = {"state": "not there", "error": error}
    print(f"{name}: after {took:.0f} s status {statuses}, {state['state']}: {' | '.join(sorted(said))}", flush=True)
    if len(said) > 1 or len(statuses) > 1:
        yield "they do not end alike"
    if any("Traceback" in errors or "*** Check failure" in errors for _, errors in ends):
        yield "a traceback: " + next(errors for _, errors in ends if "Traceback" in errors or "***" in errors)[-3000:]
    if any(errors.count(line) > 1 for _, errors in ends for line in said if line):
        yield "they say it twice"
    if statuses == {0} and name not in HARMLESS:
        yield "nothing was disturbed"
    if "_twice" in name and (took > AT_ONCE or not statuses <= {128 + signal.SIGINT, 128 + signal.SIGTERM}):
        yield f"{took:.0f} s after a second notice"
    recorded = str(state["error"]).removeprefix("Interrupted: ")
    if state["state"] != "finished" and not any(recorded in line for line in said):
        yield f"the record says {state['error']!r}"
    if state["state"] == "running":
        yield "the record says that it runs"
    if name == "image" and program is PROGRAMS["table1"] and len(cells(out)) < CELLS // 2:
        yield "the grid did not go on"
    shutil.rmtree(out.with_name(f"{out.name}_view"), ignore_errors=True)
    again = Job(program, trials, [out] * count).ends(LENGTH)
    if any(status != 0 for status, _ in again):
        yield f"the same command did not end well: {again[0][1][-2000:]}"
    found = program.results(out)
    yield from (f"it then differs in {key}" for key in {*whole, *found} if whole.get(key) != found.get(key))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.disturb_processes", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(SCENARIOS)}; all without")
    parser.add_argument("--work", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--program", choices=PROGRAMS, default="table1")
    parser.add_argument("--model", default="demo", help="what it runs with")
    parsed = parser.parse_args(arguments)
    names = parsed.names or list(SCENARIOS if parsed.program == "table1" else OF_STUDIES)
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown or parsed.work.exists():
        parser.error(f"there is no way {unknown[0]!r}" if unknown else f"{parsed.work} exists already")
    # A shell that starts this in the background has SIGINT ignored, which those started from here would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    environment = {"XDG_CACHE_HOME": str(parsed.work / "cache"), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    program = PROGRAMS[parsed.program]
    trials = Trials(program.command, parsed.work, parsed.model, environment)
    ends = Job(program, trials, [parsed.work / "whole"] * parsed.processes).ends(LENGTH)
    if any(status != 0 for status, _ in ends):
        print(f"the undisturbed job ended badly:\n{ends[0][1][-3000:]}", file=sys.stderr)
        return 1
    whole, bad = program.results(parsed.work / "whole"), 0
    for name in names:
        problems = list(disturbed(name, program, trials, parsed.processes, whole))
        told = "; ".join(problems) or "all ended alike, and the job continued with the same results"
        print(f"{name}: {told}", flush=True)
        bad += bool(problems)
    print(f"{len(names) - bad} of {len(names)} ways of disturbing {parsed.processes} processes ended well")
    return 1 if bad else 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main(sys.argv[1:]))
