"""What was compiled for accelerators that are not there, method by method, in a file of JSON lines."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipbias.errors import ClipbiasError
from clipbias.io import read_json_lines, reason


def kept(path: Path | None, facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The lines of a file that were compiled with these facts (of devices, compiler and sizes), by method.

    Raises:
      ClipbiasError: the file cannot be read.
    """
    if path is None or not path.exists():
        return {}
    rows = read_json_lines(path)
    return {row["method"]: row for row in rows if all(row.get(name) == value for name, value in facts.items())}


def keep(path: Path | None, *rows: Mapping[str, Any]) -> None:
    """Adds lines, if a file is given; with none it is only made sure that they can be.

    Raises `ClipbiasError` where they cannot.
    """
    if path is None:
        return
    try:
        with path.open("a+b") as file:
            # What a crash cut short has a line to itself.
            if file.tell() and path.read_bytes()[-1:] != b"\n":
                file.write(b"\n")
            file.writelines(json.dumps(row).encode() + b"\n" for row in rows)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ClipbiasError(f"cannot add the line to {path}: {reason(error)}; give another --rows.") from error
