"""A process of a job that is made to fail, for `tools/disturb_processes.py`.

python -m tools.faulty_process image experiments.table1 --config=...
"""

import errno
import importlib
import os
import resource
import runpy
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

# What a process is made to fail with, from its so many-th call of a function on.
IO_ERROR, NO_SPACE = OSError(errno.EIO, os.strerror(errno.EIO)), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FAILURES: Mapping[str, tuple[str, str, Exception, int]] = {
    "evaluation": ("clipbias.training.evaluator", "score", IO_ERROR, 1),
    "program": ("clipbias.training.evaluator", "answers", IO_ERROR, 1),
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

        _replace("clipbias.data.transforms", "decode_picture", damaged)
    elif fault == "disk":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        def full(done: int, original: Callable[..., Any]) -> Callable[..., Any]:
            if done == 3:  # from the third checkpoint on, which all processes prepare, it has room for a page a file
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            return original

        _replace("clipbias.training.checkpoint", "_named", full)
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


if __name__ == "__main__":
    fault, module = sys.argv[1:3]
    del sys.argv[1:3]
    install(fault)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
