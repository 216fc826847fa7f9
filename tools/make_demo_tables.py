"""Writes what was measured on the demo into docs/report.md and docs/methods.md, from the numbers beside their pictures.

    python -m tools.draw_verdict workdir/why --to=docs/images/verdict.png
    python -m tools.make_demo_tables docs/report.md

    cp workdir/zoo_demo/accuracy_by_parameters.csv docs/images/zoo.csv
    python -m tools.draw_verdict workdir/why_zoo --to=docs/images/methods_verdict.png
    python -m tools.make_demo_tables docs/methods.md

A test holds both pages to their numbers: measure again, and run this again.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clipbias.errors import ClipbiasError
from clipbias.io import read_text
from clipbias.report.published import dataset_name
from clipbias.report.table import MISSING
from tools.benchmarks.report import markdown
from tools.pages import with_section, write_page

BEGIN = "<!-- From images/{name} by `python -m tools.make_demo_tables`; change that, or measure again. -->"
# What is measured, and how the heads of its columns are called.
QUANTITIES = {
    "gain": "gain",
    "attention": "attention",
    "scale": "scale",
    "values": "values",
    "vector": "one vector",
    "kind": "two, by kind",
    "token": "one per token",
}

Row = Mapping[str, str]


def points(rows: Sequence[Row]) -> str:
    """Points of accuracy, the mean over datasets."""
    means = [row for row in rows if row["dataset"] == "mean" and row["outcome"] == "accuracy"]
    found = {(row["method"], row["quantity"]): row for row in means}

    def cell(row: Row | None) -> str:
        return MISSING if row is None else _with_ends(row, "value", "images_low", "images_high", digits=1)

    over = ", ".join(dataset_name(row) for row in dict.fromkeys(row["dataset"] for row in rows) if row != "mean")
    methods = dict.fromkeys(method for method, _ in found)
    lines = [(method, *(cell(found.get((method, name))) for name in QUANTITIES)) for method in methods]
    table = markdown(("method", *QUANTITIES.values()), lines).rstrip()
    return f"Points of accuracy, mean over {over}, in brackets 95 % over their images:\n\n{table}"


def shares(rows: Sequence[Row]) -> str:
    """Percent of the log-likelihood's gain, a line for each method and dataset where there is a sure one."""
    kept = [row for row in rows if row["outcome"] == "log_likelihood" and row["share"]]
    found = {(row["method"], row["dataset"], row["quantity"]): row for row in kept}

    def cell(row: Row | None) -> str:
        return MISSING if row is None else _with_ends(row, "share", "share_low", "share_high", digits=0)

    names = [name for name in QUANTITIES if name != "gain"]
    lines = [
        (method, dataset_name(dataset), *(cell(found.get((method, dataset, name))) for name in names))
        for method, dataset in dict.fromkeys((method, dataset) for method, dataset, _ in found)
    ]
    table = markdown(("method", "dataset", *(QUANTITIES[name] for name in names)), lines).rstrip()
    return f"Percent of the gain in log-likelihood, where that is surely above 0:\n\n{table}"


def verdicts(rows: Sequence[Row]) -> str:
    """Both tables."""
    return f"{points(rows)}\n\n{shares(rows)}"


def _with_ends(row: Row, value: str, low: str, high: str, *, digits: int) -> str:
    """`+5.3 (+3.1 to +7.5)` in points, or `74 (68 to 79)` of a share in percent."""
    numbers = [float(row[name]) * (1 if digits else 100) for name in (value, low, high)]
    # Adding 0 makes what rounds to -0 a 0.
    middle, *ends = (f"{round(number, digits) + 0.0:{'+.1f' if digits else '.0f'}}" for number in numbers)
    return f"{middle} ({' to '.join(ends)})"


def zoo(rows: Sequence[Row]) -> str:
    """Accuracy and parameters of every method, the most accurate of a kind first, kinds as the picture has them."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    ordered = sorted(rows, key=lambda row: (kinds.index(row["kind"]), -float(row["accuracy"])))
    lines = [
        (row["kind"], f"`{row['method']}`", f"{float(row['parameters']):,.0f}", f"{float(row['accuracy']):.1f}")
        for row in ordered
    ]
    return markdown(("kind", "method", "parameters", "accuracy (%)"), lines).rstrip()


# By page: numbers beside its pictures, and what is made of them.
PAGES: Mapping[str, Mapping[str, Callable[[Sequence[Row]], str]]] = {
    "report.md": {"verdict.csv": verdicts},
    "methods.md": {"zoo.csv": zoo, "methods_verdict.csv": shares},
}


def page(whole: Path) -> str:
    """The page with its sections made again.

    Raises:
      ClipbiasError: it has none, or a file cannot be read.
    """
    if whole.name not in PAGES:
        raise ClipbiasError(f"{whole} has no table of the demo; {' and '.join(PAGES)} have.")
    text = read_text(whole)
    for name, make in PAGES[whole.name].items():
        rows = list(csv.DictReader(io.StringIO(read_text(whole.parent / "images" / name))))
        text = with_section(whole, text, BEGIN.format(name=name), make(rows))
    return text


def main() -> None:
    write_page("tools.make_demo_tables", __doc__, page)


if __name__ == "__main__":
    main()
