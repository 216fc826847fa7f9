"""Writes what was measured on the demo into docs/report.md and docs/methods.md, from the numbers beside their pictures.

    python -m tools.draw_verdict workdir/why --to=docs/images/verdict.png
    python -m tools.make_demo_tables docs/report.md

    cp workdir/zoo_demo/accuracy_by_parameters.csv docs/images/zoo.csv
    python -m tools.make_demo_tables docs/methods.md

A test holds both pages to their numbers: measure again, and run this again.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipbias.errors import ClipbiasError
from clipbias.files import read_text
from clipbias.report.published import dataset_name
from clipbias.report.table import MISSING
from tools.benchmarks.report import markdown
from tools.pages import with_section, write_page

BEGIN = "<!-- By `python -m tools.make_demo_tables`; change that, or measure again. -->"
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


def verdicts(rows: Sequence[Row]) -> str:
    """Two tables: points of accuracy as a mean over datasets, and shares of the log-likelihood's gain by dataset."""
    methods = dict.fromkeys(row["method"] for row in rows)
    datasets = dict.fromkeys(row["dataset"] for row in rows if row["dataset"] != "mean")
    found = {(row["method"], row["dataset"], row["outcome"], row["quantity"]): row for row in rows}

    def points(method: str, name: str) -> str:
        row = found.get((method, "mean", "accuracy", name))
        return MISSING if row is None else _with_ends(row, "value", "images_low", "images_high", digits=1)

    def share(method: str, dataset: str, name: str) -> str:
        row = found.get((method, dataset, "log_likelihood", name), {})
        if not row.get("share"):
            return MISSING
        return _with_ends(row, "share", "share_low", "share_high", digits=0)

    accuracy = [(method, *(points(method, name) for name in QUANTITIES)) for method in methods]
    shares = [
        (method, dataset_name(dataset), *(share(method, dataset, name) for name in list(QUANTITIES)[1:]))
        for method in methods
        for dataset in datasets
    ]
    shares = [line for line in shares if set(line[2:]) != {MISSING}]
    heads, over = list(QUANTITIES.values()), ", ".join(map(dataset_name, datasets))
    return "\n\n".join(
        (
            f"Points of accuracy, mean over {over}, in brackets 95 % over their images:",
            markdown(("method", *heads), accuracy).rstrip(),
            "Percent of the gain in log-likelihood, where that is surely above 0:",
            markdown(("method", "dataset", *heads[1:]), shares).rstrip(),
        )
    )


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


# By page: the numbers, and what is made of them.
PAGES = {
    "report.md": ("verdict.csv", verdicts),
    "methods.md": ("zoo.csv", zoo),
}


def page(whole: Path) -> str:
    """The page with its section made again.

    Raises:
      ClipbiasError: it has none, or a file cannot be read.
    """
    if whole.name not in PAGES:
        raise ClipbiasError(f"{whole} has no table of the demo; {' and '.join(PAGES)} have.")
    name, make = PAGES[whole.name]
    rows = list(csv.DictReader(io.StringIO(read_text(whole.parent / "images" / name))))
    return with_section(whole, BEGIN, make(rows))


def main() -> None:
    write_page("tools.make_demo_tables", __doc__, page)


if __name__ == "__main__":
    main()
