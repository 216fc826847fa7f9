"""Stops a command at random moments and checks that the same command, given again, ends with the undisturbed results.

    python -m tools.kill_trials --times=20 --work=/tmp/trials -- python -m experiments.train --config.model=demo

The command runs twice undisturbed, the second time to learn its length with programs on disk. Then it runs in a folder
of its own, is stopped by kill -9, SIGTERM or Ctrl-C, and runs there again until it is stopped again; a run that was
faster than the signal is compared, and the next one starts in a new folder. `--workdir=FOLDER` is added to the command.
Compared are the rows without their seconds, and the bytes of all adapters. Prints a line of JSON; the status is 0 if
nothing differs.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipbias.io import PART, read_json, read_json_lines

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# How a command may end: by the signal itself before it looks for a notice, or with the status of one that saved.
STATUSES = {number: {-number, 128 + number} for number in SIGNALS}


class Trials:
    """A command that runs again and again in folders below one.

    Attributes:
      length: seconds of an undisturbed run.
      ends: how often which signal led to which status.
      problems: sentences on what is not as it should be.
    """

    def __init__(self, command: Sequence[str], work: Path, draw: random.Random) -> None:
        """Runs the command undisturbed, twice."""
        self.command, self.work, self.draw = list(command), work, draw
        self.ends: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self.complete("whole")
        began = time.monotonic()
        self.complete("again")
        self.length = time.monotonic() - began
        self.compare("again")

    def start(self, folder: str) -> subprocess.Popen[str]:
        """Starts the command in a folder; its errors go to a file beside it."""
        (self.work / folder).mkdir(parents=True, exist_ok=True)
        with open(self.work / f"{folder}.errors", "a") as errors:
            command = [*self.command, f"--workdir={self.work / folder}"]
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, text=True)

    def complete(self, folder: str) -> None:
        """Runs the command to its end, which must be a good one."""
        if status := self.start(folder).wait():
            said = (self.work / f"{folder}.errors").read_text()[-2000:]
            raise RuntimeError(f"the command ended with status {status} in {folder}:\n{said}")

    def stop(self, folder: str) -> bool:
        """Starts the command and stops it; false if it was faster and ended well."""
        number, process = self.draw.choice(SIGNALS), self.start(folder)
        moment = self.draw.uniform(0.05, 1.0) * self.length
        try:
            status = process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            began = time.monotonic()
            status = process.wait()
            print(
                f"{number.name} after {moment:.1f} s: status {status} {time.monotonic() - began:.1f} s later, {folder}"
            )
        if status == 0:
            return False
        self.ends[f"{number.name} {status}"] += 1
        if status not in STATUSES[number]:
            self.problems.append(f"{number.name} after {moment:.1f} s in {folder} led to the status {status}")
        return True

    def compare(self, folder: str) -> None:
        """Notes what differs from the undisturbed run."""
        whole, other = results(self.work / "whole"), results(self.work / folder)
        names = sorted(name for name in whole.keys() | other.keys() if whole.get(name) != other.get(name))
        self.problems += [f"{folder} differs in {name}" for name in names]


def results(folder: Path) -> dict[str, Any]:
    """The results in a work folder by the names of their files, and what of a file in the making is left there."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors" or PART in name:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        elif path.name in ("results.jsonl", "validation.jsonl"):
            found[name] = sorted(json.dumps(without_seconds(row), sort_keys=True) for row in read_json_lines(path))
        elif path.name == "result.json":
            found[name] = without_seconds(read_json(path, dict))
    return found


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what differs between two equal runs."""
    return {name: value for name, value in row.items() if "seconds" not in name and name != "waiting_share"}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.kill_trials", description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="how often the command is stopped")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument("--work", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("command", nargs="+", help="after --, without --workdir")
    parsed = parser.parse_args(arguments)
    if parsed.work.exists():
        parser.error(f"{parsed.work} exists already")
    # A shell that starts this in the background has Ctrl-C ignored, which the command would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["XDG_CACHE_HOME"] = str(parsed.work.resolve() / "cache")  # a kill may leave half a program there
    trials = Trials(parsed.command, parsed.work.resolve(), random.Random(parsed.seed))
    stopped, number = 0, 1
    while stopped < parsed.times:
        if trials.stop(f"stopped{number}"):
            stopped += 1
        else:
            trials.compare(f"stopped{number}")
            number += 1
    if (trials.work / f"stopped{number}").exists():
        trials.complete(f"stopped{number}")
        trials.compare(f"stopped{number}")
    files = results(trials.work / "whole")
    told = {"command": shlex.join(parsed.command), "seconds": round(trials.length, 2), "folders": number}
    told |= {"ends": dict(sorted(trials.ends.items())), "compared": len(files), "problems": trials.problems}
    print(json.dumps(told))
    return 1 if trials.problems or not files else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
