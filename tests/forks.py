"""`python -m MODULE` commands as forks of one process that has imported the libraries (`tests.zygote`)."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def _zygote() -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "tests.zygote"], cwd=ROOT, env=environment, **pipes)


def _ask(question: Any) -> Any:
    zygote = _zygote()
    assert zygote.stdin is not None and zygote.stdout is not None
    print(json.dumps(question), file=zygote.stdin, flush=True)
    return json.loads(zygote.stdout.readline())


def end() -> None:
    """Ends the process that is forked, if it was ever started."""
    if _zygote.cache_info().currsize:
        _zygote().communicate(timeout=60)
        _zygote.cache_clear()


class Fork:
    """A command that runs; what of `subprocess.Popen` tests need.

    Attributes:
      pid: of the process.
      returncode: its exit status, or `None` while it runs.
    """

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
        output, errors = map(str, self._files)
        job = {"module": module, "arguments": [*map(str, arguments)], "folder": str(folder), "run": run}
        self.pid: int = _ask({**job, "environment": {**environment}, "output": output, "errors": errors})
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, or `None` while it runs."""
        if self.returncode is None:
            self.returncode = _ask(self.pid)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it printed by its end, and its errors.

        Raises:
          subprocess.TimeoutExpired: it did not end in so many seconds; it is ended.
        """
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired("a fork", timeout)
            time.sleep(0.02)
        output, errors = (path.read_text(encoding="utf-8", errors="replace") for path in self._files)
        shutil.rmtree(self._said)
        return output, errors

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
