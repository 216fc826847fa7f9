"""Measured lines as a table and a roofline picture."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clipbias.errors import ClipbiasError
from clipbias.io import write_text
from clipbias.report import style

COLUMNS = ("name", "seconds", "GFLOP", "GFLOP/s", "share of matmul", "memory (GB)", "plain (s)", "times as fast")


def read(files: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The last measurement of each name in files of JSON lines. Only lines with counted FLOP are kept.

    Raises:
      ClipbiasError: a file cannot be read, or nothing in them was measured.
    """
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for path in map(Path, files):
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise ClipbiasError(f"{path} cannot be read as JSON lines ({error}); pass what --append wrote.") from error
        for row in rows:
            if "flop" in row:
                lines[row["geometry"], row["name"]] = row
    if not lines:
        raise ClipbiasError("there is no measured line to report; run a sub-command with --append=FILE first.")
    return list(lines.values())


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    return (
        row["name"],
        f"{row['seconds']:.2f}",
        f"{row['flop'] / 1e9:.0f}",
        f"{row['flop_per_second'] / 1e9:.0f}",
        f"{100 * row['share_of_matmul']:.0f} %",
        f"{row['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in row else "",
        f"{row['plain_seconds']:.2f}" if "plain_seconds" in row else "",
        f"{row['times_as_fast']:.2f}" if "times_as_fast" in row else "",
    )


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, ("---",) * len(heads), *lines))


def roofline(rows: Sequence[dict[str, Any]]) -> Any:
    """Needed arithmetic against achieved rate, under the roof of each measurement's own matrix product."""
    with style.styled():
        figure = style.new_figure(5.2, 3.2)
        axes = figure.add_subplot()
        ordered = sorted(rows, key=lambda row: row["flop"])
        work = [row["flop"] / 1e9 for row in ordered]
        axes.plot(
            work,
            [row["matmul_flop_per_second"] / 1e9 for row in ordered],
            color=style.GREY,
            marker="_",
            label="a large matrix product, timed in turn",
        )
        axes.plot(
            work,
            [row["flop_per_second"] / 1e9 for row in ordered],
            color=style.BLUE,
            marker="o",
            linestyle="",
            label="clipbias",
        )
        plain = [row for row in ordered if "plain_seconds" in row]
        if plain:
            axes.plot(
                [row["flop"] / 1e9 for row in plain],
                [row["flop"] / row["plain_seconds"] / 1e9 for row in plain],
                color=style.RED,
                marker="s",
                linestyle="",
                label="the plain computation of the same numbers",
            )
        style.log_scale(axes, "x")
        axes.set(xlabel="arithmetic needed (GFLOP)", ylabel="needed arithmetic per second (GFLOP/s)")
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower right")
    return figure


def write(files: Sequence[str | Path], output: Path) -> str:
    """Writes `output`.md, `output`.pdf and `output`.png; returns the table."""
    rows = read(files)
    table = markdown(COLUMNS, map(cells, rows))
    write_text(output.with_name(f"{output.name}.md"), table)
    style.save_figure(roofline(rows), output)
    return table
