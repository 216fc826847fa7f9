"""`python -m MODULE` commands as forks of one process that has imported the libraries."""

import argparse
import atexit
import gc
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags
from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[1]
SERVER = multiprocessing.get_context("forkserver")
# Imported once, forked by every command. None of them starts a thread or a device.
SERVER.set_forkserver_preload(
    [
        *("tests.forks", "matplotlib.pyplot", "optax", "orbax.checkpoint", "transformers.models.auto"),
        *("transformers.models.clip.tokenization_clip", "clipbias.training.sweep", "clipbias.analysis.run"),
        *("clipbias.report", "scipy.optimize"),
    ]
)


def read_only() -> None:
    """Makes programs end where they have read their command line."""
    parse = argparse.ArgumentParser.parse_args

    def parse_args(*arguments: Any, **options: Any) -> NoReturn:
        parse(*arguments, **options)
        sys.exit()

    def run(main: Callable, argv: list[str] | None = None, flags_parser: Callable = flags.FLAGS) -> NoReturn:
        rest = flags_parser(sys.argv if argv is None else argv)[1:]
        if "config" in flags.FLAGS and not isinstance(flags.FLAGS["config"].value, ConfigDict):
            sys.exit("error: the configuration cannot be loaded")  # the flag holds what went wrong
        if rest and "config" in flags.FLAGS:  # with a configuration nothing else is taken
            sys.exit(f"error: unexpected argument {rest[0]!r}")
        sys.exit()

    argparse.ArgumentParser.parse_args = parse_args
    app.run = run


def become(
    module: str, arguments: list[str], folder: str, environment: dict[str, str], files: list[str], run: bool
) -> None:
    """Is `python -m module arguments` in `folder`, with these files as output and errors."""
    gc.freeze()  # nothing that was imported is garbage
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # JAX looked at the environment when it was imported.
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    sys.path.insert(0, folder)
    sys.argv = ["-m", *arguments]  # as Python has it until the module begins
    if not run:
        read_only()
    status = None
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    # As Python ends, after what it says: a fork of multiprocessing leaves the second out.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.exit(status)


class Fork:
    """A command that runs; what of `subprocess.Popen` tests need."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str],
        folder: Path = ROOT,
        run: bool = True,
        together: bool = False,
    ) -> None:
        """Starts it.

        Args:
          module: as `python -m` runs it.
          arguments: of its command line.
          environment: its variables, all of them.
          folder: where it runs.
          run: whether to run it, or to have its command line read alone.
          together: whether its errors go where its output goes.
        """
        self._said = Path(tempfile.mkdtemp())
        self._files = [self._said / name for name in ("output", "output" if together else "errors")]
        job = (module, [*map(str, arguments)], str(folder), {**environment}, [*map(str, self._files)], run)
        self._process = SERVER.Process(target=become, args=job, daemon=True)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Its exit status, or `None` while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it printed by its end, and its errors.

        Raises:
          subprocess.TimeoutExpired: it did not end in so many seconds; it is ended.
        """
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise subprocess.TimeoutExpired("a fork", timeout)
        output, errors = (path.read_text(encoding="utf-8", errors="replace") for path in self._files)
        shutil.rmtree(self._said)
        return output, errors

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self._process.pid or 0, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
