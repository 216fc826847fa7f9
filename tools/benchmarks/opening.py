"""A synthetic ImageNet: what a run does with it before its first step, in seconds and bytes.

Tiny JPEG files in a thousand class folders are made, and removed at the end: beside those of training, 50,000 of
validation for 1,281,167, and fewer for fewer. `opening_phases.py` scans, opens, draws, looks and names in a process of
its own, at a first start and at later ones; then the same of shards made of the files. With `--checkout`, another
working copy of the project takes turns on the same files. With `--rehearse` a grid of 16-shot IVLP and zero-shot CLIP
is planned, started, killed in the middle of training and continued, with the embedded model. Files and shards are in
the page cache, so that seconds are those of the program, and bytes tell what storage would have to give.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipbias import data
from clipbias.data import class_names, shards
from clipbias.errors import ClipbiasError
from tools.benchmarks import opening_phases

ROOT = Path(__file__).parents[2]
TRAINING, VALIDATION = 1_281_167, 50_000  # images of ImageNet
PICTURES = 64  # that differ; each file ends with a number of its own
COUNTED = ("seconds", "cpu_seconds", "bytes")


def make(folder: Path, count: int) -> int:
    """Writes `count` images of training in CoOp's layout, and of validation in proportion; returns how many."""
    rng, pictures = np.random.default_rng(0), []
    for _ in range(PICTURES):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((48, 48)).save(buffer, "JPEG", quality=50)
        pictures.append(buffer.getvalue())
    classes, made = list(class_names.imagenet_classes()), 0
    for split, whole in (("train", count), ("val", max(len(classes), count * VALIDATION // TRAINING))):
        each, more = divmod(whole, len(classes))
        for label, name in enumerate(classes):
            place = folder / "imagenet" / "images" / split / name
            place.mkdir(parents=True)
            for number in range(each + (label < more)):
                with open(f"{place}/{name}_{number}.JPEG", "wb", buffering=0) as file:
                    file.write(pictures[made % PICTURES] + made.to_bytes(4, "little"))
                made += 1
    return made


def measured(data_dir: Path, checkout: Path, cache: Path) -> dict[str, Any]:
    """The phases with the `clipbias` of a checkout, which keeps what it keeps in `cache`."""
    done = subprocess.run(
        [sys.executable, "-P", str(ROOT / "tools/benchmarks/opening_phases.py"), str(data_dir)],
        env=os.environ | {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(cache)},
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClipbiasError(f"the phases with {checkout} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def starts(data_dir: Path, checkouts: dict[str, Path], folder: Path, repeats: int) -> dict[str, Any]:
    """By checkout the first start and the median of later ones; all must draw, and name, the same images."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    for _ in range(1 + repeats):
        for name, checkout in checkouts.items():
            results[name].append(measured(data_dir, checkout, folder / f"cache-{name}"))
    facts = [
        {key: run[key] for key in ("drawn", "contents", "images", "unreadable")}
        for runs in results.values()
        for run in runs
    ]
    if any(one != facts[0] for one in facts):
        raise ClipbiasError("two starts drew or named other images; one of the checkouts is wrong.")
    told: dict[str, Any] = {"files": results["here"][0]["files"], "images": facts[0]["images"]}
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
            "peak_bytes": max(run["peak_bytes"] for run in runs),
        }
    return told


def opening(arguments: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    if arguments.checkout and not (arguments.checkout / "clipbias").is_dir():
        raise ClipbiasError(f"{arguments.checkout} is no checkout of the project: it has no folder clipbias.")
    checkouts = {"here": ROOT} | ({"there": arguments.checkout.resolve()} if arguments.checkout else {})
    result: dict[str, Any] = {"name": f"opening {arguments.count:,} images"}
    with tempfile.TemporaryDirectory(prefix="clipbias-opening-") as name:
        folder = Path(name)
        began = time.perf_counter()
        made = make(folder / "data", arguments.count)
        result |= {"made": made, "making_seconds": time.perf_counter() - began}
        _tell(result)
        time.sleep(3)  # until the files' times tell a change
        result["folder"] = starts(folder / "data", checkouts, folder, arguments.repeats)
        _tell(result["folder"])
        if arguments.rehearse:
            result["rehearsal"] = rehearse(folder / "data", folder)
            _tell(result["rehearsal"])
        if arguments.shards:
            began = time.perf_counter()
            shards.build(data.load(opening_phases.DATASET, data_dir=folder / "data"), folder / "shards")
            result["building_seconds"] = time.perf_counter() - began
            _tell({"building_seconds": result["building_seconds"]})
            time.sleep(3)
            result["shards"] = starts(folder / "shards", checkouts, folder, arguments.repeats)
    return result


def _tell(part: dict[str, Any]) -> None:
    """The whole takes long: its parts are told as they come."""
    print(json.dumps(part), file=sys.stderr, flush=True)


def rehearse(data_dir: Path, folder: Path) -> dict[str, Any]:
    """A grid that is planned, started, killed once it has a checkpoint, and continued to its end."""
    workdir = folder / "work"
    command = [sys.executable, "-m", "experiments.table1", "--config=configs/table1.py", "--config.model=demo"]
    command += [f"--config.data_dir={data_dir}", "--config.datasets=('imagenet',)", "--config.shots=(16,)"]
    command += ["--config.methods=('ivlp', 'zero_shot')", "--config.seeds=(1,)", "--config.batch_size=128"]
    command += ["--config.epochs=1", "--config.checkpoint_seconds=5", "--config.eval_batch_size=256"]
    with open(folder / "log", "a") as log:

        def start(*more: str) -> "subprocess.Popen[bytes]":
            environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache-rehearsal")}
            place = f"--workdir={workdir}"
            return subprocess.Popen([*command, *more, place], cwd=ROOT, env=environment, stdout=log, stderr=log)

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
