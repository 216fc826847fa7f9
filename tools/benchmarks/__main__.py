"""Measures clipbias on this machine with random weights; the last line printed is one JSON object.

    python -m tools.benchmarks train --method=ivlp --option depth=9 --classes=100 --batch=4 --baseline
    python -m tools.benchmarks train --method=bias_by_kind --beside=bias --classes=100 --batch=4
    python -m tools.benchmarks compare --method=clip_lora --classes=100 --batch=4
    python -m tools.benchmarks compare --method=tpt --classes=100 --batch=1
    python -m tools.benchmarks features --batch=16
    python -m tools.benchmarks precision --method=bias --batch=8
    python -m tools.benchmarks relevancy --method=vpt --batches 1 8 32
    python -m tools.benchmarks relevancy --batches 8 --layers 3 6 12
    python -m tools.benchmarks causal --method=vpt --batch=4
    python -m tools.benchmarks study --images=16
    python -m tools.benchmarks study --quick
    python -m tools.benchmarks startup
    python -m tools.benchmarks load --repeats=3
    python -m tools.benchmarks load FOLDER ViT-B-16.pt
    python -m tools.benchmarks pipeline --batch=32 --runs 1 9 32
    python -m tools.benchmarks pipeline --held --images=96
    python -m tools.benchmarks endurance --steps=2000 --groups=50
    python -m tools.benchmarks all --output=device
    python -m tools.benchmarks report benchmark.jsonl --output=performance

Seconds are medians over repeats. FLOP are those that the computation needs, counted by hand-checked formulas
(`tools/benchmarks/flops.py`), and the machine's own rate is that of a large matrix product timed in turn with them.
`--baseline` also runs the plain computation: texts of full context length, whole blocks, nothing shared. `compare` runs
a method's training step, or TPT's test of an image, beside its authors' computation in PyTorch, where that is
installed. It and `relevancy` give every way a process of its own. `relevancy` compares the ways' maps too; with several
depths it tells what memory their programs plan for. `all` measures steps, features and relevancy in all compute types
of the device, beside PyTorch where that is installed, into one JSON file and a page. `--append` adds the line to a file
that `report` reads.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from clipbias.clip.precision import DTYPES
from clipbias.errors import ClipbiasError
from clipbias.io import reason

COMMANDS = (
    *("train", "compare", "features", "precision", "relevancy", "causal", "study", "startup", "load", "pipeline"),
    *("endurance", "all", "report"),
)


def whole(lowest: int) -> Callable[[str], int]:
    """Reads an integer from `lowest` on; what it returns raises `argparse.ArgumentTypeError` for anything else."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if (number := int(text)) >= lowest:
                return number
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {lowest} or more.")

    return read


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("files", nargs="*", help="report: files of JSON lines; load: checkpoints")
    parser.add_argument("--geometry", default="ViT-B/16")
    parser.add_argument(
        "--layers", type=whole(0), nargs="+", default=[0], help="blocks of each tower; 0 as many as the geometry has"
    )
    parser.add_argument("--method", default="ivlp")
    parser.add_argument("--option", action="append", default=[], help="an option of the method, name=number")
    parser.add_argument("--classes", type=whole(1), default=37)
    parser.add_argument("--batch", type=whole(1), default=4)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--repeats", type=whole(1), default=5)
    parser.add_argument("--baseline", action="store_true")
    parser.add_argument("--beside", default="", help="train: a method whose step takes turns with that of --method")
    parser.add_argument("--batches", type=whole(1), nargs="+", default=[1, 8, 32], help="relevancy: images at a time")
    parser.add_argument(
        "--ways",
        nargs="+",
        help="compare: of clipbias, torch; relevancy: of streaming, recompute=N, chunk=N, plain, forward, torch, "
        "torch-per-pair, torch-forward",
    )
    parser.add_argument(
        "--together", action="store_true", help="relevancy, compare: all ways in this process; memory is shared"
    )
    parser.add_argument(
        "--images", type=whole(1), help="study: 16 by default; pipeline: 256, and 160 is a 16-shot set of ten classes"
    )
    parser.add_argument("--quick", action="store_true", help="study: as configs/explain.py:quick has it")
    parser.add_argument("--step-ms", type=float, default=100.0, help="pipeline: of a training step on an accelerator")
    parser.add_argument("--held", action="store_true", help="pipeline: the memory of images alone")
    parser.add_argument("--checkout", type=Path, help="pipeline --held: another working copy, in turn")
    parser.add_argument("--runs", type=whole(1), nargs="+", default=[1, 9, 32], help="pipeline: runs side by side")
    parser.add_argument("--steps", type=whole(1), default=2000, help="endurance: of a training")
    parser.add_argument("--groups", type=whole(1), default=50, help="endurance: of a sweep")
    parser.add_argument("--methods", nargs="+", help="all: those of the table by default")
    parser.add_argument("--dtypes", nargs="+", help="all: compute types; those of the device by default")
    parser.add_argument("--append", type=Path, help="a file that the JSON line is added to")
    parser.add_argument("--output", type=Path, help="report, all: path without its ending")
    parsed = parser.parse_args(arguments)
    if parsed.command != "relevancy":
        if len(parsed.layers) > 1:
            parser.error(f"{parsed.command} takes one number of --layers; relevancy takes several.")
        (parsed.layers,) = parsed.layers
    parsed.output = parsed.output or Path("device" if parsed.command == "all" else "performance")
    parsed.images = parsed.images or {"study": 16}.get(parsed.command, 256)
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one sub-command; returns the exit status."""
    parsed = parse(arguments)
    from clipbias.training import cpu

    cpu.prepare()
    try:
        if parsed.command == "report":
            from tools.benchmarks import report

            print(report.write(parsed.files, parsed.output))
            return 0
        append(parsed.append, "")  # a measurement takes long: a file that cannot be written is told before
        from tools.benchmarks import (
            causal,
            device,
            endurance,
            load,
            pipeline,
            precision,
            relevancy,
            startup,
            steps,
            study,
            training,
        )

        run = {
            "train": steps.train,
            "compare": training.compare,
            "features": steps.features,
            "precision": precision.precision,
            "relevancy": relevancy.relevancy,
            "causal": causal.causal,
            "study": study.study,
            "startup": startup.startup,
            "load": load.load,
            "pipeline": pipeline.pipeline,
            "endurance": endurance.endurance,
            "all": device.measure_all,
        }[parsed.command]
        result = {"command": parsed.command, "geometry": parsed.geometry, "dtype": parsed.dtype, **run(parsed)}
    except ClipbiasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    line = json.dumps(result)
    if "times_as_fast" in result:
        print(f"{result['times_as_fast']:.2f} times as fast as the plain computation")
    print(line, flush=True)
    try:
        append(parsed.append, line + "\n")
    except ClipbiasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def append(path: Path | None, text: str) -> None:
    """Adds text to a file, if one is given. Raises `ClipbiasError` where it cannot."""
    if path is None:
        return
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ClipbiasError(f"cannot add the line to {path}: {reason(error)}; give another --append.") from error


if __name__ == "__main__":
    sys.exit(main())
