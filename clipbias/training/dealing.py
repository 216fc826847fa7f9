"""The parts of a grid: independent jobs that share one work folder, and none waits for another."""

import dataclasses
import re
from pathlib import Path

from clipbias.errors import ClipbiasError

PARTS = "parts"


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the jobs that share a grid, counted from 1."""

    number: int
    of: int

    @classmethod
    def named(cls, name: str) -> "Part | None":
        """The part that "2/4" names; none where the name is empty.

        Raises:
          ClipbiasError: it names no part.
        """
        if not name:
            return None
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", name.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ClipbiasError(f"part is {name!r}; give its number and that of all parts, such as 1/4, from 1 on.")
        return cls(int(found[1]), int(found[2]))

    def folder(self, workdir: Path) -> Path:
        """Where this part's own files lie."""
        return workdir / PARTS / f"{self.number}-of-{self.of}"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"
