"""Progress for people: a tqdm bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
from tqdm import tqdm

from clipbias.terminal import printable

SECONDS_BETWEEN_LINES = 10.0


class _Lines:
    """Writes what tqdm would draw over the last bar as a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Every line is flushed."""


class _Bar(tqdm):
    """A bar that says about how long its work still takes, once its first units are done."""

    @property
    def format_dict(self) -> dict[str, Any]:
        facts: dict[str, Any] = dict(super().format_dict)
        done = facts["n"] - facts.get("initial", 0)
        remaining = (facts["total"] or 0) - facts["n"]
        # That of the last units: the first one compiles the program.
        rate = facts.get("rate") or (done / facts["elapsed"] if facts["elapsed"] else 0)
        facts["left"] = f", {forecast(remaining / rate)}" if done and rate and remaining > 0 else ""
        return facts


class Progress:
    """Counts units of work. On a terminal it is a bar with the time left; elsewhere a line every ten seconds."""

    def __init__(self, total: int, *, done: int = 0, unit: str = "step", title: str = "") -> None:
        self._title = printable(title)
        self._unit = unit
        self._bar: tqdm | None = None
        if total:
            self.start(total, done=done)

    def start(self, total: int, *, done: int = 0) -> None:
        """Begins (again) with a total that was not known when the object was made."""
        self.close()
        shared: dict[str, Any] = {"total": total, "initial": done, "unit": self._unit, "desc": self._title}
        if sys.stderr.isatty():
            shared |= {"file": sys.stderr, "dynamic_ncols": True}
            shared |= {"bar_format": "{l_bar}{bar}| {n_fmt}/{total_fmt}{left}, {rate_fmt}{postfix}"}
        else:
            shared |= {"file": _Lines(), "mininterval": SECONDS_BETWEEN_LINES, "miniters": 1}
            shared |= {"bar_format": "{desc} {n_fmt}/{total_fmt}{postfix}{left}"}
        self._bar = _Bar(disable=jax.process_index() != 0, **shared)

    def advance(self, count: int = 1, values: Mapping[str, Any] | None = None) -> None:
        """Counts `count` more units and shows `values` beside them."""
        if self._bar is None:
            return
        shown = {
            key: readable(value) if isinstance(value, float) else printable(value)
            for key, value in (values or {}).items()
        }
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(count)

    def at_work(self, what: str) -> None:
        """Names the work that begins; a bar shows it at once."""
        if self._bar is not None:
            self._bar.set_description(printable(what), refresh=sys.stderr.isatty())

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        say(line)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def forecast(seconds: float) -> str:
    """`about 40 s left`, `about 4 min left`, `about 3 h left`."""
    if seconds < 90:
        return f"about {max(10, 10 * round(seconds / 10))} s left"
    minutes = round(seconds / 60)
    return f"about {minutes} min left" if minutes < 90 else f"about {round(minutes / 60)} h left"


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
