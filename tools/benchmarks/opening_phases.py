"""What a run does before its first step, phase by phase, in a process of its own; prints one JSON object.

    python -P tools/benchmarks/opening_phases.py '"FOLDER"'

It uses nothing of `tools`, so that another checkout's `clipbias`, named by PYTHONPATH, can be measured by it too.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DATASET, SHOTS, SEEDS = "imagenet", 16, (1, 2, 3)


def bytes_read(process: str = "self") -> int:
    """What a process has read from files so far, from the page cache or not, without what lists folders."""
    with open(f"/proc/{process}/io", encoding="ascii") as file:
        return int(file.read().partition("rchar: ")[2].split()[0])


def memory() -> int:
    """Most bytes of this process in memory since `forget_peak`."""
    with open("/proc/self/status", encoding="ascii") as file:
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", file.read())[0])


def forget_peak() -> None:
    """Lets the peak begin anew."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def scan(folder: str | os.PathLike) -> int:
    """The number of files below a folder, by the system's own listing and nothing else."""
    found, folders = 0, [os.fspath(folder)]
    for place in folders:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    found += 1
    return found


def phases(data_dir: Path) -> dict[str, Any]:
    """Opens ImageNet below `data_dir`, draws three few-shot sets, looks at their images and names them.

    Returns:
      By phase the seconds, those of all threads together, the bytes that were read, and the most memory that was taken;
      and what came of it.
    """
    found: dict[str, dict[str, float]] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        forget_peak()
        began, began_cpu, before = time.perf_counter(), time.process_time(), bytes_read()
        yield
        found[name] = {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - began_cpu,
            "bytes": bytes_read() - before,
            "peak_bytes": memory(),
        }

    with phase("scan"):
        files = scan(data_dir)
    with phase("import"):
        from clipbias.data.contents import contents

        from clipbias import data
        from clipbias.data import inspection, protocols, shards

        if shards.find(DATASET, data_dir) is not None:
            import tensorflow_datasets  # noqa: F401 (as opening does)
    with phase("open"):
        dataset = data.load(DATASET, data_dir=data_dir)
    with phase("draw"):
        load: Callable[[str], Any] = lambda name: dataset  # noqa: E731
        plans = [protocols.make_plan("few_shot", DATASET, load, shots=SHOTS, seed=seed) for seed in SEEDS]
        used = [plan.source.split("train") for plan in plans] + [plans[0].evaluations[0].dataset.split("test")]
    with phase("look"):
        wrong = inspection.unreadable(used)
    with phase("identity"):
        named = [contents(split) for split in used]
    total = {name: sum(one[name] for one in found.values()) for name in ("seconds", "cpu_seconds", "bytes")}
    return {
        "files": files,
        "images": {name: len(split) for name, split in dataset.splits.items()},
        "drawn": [[split.keys[0], split.keys[len(split) - 1], len(split)] for split in used],
        "unreadable": len(wrong),
        "contents": named,
        "phases": found,
        "total": total,
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    print(json.dumps(phases(Path(json.loads(sys.argv[1])))))
