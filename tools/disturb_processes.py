"""Disturbs one process of a job and checks that all end alike, and that the same command then continues.

    python -m tools.disturb_processes --work=/tmp/disturbed
    python -m tools.disturb_processes --work=/tmp/disturbed --processes=4 kill stop

A grid runs in several real processes, once undisturbed. Then, in a folder of its own for each way of disturbing it, one
process is killed or stopped, finds a damaged image or checkpoint, or fails. All others must end within 90 seconds with
the same sentence and the same status and without a traceback; and the same command, given again, must end with the
results of the undisturbed job, to the last bit. The exit status is 0 if all do.
"""

import argparse
import contextlib
import errno
import importlib
import os
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipbias.files import read_json, read_json_lines
from tools.disturb import ROOT, comparable

# How long all may take from the disturbance to their end, and how long a job that nothing disturbs.
LIMIT, LENGTH = 90.0, 600.0

GRID = (
    "--config=configs/demo.py",
    "--config.methods=('bias',)",
    "--config.datasets=('demo/digits','demo/shapes')",
    "--config.shots=(2,)",
    "--config.seeds=(1,2)",
    "--config.epochs=12",
    "--config.checkpoint_seconds=0.0",
)
CELLS = 4

# What a process is made to fail with, from its so many-th call of a function on.
IO_ERROR, NO_SPACE = OSError(errno.EIO, os.strerror(errno.EIO)), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FAILURES: Mapping[str, tuple[str, str, Exception, int]] = {
    "evaluation": ("clipbias.training.evaluate", "score", IO_ERROR, 1),
    "program": ("clipbias.training.evaluate", "answers", IO_ERROR, 1),
    "table": ("clipbias.report", "to_markdown", NO_SPACE, 1),
}


