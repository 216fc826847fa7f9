"""Becomes `python -m MODULE` commands, many side by side or in turn, without importing the libraries anew for each.

A line of input is a job, `{"module", "arguments", "folder", "environment", "output", "errors", "run"}`. It is given to
a fork of this process, in which the module is run as `__main__` in that folder and environment, and writes to these
files; where `run` is false only its command line is read, by the module's own parser. The answer is the fork's number.
A line that is a number asks how that fork ended; the answer is its exit status, or null while it runs. `tests.forks`
asks.
"""

import argparse
import gc
import importlib
import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict

# Imported here, forked by every job. None of them starts a thread or a device.
HEAVY = (
    "matplotlib.pyplot",
    "optax",
    "orbax.checkpoint",
    "transformers.models.auto",
    "transformers.models.clip.tokenization_clip",
    "clipbias.training.sweep",
    "clipbias.explain.run",
    "clipbias.report",
    "scipy.optimize",
)


class Read(BaseException):
    """The command line was read, and nothing is to be done about it."""


def read_only() -> None:
    """Makes programs end where they have read their command line."""
    parse = argparse.ArgumentParser.parse_args

    def parse_args(*arguments: Any, **options: Any) -> NoReturn:
        parse(*arguments, **options)
        raise Read

    def run(main: Callable, argv: list[str] | None = None, flags_parser: Callable = flags.FLAGS) -> NoReturn:
        rest = flags_parser(sys.argv if argv is None else argv)[1:]
        if "config" in flags.FLAGS and not isinstance(flags.FLAGS["config"].value, ConfigDict):
            sys.exit("error: the configuration cannot be loaded")  # the flag holds what went wrong
        if rest and "config" in flags.FLAGS:  # with a configuration nothing else is taken
            sys.exit(f"error: unexpected argument {rest[0]!r}")
        raise Read

    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign, assignment]
    app.run = run


def become(
    module: str, arguments: list[str], folder: str, environment: dict[str, str], output: str, errors: str, run: bool
) -> None:
    """Is `python -m module arguments` in `folder`, of which `main` then is the end."""
    for number, (path, mode) in enumerate(
        ((os.devnull, os.O_RDONLY), *((path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for path in (output, errors)))
    ):
        os.dup2(os.open(path, mode, 0o644), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    jax = importlib.import_module("jax")  # which looked at the environment when it was imported
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    sys.path.insert(0, folder)
    sys.argv = ["-m", *arguments]  # as Python has it until the module begins
    if run:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    read_only()
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Read:
        pass
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # there is nothing to take down, which takes a second


def main() -> None:
    gc.disable()  # there is none in what is imported
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()  # so that no fork looks through it for garbage
    gc.enable()
    for line in sys.stdin:
        job = json.loads(line)
        if isinstance(job, int):
            ended, status = os.waitpid(job, os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if ended else None), flush=True)
            continue
        child = os.fork()
        if not child:
            become(**job)
            return
        print(child, flush=True)


if __name__ == "__main__":
    main()
