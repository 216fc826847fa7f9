"""Writes what was compiled for accelerators that are not there into docs/performance.md, from docs/compiled.jsonl.

    python -m tools.benchmarks compile --topology=h100:1x1x1 --dtype=bfloat16 --classes=1000 --batch=32 --packed=3 \
        --rows=docs/compiled.jsonl
    python -m tools.make_compiled_table docs/performance.md

A test holds the page to the lines: compile more, and run this again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipbias.io import read_json_lines, read_text
from clipbias.report.table import MISSING
from tools.benchmarks.ahead import trained_methods
from tools.benchmarks.report import markdown
from tools.pages import with_section, write_page

ROWS = Path("docs/compiled.jsonl")
BEGIN = "<!-- By `python -m tools.make_compiled_table docs/performance.md` from docs/compiled.jsonl; change that. -->"

# The targets that every method is compiled for: a title, and the images of a step.
TARGETS = {
    "v5e:4x4": ("v5e-16", 32),
    "v5e:16x16": ("v5e-256", 256),
    "h100:1x1x1": ("H100", 32),
    "h100:1x1x8": ("8 x H100", 32),
}
FASTEST = ("products", 1, 1)
# What is compiled for each.
SIZES = {"geometry": "ViT-B/16", "dtype": "bfloat16", "classes": 1000, "runs": 3}
COMMAND = (
    "    python -m tools.benchmarks compile --topology={target} --dtype={dtype} --classes={classes} --batch={batch} "
    "--packed={runs} --rows={rows}"
)

Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]


def section(lines: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> str:
    """The table of these methods, which compilers made it, and what of it is missing with the commands for that."""
    rows: dict[str, dict[str, Mapping[str, Any]]] = {target: {} for target in TARGETS}
    for line in lines:
        wanted = SIZES | {"batch": TARGETS.get(line["topology"], ("", 0))[1]}
        if all(line[name] == value for name, value in wanted.items()):
            rows[line["topology"]][line["method"]] = line  # the last one counts
    titles = [title for title, _ in TARGETS.values()]
    heads = ["method", *titles, f"TFLOP of {titles[0]}", f"exchanged by {titles[0]}"]
    table = [_line(name, rows) for name in methods if any(name in found for found in rows.values())]
    parts = [markdown(heads, table).rstrip(), *_facts(rows), *_missing(rows, methods)]
    return "\n\n".join(parts)


def _line(name: str, rows: Rows) -> tuple[str, ...]:
    found = [rows[target].get(name) for target in TARGETS]
    first = found[0]  # arithmetic depends on the devices a little: each fills up its own share of the texts
    more = (MISSING, MISSING) if first is None else (f"{first['flop'] / 1e12:.2f}", first["exchanged"])
    return name, *map(cell, found), *more


def cell(row: Mapping[str, Any] | None) -> str:
    """Compiled and estimated GB, and what the plan chose where that is not the fastest."""
    if row is None:
        return MISSING
    told = f"{row['bytes'] / 1e9:.2f} ({row['estimate_bytes'] / 1e9:.2f})"
    if (row["remat"], row["chunks"], row["parts"]) != FASTEST:
        told += f", {row['remat']}, {row['chunks']} x {row['parts']} parts"
    return told if row["fits"] else f"{told}, does not fit"


def _facts(rows: Rows) -> list[str]:
    """The compilers with their versions, one paragraph."""
    told = []
    for target, found in rows.items():
        for devices, compiler in dict.fromkeys((row["devices"], row["compiler"]) for row in found.values()):
            told.append(f"- {TARGETS[target][0]}: {devices}, batch {TARGETS[target][1]}, by {compiler}.")
    return ["\n".join(told)]


def _missing(rows: Rows, methods: Sequence[str]) -> list[str]:
    """What was not compiled yet, and the commands that go on with it."""
    lacking = {target: [name for name in methods if name not in found] for target, found in rows.items()}
    lacking = {target: names for target, names in lacking.items() if names}
    if not lacking:
        return []
    told = "\n".join(
        f"- {TARGETS[target][0]}: {', '.join(names) if len(names) < len(methods) else 'all methods'}."
        for target, names in lacking.items()
    )
    commands = "\n".join(
        COMMAND.format(target=target, batch=TARGETS[target][1], rows=ROWS, **SIZES) for target in lacking
    )
    return ["Not compiled yet:", told, "These commands go on with what is missing:", commands]


def page(whole: Path, rows: Path = ROWS) -> str:
    """The page with the section made again.

    Raises:
      ClipbiasError: a file cannot be read, or the page has no place for the section.
    """
    return with_section(whole, read_text(whole), BEGIN, section(read_json_lines(rows), trained_methods()))


def main() -> None:
    write_page("tools.make_compiled_table", __doc__, page)


if __name__ == "__main__":
    main()