def install(fault: str) -> None:
    """Makes this process fail."""
    if fault in FAILURES:
        where, name, error, calls = FAILURES[fault]
        _replace(where, name, lambda done, original: _raise(error) if done >= calls else original)
    elif fault == "image":  # the same one of the first dataset each time it is read, the others never
        known: list[str] = []

        def damaged(done: int, original: Callable[..., Any]) -> Callable[..., Any]:
            def decode(encoded: bytes, key: str) -> Any:
                known.append(key)
                return original(encoded[: len(encoded) // 2] if key == known[0] else encoded, key)

            return decode

        _replace("clipbias.data.transforms", "decode", damaged)
    elif fault == "disk":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        def full(done: int, original: Callable[..., Any]) -> Callable[..., Any]:
            if done == 3:  # from the third checkpoint on
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return original

        _replace("clipbias.training.checkpoint", "_named", full)
    elif fault == "bit":
        whole = Path.read_bytes

        def read_bytes(path: Path) -> bytes:
            content = whole(path)
            inside = "checkpoints" in path.parts and path.parent.name == "d"
            return content[:-1] + bytes([content[-1] ^ 1]) if inside and content else content

        Path.read_bytes = read_bytes  # type: ignore[method-assign, assignment]
    else:
        raise SystemExit(f"there is no fault {fault!r}")


def _replace(where: str, name: str, choose: Callable[[int, Callable[..., Any]], Callable[..., Any]]) -> None:
    module, done = importlib.import_module(where), 0
    original = getattr(module, name)

    def replaced(*arguments: Any, **options: Any) -> Any:
        nonlocal done
        done += 1
        return choose(done, original)(*arguments, **options)

    setattr(module, name, replaced)


def _raise(error: Exception) -> Callable[..., Any]:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    return fails


class Job:
    """The processes of one start of the grid."""

    def __init__(self, folders: Sequence[Path], environment: Mapping[str, str], **faults: str) -> None:
        """Starts a process for each folder; `process1="image"` is a fault of that one."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.folder, self.processes = folders[0], []
        for number, folder in enumerate(folders):
            fault = faults.get(f"process{number}")
            command = ["experiments.table1"] if fault is None else ["tools.disturb_processes", f"--fault={fault}"]
            job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(folders))}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", *command, *GRID, f"--workdir={folder}"],
                    cwd=ROOT,
                    env={**environment, **job, "JAX_PROCESS_ID": str(number)},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def await_steps(self, steps: int) -> None:
        """Waits until so many steps of training are done."""
        deadline = time.monotonic() + LENGTH
        while sum(len(read_json_lines(path)) for path in self.folder.glob("runs/*/metrics.jsonl")) < steps:
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


Disturb = Callable[[Path, Mapping[str, str], int], tuple[Job, int | None]]


def _signalled(number: int, how: signal.Signals, *, others_alike: bool = False) -> Disturb:
    def disturb(out: Path, environment: Mapping[str, str], count: int) -> tuple[Job, int | None]:
        job = Job([out] * count, environment)
        job.await_steps(4)
        job.processes[number].send_signal(how)
        return job, None if others_alike else number

    return disturb


def _fails(number: int, fault: str) -> Disturb:
    def disturb(out: Path, environment: Mapping[str, str], count: int) -> tuple[Job, int | None]:
        return Job([out] * count, environment, **{f"process{number}": fault}), None

    return disturb


def _flipped(out: Path, environment: Mapping[str, str], count: int) -> tuple[Job, int | None]:
    """Process 1 reads a bit of the latest checkpoint otherwise than it is."""
    job, _ = _signalled(0, signal.SIGTERM)(out, environment, count)
    job.ends(LIMIT)
    return Job([out] * count, environment, process1="bit"), None


def _elsewhere(out: Path, environment: Mapping[str, str], count: int) -> tuple[Job, int | None]:
    """Process 1 has a folder of its own under the same name."""
    return Job([out, out.with_name(f"{out.name}_view"), *[out] * (count - 2)], environment), None


SCENARIOS: Mapping[str, Disturb] = {
    "image": _fails(1, "image"),
    "evaluation": _fails(1, "evaluation"),
    "program": _fails(1, "program"),
    "disk_of_first": _fails(0, "disk"),
    "disk": _fails(1, "disk"),
    "table": _fails(0, "table"),
    "kill": _signalled(1, signal.SIGKILL),
    "kill_first": _signalled(0, signal.SIGKILL),
    "stop": _signalled(1, signal.SIGSTOP),
    "stop_first": _signalled(0, signal.SIGSTOP),
    "notice": _signalled(1, signal.SIGTERM, others_alike=True),
    "bit": _flipped,
    "elsewhere": _elsewhere,
}
# Those after which all is done as if nothing had happened, for the process concerned takes no part in it.
HARMLESS = ("disk",)


def results(folder: Path) -> dict[str, Any]:
    """What must be the same in two jobs, however often they were disturbed."""
    found = {name: value for name, value in comparable(folder).items() if name.startswith(("adapters/", "table."))}
    lines = [line for line in read_json_lines(folder / "results.jsonl") if line["status"] == "ok"]
    return found | {f"{one['dataset']} {one['seed']}": (one["accuracy"], one["loss"]) for one in lines}


def sentence(errors: str) -> str:
    """The last line that a process left."""
    return (errors.strip().splitlines() or [""])[-1]


def disturbed(
    name: str, work: Path, environment: Mapping[str, str], count: int, whole: Mapping[str, Any]
) -> Iterator[str]:
    """Disturbs a job in one way; yields what is not as it should be."""
    out = work / name
    job, gone = SCENARIOS[name](out, environment, count)
    began = time.monotonic()
    ends = job.ends(LENGTH if gone is None else LIMIT, but=gone)
    said, statuses = {sentence(errors) for _, errors in ends}, {status for status, _ in ends}
    state = read_json(out / "state.json", dict)
    print(f"{name}: after {time.monotonic() - began:.0f} s status {statuses}, {state['state']}: {' | '.join(said)}")
    if len(said) > 1 or len(statuses) > 1:
        yield "they do not end alike"
    if any("Traceback" in errors or "*** Check failure" in errors for _, errors in ends):
        yield "a traceback: " + next(errors for _, errors in ends if "Traceback" in errors or "***" in errors)[-3000:]
    if statuses == {0} and name not in HARMLESS:
        yield "nothing was disturbed"
    recorded = state["state"] == "finished" or name == "disk_of_first"  # on a full disk nothing is
    if not recorded and str(state["error"]).removeprefix("Interrupted: ") not in said.pop():
        yield f"the record says {state['error']!r}"
    if name == "image" and len(results(out)) < CELLS // 2:
        yield "the grid did not go on"
    shutil.rmtree(out.with_name(f"{out.name}_view"), ignore_errors=True)
    again = Job([out] * count, environment).ends(LENGTH)
    if any(status != 0 for status, _ in again):
        yield f"the same command did not end well: {again[0][1][-2000:]}"
    found = results(out)
    yield from (f"it then differs in {key}" for key in {*whole, *found} if whole.get(key) != found.get(key))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.disturb_processes", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(SCENARIOS)}; all without")
    parser.add_argument("--work", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--processes", type=int, default=2)
    parsed = parser.parse_args(arguments)
    names = parsed.names or list(SCENARIOS)
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown or parsed.work.exists():
        parser.error(f"there is no way {unknown[0]!r}" if unknown else f"{parsed.work} exists already")
    environment = {**os.environ, "XDG_CACHE_HOME": str(parsed.work / "cache"), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    ends = Job([parsed.work / "whole"] * parsed.processes, environment).ends(LENGTH)
    if any(status != 0 for status, _ in ends):
        print(f"the undisturbed job ended badly:\n{ends[0][1][-3000:]}", file=sys.stderr)
        return 1
    whole, bad = results(parsed.work / "whole"), 0
    for name in names:
        problems = list(disturbed(name, parsed.work, environment, parsed.processes, whole))
        print(f"{name}: {'; '.join(problems) or 'all ended alike, and the job continued with the same results'}")
        bad += bool(problems)
    print(f"{len(names) - bad} of {len(names)} ways of disturbing {parsed.processes} processes ended well")
    return 1 if bad else 0


if __name__ == "__main__":
    if sys.argv[1].startswith("--fault="):  # a process of such a job
        install(sys.argv.pop(1).removeprefix("--fault="))
        runpy.run_module("experiments.table1", run_name="__main__", alter_sys=True)
    else:
        with contextlib.suppress(BrokenPipeError):
            sys.exit(main(sys.argv[1:]))
