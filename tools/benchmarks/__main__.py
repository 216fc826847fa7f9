"""Measures clipbias on this machine with random weights; the last line printed is one JSON object.

    python -m tools.benchmarks train --method=ivlp --option depth=9 --classes=100 --batch=4
    python -m tools.benchmarks train --method=tpt --classes=100 --batch=1 --ways clipbias torch
    python -m tools.benchmarks train --method=bias --geometry=PE-Core-B/16 --ways clipbias owner
    python -m tools.benchmarks features --batch=16
    python -m tools.benchmarks relevancy --method=vpt --batches 1 8 32
    python -m tools.benchmarks pipeline --images=96 --batch=32
    python -m tools.benchmarks all --output=device

Seconds are medians over repeats. The way `torch` is the authors' computation in PyTorch, `owner` bias tuning in the
code of a family's owner, if these are installed. Every way has a process of its own, and all must give the same losses,
logits or maps. FLOP are those of the matrix products in the program, and the machine's rate is that of a large matrix
product timed in turn with them. `all` measures steps, features and relevancy in all compute types of the device and
writes a JSON file and a page. `--append` adds the line to a file.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from clipbias.clip.precision import DTYPES
from clipbias.errors import ClipbiasError
from clipbias.io import reason

COMMANDS = ("train", "features", "relevancy", "pipeline", "all")


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
    parser.add_argument("--geometry", default="ViT-B/16")
    parser.add_argument("--layers", type=whole(0), default=0, help="blocks of each tower; 0: as the geometry has")
    parser.add_argument("--method", default="ivlp")
    parser.add_argument("--option", action="append", default=[], help="an option of the method, name=number")
    parser.add_argument("--classes", type=whole(1), default=37)
    parser.add_argument("--batch", type=whole(1), default=4)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--repeats", type=whole(1), default=5)
    parser.add_argument("--batches", type=whole(1), nargs="+", default=[1, 8, 32], help="relevancy: images at a time")
    parser.add_argument(
        "--ways",
        nargs="+",
        help="train: of clipbias, torch, owner; relevancy: of streaming, recompute=N, chunk=N, torch, torch-per-pair",
    )
    parser.add_argument("--together", action="store_true", help="all ways in this process; memory is shared")
    parser.add_argument("--images", type=whole(1), default=16, help="pipeline")
    parser.add_argument("--methods", nargs="+", help="all: those of Table 1 by default")
    parser.add_argument("--dtypes", nargs="+", help="all: compute types; those of the device by default")
    parser.add_argument("--append", type=Path, help="a file that the JSON line is added to")
    parser.add_argument("--output", type=Path, default=Path("device"), help="all: path without its ending")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one sub-command; returns the exit status."""
    parsed = parse(arguments)
    from clipbias.training.device import prepare_cpu

    prepare_cpu()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # processes share an accelerator
    from tools.benchmarks import device, pipeline, relevancy, training

    run = {
        "train": training.train,
        "features": training.features,
        "relevancy": relevancy.relevancy,
        "pipeline": pipeline.pipeline,
        "all": device.measure_all,
    }[parsed.command]
    try:
        append(parsed.append, "")  # a measurement takes long: a file that cannot be written is refused before
        result = {"command": parsed.command, "geometry": parsed.geometry, "dtype": parsed.dtype, **run(parsed)}
        line = json.dumps(result)
        print(line, flush=True)
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
