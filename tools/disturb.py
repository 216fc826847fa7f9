"""Disturbs binaries at random moments and checks that nothing but time is lost.

    python -m tools.disturb --kills=30 --work=/tmp/disturbed
    python -m tools.disturb --signals=60 --faults=100 --work=/tmp/disturbed train explain
    python -m tools.disturb --faults=each --work=/tmp/disturbed export predict interpret

Each command runs once undisturbed, then again and again in another folder, disturbed each time, and at last to its end.
Both folders must then hold the same files with the same content; no file in the making may be left. It is disturbed

- by `kill -9` at a random moment of its length (`--kills`);
- by SIGINT and SIGTERM in turn, with an empty and a full cache of programs (`--signals`): it must end with its
  sentence, and soon (`tools/signalled.py`);
- by a disk that breaks at one of its writes, in turn full, broken, read-only and over its quota (`--faults`): it must
  end with one sentence, and leave nothing half-made behind (`tools/faults`). With `--faults=each` each write of the
  commands, which are made short for it, is that one in turn.

The status is 0 if that is so for every command.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clipbias.io import PART

ROOT = Path(__file__).resolve().parents[1]
NOTHING: Mapping[str, str] = MappingProxyType({})
EACH = "each"

# What differs between two equal runs: durations, and a digest over them.
VOLATILE = (
    *("seconds", "seconds_by_section", "training_seconds", "seconds_per_image", "started", "waiting_share"),
    *("sha256", "workdir"),
)
IGNORED = (".lock", "environment.json")
# Files of durations: that they are there is compared.
TIMES = ("costs.md", "accuracy_by_time.csv", "accuracy_by_time.pdf", "accuracy_by_time.png")
# As a report shows them, and the folder that each run was given.
DIFFERING = r"(?:computing seconds|seconds by section|workdir)&(?:quot|#34);: (?:[\d.]+|\{[^}]*\}|&(?:quot|#34);[^&]*)"


@dataclasses.dataclass(frozen=True)
class Command:
    """A module to run with `python -m`. In its arguments `{out}` is the folder it writes to, `{model}` a model and
    `{work}` the folder of all, where `before`, more modules with arguments, has run to its end. What is in `shorter`
    follows the arguments where every write is to fail once.
    """

    module: str
    arguments: str
    before: tuple[tuple[str, str], ...] = ()
    shorter: str = ""

    def shortened(self) -> "Command":
        """The same that writes less."""
        return dataclasses.replace(self, arguments=f"{self.arguments} {self.shorter}")


TRAINED = (
    "experiments.train",
    "--config=configs/train.py:ivlp --config.model={model} --config.dataset=demo/digits --config.shots=1 "
    "--config.epochs=2 --workdir={work}/trained",
)
# A line each: whatever writes files and can be run again.
COMMANDS = {
    "train": Command(
        "experiments.train",
        "--config=configs/train.py:bias --config.model={model} --config.dataset=demo/digits --config.epochs=8 "
        "--config.checkpoint_seconds=0.0 --workdir={out}",
        shorter="--config.epochs=2 --config.shots=1",
    ),
    "table1": Command(
        "experiments.table1",
        "--config=configs/demo.py --config.model={model} --config.methods=('zero_shot','taskres','vpt') "
        "--config.datasets=('demo/digits',) --config.shots=(1,4) --config.epochs=4 --config.checkpoint_seconds=0.0 "
        "--workdir={out}",
        shorter="--config.methods=('zero_shot','taskres') --config.shots=(1,) --config.epochs=1",
    ),
    # Labels of images that are made before the training, trainings in stages, and what learns at test alone.
    "methods": Command(
        "experiments.table1",
        "--config=configs/zoo.py:demo --config.model={model} --config.datasets=('demo/digits',) --config.shots=(4,) "
        "--config.methods=('upl','two_stage','plot_plus_plus','tpt') --config.epochs=8 "
        "--config.method_options.two_stage.steps_per_shot=5 --config.checkpoint_seconds=0.0 --workdir={out}",
    ),
    "evaluate": Command(
        "experiments.evaluate",
        "--config.adapter={work}/trained --config.dataset=demo/digits --config.ood=demo/fashion --workdir={out}",
        (TRAINED,),
    ),
    "predict": Command(
        "experiments.predict",
        "--config.images={work}/pictures --config.adapter={work}/trained --relevancy --workdir={out}",
        (TRAINED, ("experiments.prepare_data", "show demo/digits --picture={work}/pictures/sheet.png")),
    ),
    "interpret": Command(
        "experiments.interpret",
        "--config.adapters={work}/trained --config.images=8 --workdir={out}",
        (TRAINED,),
    ),
    "amounts": Command(
        "experiments.amounts",
        "--config.adapter={work}/trained --config.amounts_images=16 --config.image_limit=48 --workdir={out}",
        (TRAINED,),
    ),
    "export": Command("experiments.export", "{work}/trained {out}/model --base_model={model}", (TRAINED,)),
    "explain": Command(
        "experiments.explain",
        "--config.adapters={work}/trained --config.dataset=demo/digits --config.batch_size=16 --config.image_limit=48 "
        "--config.faithfulness_images=8 --config.examples=2 --config.save_seconds=0.0 --workdir={out}",
        (TRAINED,),
        "--config.figures=text_attention --config.image_limit=16",
    ),
}


class Trials:
    """A command that runs again and again below one folder: undisturbed into `whole`, else into folders of its own."""

    def __init__(
        self,
        command: Command,
        work: Path,
        model: str | os.PathLike,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Runs what comes before the command.

        Args:
          command: what to run.
          work: a folder for all of it.
          model: what `{model}` stands for.
          environment: of the processes, beside what is in that of this one.
        """
        self.command, self.work = command, work
        self.environment = {**os.environ, **(environment or {})}
        self.names = {"work": work, "model": model}
        for module, arguments in command.before:
            self._end(module, arguments)

    def run(self, out: str, environment: Mapping[str, str] = NOTHING) -> float:
        """Runs the command to its end, which must be a good one; returns how many seconds it took."""
        began = time.monotonic()
        arguments = self.command.arguments.replace("{out}", str(self.work / out))
        self._end(self.command.module, arguments, environment)
        return time.monotonic() - began

    def interrupt(
        self,
        out: str,
        *,
        after: float,
        how: signal.Signals = signal.SIGKILL,
        environment: Mapping[str, str] = NOTHING,
    ) -> tuple[int, str, float]:
        """Starts the command, sends it a signal after so many seconds, and waits for its end.

        Returns:
          Its status, its errors, and the seconds from the signal to the end.
        """
        arguments = self.command.arguments.replace("{out}", str(self.work / out))
        process = self.start(self.command.module, arguments, environment)
        sent = None
        try:
            _, errors = process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(how)
            sent = time.monotonic()
            try:
                _, errors = process.communicate(timeout=300)
            except subprocess.TimeoutExpired:
                process.kill()
                _, errors = process.communicate()
        return process.returncode, errors, 0.0 if sent is None else time.monotonic() - sent

    def differences(self, out: str) -> list[str]:
        """What there differs from the undisturbed run."""
        return differences(self.work / "whole", self.work / out)

    def start(self, module: str, arguments: str, environment: Mapping[str, str] = NOTHING) -> subprocess.Popen:
        """Starts a module, with more in its environment; its errors can be read."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments.format(**self.names).split()],
            cwd=ROOT,
            env={**self.environment, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _end(self, module: str, arguments: str, environment: Mapping[str, str] = NOTHING) -> None:
        process = self.start(module, arguments, environment)
        _, errors = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"{module} ended with status {process.returncode}:\n{errors[-3000:]}")


def disturb(trials: Trials, times: int, moments: random.Random, *, twice: bool = True) -> list[str]:
    """Runs a command undisturbed and killed so many times; returns what differs, which should be nothing.

    Args:
      trials: of the command.
      times: how often it is killed.
      moments: draws the moments; they are told on stderr.
      twice: also runs it undisturbed again, to compare, and to know its length when nothing is compiled any more.
    """
    length = 0.6 * trials.run("whole")
    problems = []
    if twice:
        length = trials.run("again")
        problems = trials.differences("again")
    killed, folders = 0, 1
    while killed < times:
        after, out = moments.uniform(0.25, 1.0) * length, f"broken{folders}"
        status, errors, _ = trials.interrupt(out, after=after)
        if status == -signal.SIGKILL:
            killed += 1
            print(f"{trials.command.module}: killed after {after:.2f} s ({killed}/{times})", file=sys.stderr)
        elif status == 0 or not trials.differences(out):
            # It was faster, or had written all before it was killed and refuses to write over it: what it ended with
            # counts, and the next one begins anew.
            problems += trials.differences(out)
            folders += 1
        else:
            raise RuntimeError(f"{trials.command.module} ended with status {status}:\n{errors[-3000:]}")
    if trials.differences(f"broken{folders}"):
        trials.run(f"broken{folders}")
    return problems + trials.differences(f"broken{folders}")


def differences(whole: Path, other: Path) -> list[str]:
    """What the files of two equal runs differ in, one line each."""
    first, second = comparable(whole), comparable(other)
    found = [f"{other.name} lacks {name}" for name in first.keys() - second.keys()]
    found += [f"{other.name} also has {name}" for name in second.keys() - first.keys()]
    found += [f"{other.name} differs in {name}" for name in first.keys() & second.keys() if first[name] != second[name]]
    return sorted(found)


def comparable(folder: Path) -> dict[str, Any]:
    """Every file below `folder` with what must be the same in two equal runs."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or (path.name in IGNORED and PART not in name) or "tensorboard/" in name:
            continue
        if "checkpoints/" in name:  # they hold the time at which they were made: which there are is compared
            step = re.match(r"(.*?/\d+)/", name)
            found[step[1] if step else name] = None
        elif path.name in TIMES:
            found[name] = None
        elif path.suffix == ".json":
            found[name] = _lasting(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = sorted(json.dumps(_lasting(json.loads(line))) for line in path.read_text().splitlines())
        elif path.suffix == ".html":
            found[name] = re.sub(DIFFERING, "", path.read_text(encoding="utf-8"))
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lasting(item) for name, item in value.items() if name not in VOLATILE}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.disturb", description=__doc__.splitlines()[0])
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"some of {', '.join(COMMANDS)}; all without")
    parser.add_argument("--kills", type=int, default=0, help="in all, shared by the commands")
    parser.add_argument("--signals", type=int, default=0, help="in all, shared by the commands")
    parser.add_argument("--faults", default="0", help="in all, shared by the commands, or 'each' write of each command")
    parser.add_argument("--work", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--model", default="demo", help="what they run with")
    parsed = parser.parse_args(arguments)
    names = parsed.commands or list(COMMANDS)
    unknown = [name for name in names if name not in COMMANDS]
    if unknown or parsed.work.exists():
        parser.error(f"there is no command {unknown[0]!r}" if unknown else f"{parsed.work} exists already")
    environment = {"XDG_CACHE_HOME": str(parsed.work / "cache"), "JAX_PLATFORMS": "cpu"}
    each = parsed.faults == EACH
    if not each and not parsed.faults.isdecimal():
        parser.error(f"--faults is {parsed.faults!r}; give a number, or {EACH!r}")
    breaks = len(names) if each else int(parsed.faults)  # each command once
    if not (parsed.kills or parsed.signals or breaks):
        parser.error("say how often: --kills, --signals, --faults")
    # A shell that starts this in the background has SIGINT ignored, which those started from here would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from tools import faults, signalled

    ways = {
        "killed": (parsed.kills, disturb),
        "signalled": (parsed.signals, signalled.disturb),
        "with a broken disk": (breaks, faults.disturb_each if each else faults.disturb),
    }
    bad = 0
    for index, name in enumerate(names):
        for way, (count, disturbed) in ways.items():
            if times := len(range(index, count, len(names))):
                place, command, often = parsed.work / name / way.replace(" ", "_"), COMMANDS[name], f"{times} times"
                if disturbed is faults.disturb_each:
                    command, often = command.shortened(), "at each write"
                try:
                    trials = Trials(command, place, parsed.model, environment)
                    problems = disturbed(trials, times, random.Random())
                except RuntimeError as error:  # it did not continue
                    problems = [str(error)]
                told = "; ".join(problems) or "the same files with the same content"
                print(f"{name}: {often} {way}; {told}", flush=True)
                bad += bool(problems)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
