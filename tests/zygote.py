"""Runs many `python -m MODULE` commands without importing the libraries anew for each.

    python -m tests.zygote < jobs.json > results.json

A job is `{"module", "arguments", "folder", "run"}`. Each is given to a fork of this process, in which the module is
run as `__main__` in that folder; where `run` is false only its command line is read, by the module's own parser. A
result is `{"status", "said"}`: the exit status and everything printed.
"""

import argparse
import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict

# Imported here, forked by every job. None of them starts a thread or a device.
HEAVY = (
    "grain",
    "matplotlib.pyplot",
    "optax",
    "orbax.checkpoint",
    "transformers.models.auto",
    "transformers.models.clip.tokenization_clip",
    "clipbias.training.grid",
    "clipbias.explain.run",
    "clipbias.report",
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
        # With a configuration nothing else is taken; a program of several commands lists them.
        known = () if "config" in flags.FLAGS else getattr(sys.modules["__main__"], "COMMANDS", rest)
        if rest and rest[0] not in known:
            sys.exit(f"error: unexpected argument {rest[0]!r}")
        raise Read

    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign, assignment]
    app.run = run


def job(module: str, arguments: list[str], folder: str, run: bool) -> NoReturn:
    """Becomes `python -m module arguments` in `folder`; does not return."""
    status = 0
    try:
        os.chdir(folder)
        sys.argv = [module, *arguments]
        if not run:
            read_only()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Read:
        pass
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    results = []
    for given in json.load(sys.stdin):
        with tempfile.TemporaryFile() as output:
            child = os.fork()
            if not child:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                job(**given)
            _, status = os.waitpid(child, 0)
            output.seek(0)
            said = output.read().decode(errors="replace")
        results.append({"status": os.waitstatus_to_exitcode(status), "said": said})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main()
