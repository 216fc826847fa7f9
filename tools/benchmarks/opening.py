"""A synthetic ImageNet: what a run does with it before its first step, in seconds and bytes.

Beside the tiny JPEG images of training there are 50,000 of validation for 1,281,167, and fewer for fewer. They are made
as files in a thousand class folders, of which four names share one on the disk, or, with `--shards`, as records by the
project's own writer; and removed at the end. `opening_phases.py` scans, opens, draws, looks and names in a process of
its own, at a first start and at later ones. With `--checkout`, another working copy of the project takes turns on the
same images. With `--rehearse` a grid of 16-shot IVLP and zero-shot CLIP is planned, started, killed in the middle of
training and continued, with the embedded model. All is in the page cache, so that seconds are those of the program, and
bytes tell what storage would have to give.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from clipbias.data.keys import Keys
from PIL import Image

from clipbias.data import catalog, class_names, shards
from clipbias.data.dataset import Dataset, Split
from clipbias.errors import ClipbiasError
from tools.benchmarks import checkouts, opening_phases

TRAINING, VALIDATION = 1_281_167, 50_000  # images of ImageNet
PICTURES = 64  # that differ in what they show
OWNERS = 250  # classes that have files of their own: others' names are links to theirs, which spares the disk
COUNTED = ("seconds", "cpu_seconds", "bytes", "peak_bytes")


class Drawn:
    """The images of a synthetic ImageNet: how many each class has, and what is in them."""

    def __init__(self, count: int) -> None:
        """`count` images of training, and of validation in proportion."""
        rng = np.random.default_rng(0)
        self.names = class_names.imagenet_classes()
        self.counts = {"train": count, "val": max(len(self.names), count * VALIDATION // TRAINING)}
        self._pictures: list[bytes] = []
        for _ in range(PICTURES):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((48, 48)).save(buffer, "JPEG", quality=50)
            self._pictures.append(buffer.getvalue())

    def classes(self, split: str) -> Iterator[tuple[str, int]]:
        """The name of each class's folder and how many images it has."""
        each, more = divmod(self.counts[split], len(self.names))
        return ((name, each + (label < more)) for label, name in enumerate(self.names))

    def content(self, split: str, label: int, number: int) -> bytes:
        """The file of an image: behind its end are numbers of its own."""
        own = (split == "train", label % OWNERS, number)
        return self._pictures[number % PICTURES] + b"".join(part.to_bytes(4, "little") for part in own)

    def write(self, folder: Path) -> int:
        """Writes all in CoOp's layout below a folder; returns how many there are."""
        for split in self.counts:
            place = folder / "imagenet" / "images" / split
            owners = list(self.names)[:OWNERS]
            for label, (name, count) in enumerate(self.classes(split)):
                (place / name).mkdir(parents=True)
                for number in range(count):
                    path = f"{place}/{name}/{name}_{number}.JPEG"
                    if label >= OWNERS:
                        owner = owners[label % OWNERS]
                        os.link(f"{place}/{owner}/{owner}_{number}.JPEG", path)
                        continue
                    with open(path, "wb", buffering=0) as file:
                        file.write(self.content(split, label, number))
        return sum(self.counts.values())

    def dataset(self) -> Dataset:
        """All as they are opened from these files, without the files."""

        def split(which: str) -> Split:
            keys, labels, numbers = list[Keys](), list[np.ndarray](), list[np.ndarray]()
            for label, (name, count) in enumerate(self.classes(which)):
                of_name = {f"{which}/{name}/{name}_{number}.JPEG": number for number in range(count)}
                keys.append(Keys.of(sorted(of_name)))
                labels.append(np.full(count, label, np.int32))
                numbers.append(np.asarray([of_name[key] for key in keys[-1]], np.int64))
            each, own = np.concatenate(labels), np.concatenate(numbers)
            return Split(Keys.joined(keys), each, lambda i: self.content(which, int(each[i]), int(own[i])))

        splits = {which: split(which) for which in self.counts}
        entry = catalog.ENTRIES[opening_phases.DATASET]
        names, ids = tuple(self.names.values()), tuple(self.names)
        return Dataset(entry.name, names, entry.template, splits | {"test": splits["val"]}, ids)


