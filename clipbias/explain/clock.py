"""How long each section of a study takes, over all processes that worked on it."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from clipbias.errors import ClipbiasError
from clipbias.io import read_json, write_text


class Clock:
    """Seconds by section, kept in a file, so that those of a stopped process count too."""

    def __init__(self, path: Path, fingerprint: str, *, write: bool = True) -> None:
        """Takes up what the file says of the same study.

        Args:
          path: the file.
          fingerprint: names the study.
          write: whether this process writes the file.
        """
        self._path, self._fingerprint, self._write = path, fingerprint, write
        self._seconds, self._section, self._since = _load(path, fingerprint), "", 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by section, in the order in which they began."""
        found = dict(self._seconds)
        if self._section:
            found[self._section] = found.get(self._section, 0.0) + time.monotonic() - self._since
        return {name: round(value, 2) for name, value in found.items()}

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Counts the time inside to a section, whatever ends it."""
        self._section, self._since = name, time.monotonic()
        try:
            yield
        finally:
            self._seconds, self._section = self.seconds, ""
            self.save()

    def save(self) -> None:
        """Writes what is known so far."""
        if self._write:
            write_text(self._path, json.dumps({"fingerprint": self._fingerprint, "seconds": self.seconds}) + "\n")


def _load(path: Path, fingerprint: str) -> dict[str, float]:
    """Nothing where there is no such file, it is damaged, or it belongs to something else."""
    try:
        kept = read_json(path, dict)
    except ClipbiasError:
        return {}
    found = kept.get("seconds") if kept.get("fingerprint") == fingerprint else None
    if not isinstance(found, dict):
        return {}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float) and value >= 0}
