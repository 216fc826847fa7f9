"""Progress for people: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
from tqdm import tqdm

from clipbias.terminal import printable

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_BARS = 0.1


class Progress:
    """Counts units of work. On a terminal it is a bar with the time left; elsewhere a line every ten seconds."""

    def __init__(self, total: int, *, done: int = 0, unit: str = "step", title: str = "") -> None:
        self._title, self._unit = printable(title), unit
        self._bar: tqdm | None = None
        self._quiet = jax.process_index() != 0
        if total:
            self.start(total, done=done)

    def start(self, total: int, *, done: int = 0) -> None:
        """Begins (again) with a total that was not known when the object was made."""
        self._total, self._done, self._first = total, done, done
        self._started, self._last = time.monotonic(), 0.0
        self.close()
        if sys.stderr.isatty() and not self._quiet:
            # Without the library's own times, and drawn when told: it asks the wall clock, and would stand still for as
            # long as that is set back.
            shape = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}s{postfix}"
            options: dict[str, Any] = {
                "unit": self._unit,
                "desc": self._title,
                "dynamic_ncols": True,
                "bar_format": shape,
            }
            self._bar = tqdm(total=total, initial=done, **options)

    def advance(self, count: int = 1, values: Mapping[str, Any] | None = None) -> None:
        """Counts `count` more units and shows `values` beside them."""
        self._done += count
        shown = {
            key: readable(value) if isinstance(value, float) else printable(value)
            for key, value in (values or {}).items()
        }
        now, wait = time.monotonic(), SECONDS_BETWEEN_LINES if self._bar is None else SECONDS_BETWEEN_BARS
        if self._quiet or (now - self._last < wait and self._done < self._total):
            return
        self._last = now
        rate = (self._done - self._first) / max(now - self._started, 1e-9)
        left = (self._total - self._done) / rate if rate else float("nan")
        if self._bar is not None:
            self._bar.n = self._done
            self._bar.set_postfix(shown | {"left": f"{left:.0f} s"})  # which draws it
            return
        details = "".join(f"  {key} {value}" for key, value in shown.items())
        print(f"{self._title} {self._done}/{self._total}{details}  {left:.0f} s left", file=sys.stderr, flush=True)

    def at_work(self, what: str) -> None:
        """Says what is being done now, where there is a bar to show it at once."""
        if self._bar is not None:
            self._bar.set_description(printable(what))

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        if self._quiet:
            return
        line = printable(line)
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def readable(value: float) -> str:
    """A number as people write it: `133,500`, `412`, `0.0025`, `1e-05`."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def say(line: str) -> None:
    """Prints a line without breaking any bar."""
    if jax.process_index() == 0:
        tqdm.write(printable(line), file=sys.stderr)


@contextmanager
def progress(total: int, *, done: int = 0, unit: str = "step", title: str = "") -> Iterator[Progress]:
    """A `Progress` that is closed at the end of the block."""
    bar = Progress(total, done=done, unit=unit, title=title)
    try:
        yield bar
    finally:
        bar.close()