def starts(data_dir: Path, copies: dict[str, Path], folder: Path, repeats: int) -> dict[str, Any]:
    """By checkout the first start and the median of later ones; all must draw, and name, the same images."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in copies}
    for _ in range(1 + repeats):
        for name, checkout in copies.items():
            cache = {"XDG_CACHE_HOME": str(folder / f"cache-{name}")}
            results[name].append(checkouts.measured("opening_phases", str(data_dir), checkout, cache))
    facts = [
        {key: run[key] for key in ("drawn", "contents", "images", "unreadable")}
        for runs in results.values()
        for run in runs
    ]
    if any(one != facts[0] for one in facts):
        raise ClipbiasError("two starts drew or named other images; one of the checkouts is wrong.")
    told: dict[str, Any] = {"files": results["here"][0]["files"], **facts[0]}
    for name, runs in results.items():
        later = {
            phase: {key: float(np.median([run["phases"][phase][key] for run in runs[1:]])) for key in COUNTED}
            for phase in runs[0]["phases"]
        }
        scans = float(np.median([run["phases"]["scan"]["seconds"] for run in runs]))
        opened = [float(np.median([run["phases"]["open"]["seconds"] for run in some])) for some in (runs[:1], runs[1:])]
        told[name] = {
            "first": runs[0]["phases"] | {"total": runs[0]["total"]},
            "later": later,
            "first_open_over_scan": opened[0] / scans,
            "later_open_over_scan": opened[1] / scans,
            "load": [run["load"] for run in runs],
        }
    return told


def opening(arguments: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    copies = checkouts.of(arguments)
    result: dict[str, Any] = {"name": f"opening {arguments.count:,} images of training"}
    with tempfile.TemporaryDirectory(prefix="clipbias-opening-") as name:
        folder = Path(name)
        place, drawn = folder / "data", Drawn(arguments.count)
        began, began_cpu = time.perf_counter(), time.process_time()
        if arguments.shards:
            shards.build(drawn.dataset(), place)
            result["made"] = sum(drawn.counts.values())
        else:
            result["made"] = drawn.write(place)
        result |= {"making_seconds": time.perf_counter() - began, "making_cpu_seconds": time.process_time() - began_cpu}
        result["making_peak_bytes"] = opening_phases.memory()
        result["bytes"] = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        _tell(result)
        time.sleep(3)  # until the files' times tell a change
        result["starts"] = starts(place, copies, folder, arguments.repeats)
        _tell(result["starts"])
        if arguments.rehearse:
            result["rehearsal"] = rehearse(place, folder)
            _tell(result["rehearsal"])
    return result


def _tell(part: dict[str, Any]) -> None:
    """The whole takes long: its parts are told as they come."""
    print(json.dumps(part), file=sys.stderr, flush=True)


def rehearse(data_dir: Path, folder: Path) -> dict[str, Any]:
    """A grid that is planned, started, killed once it has a checkpoint, and continued to its end."""
    workdir = folder / "work"
    command = [sys.executable, "-m", "experiments.table1", "--config=configs/table1.py", "--config.model=demo"]
    command += [f"--config.data_dir={data_dir}", "--config.datasets=('imagenet',)", "--config.shots=(16,)"]
    command += ["--config.methods=('ivlp', 'zero_shot')", "--config.seeds=(1,)", "--config.batch_size=512"]
    command += ["--config.epochs=1", "--config.checkpoint_seconds=5", "--config.eval_batch_size=256"]
    with open(folder / "log", "a") as log:

        def start(*more: str) -> "subprocess.Popen[bytes]":
            environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache-rehearsal")}
            place = f"--workdir={workdir}"
            return subprocess.Popen(
                [*command, *more, place], cwd=checkouts.ROOT, env=environment, stdout=log, stderr=log
            )

        found = {"planned": _until(start("--config.dry_run=True"), None, folder)}
        first = start()
        found["first_step"] = _until(first, lambda: _steps(workdir) > 0, folder)
        found["killed_at"] = _until(first, lambda: _has_checkpoint(workdir), folder)
        first.send_signal(signal.SIGKILL)
        first.wait()
        before = _steps(workdir)
        second = start()
        found["first_step_continued"] = _until(second, lambda: _steps(workdir) > before, folder)
        found["end"] = _until(second, None, folder)
        if second.returncode:
            raise ClipbiasError(f"the rehearsal failed: {(folder / 'log').read_text()[-400:]}")
    rows = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    kept = ("method", "status", "accuracy", "steps", "seconds", "waiting_share", "seconds_per_image")
    return found | {"steps_before_kill": before, "rows": [{key: row.get(key) for key in kept} for row in rows]}


def _has_checkpoint(workdir: Path) -> bool:
    return any(path.name.isdigit() for path in workdir.glob("checkpoints/*/*"))


def _steps(workdir: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in workdir.glob("runs/*/metrics.jsonl"))


def _until(process: "subprocess.Popen[bytes]", reached: Callable[[], bool] | None, folder: Path) -> dict[str, float]:
    """Seconds since the process started and the bytes that it has read, when something is reached or it ends."""
    found = {"seconds": 0.0, "bytes": 0.0}
    while process.poll() is None:
        with contextlib.suppress(OSError):
            found["bytes"] = opening_phases.bytes_read(str(process.pid))
        with contextlib.suppress(OSError):
            found["seconds"] = time.clock_gettime(time.CLOCK_BOOTTIME) - _started(process.pid)
        if reached is not None and reached():
            return found
        time.sleep(0.05)
    if reached is not None or process.returncode:
        raise ClipbiasError(f"the rehearsal ended too early: {(folder / 'log').read_text()[-400:]}")
    return found


def _started(process: int) -> float:
    """When a process started, in seconds since the machine did."""
    with open(f"/proc/{process}/stat", encoding="ascii") as file:
        return int(file.read().rpartition(") ")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
