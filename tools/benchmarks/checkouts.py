"""Scripts that measure the `clipbias` of this working copy and of another, each in a process of its own."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipbias.errors import ClipbiasError

ROOT = Path(__file__).parents[2]


def of(arguments: argparse.Namespace) -> dict[str, Path]:
    """The working copies by name: this one, and that of `--checkout` where one is given.

    Raises:
      ClipbiasError: there is no working copy.
    """
    if arguments.checkout and not (arguments.checkout / "clipbias").is_dir():
        raise ClipbiasError(f"{arguments.checkout} is no checkout of the project: it has no folder clipbias.")
    return {"here": ROOT} | ({"there": arguments.checkout.resolve()} if arguments.checkout else {})


def measured(script: str, given: Any, checkout: Path, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The last line that a script of this folder prints, which is JSON, with the `clipbias` of a checkout.

    Args:
      script: its name; it imports nothing of `tools`, which may be otherwise there.
      given: what it is given, as JSON.
      checkout: whose `clipbias` it imports.
      environment: variables besides this process's.

    Raises:
      ClipbiasError: it fails.
    """
    done = subprocess.run(
        [sys.executable, "-P", str(ROOT / "tools" / "benchmarks" / f"{script}.py"), json.dumps(given)],
        env=os.environ | {"PYTHONPATH": str(checkout)} | dict(environment or {}),
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        raise ClipbiasError(f"{script} with {checkout} failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])
