"""Writes what was measured on the demo into pages of docs/, from the numbers beside their pictures.

    cp workdir/demo_full/gains.csv docs/images/demo_gains.csv
    cp workdir/zoo_demo/gains.csv docs/images/zoo_gains.csv
    python -m tools.draw_studies workdir/why --to=docs/images
    python -m tools.make_demo_tables docs/results.md

    python -m tools.paper_table workdir/paper_why --sweep=workdir/paper --csv=docs/images/paper.csv
    python -m tools.make_demo_tables docs/paper.md

    cp workdir/mechanisms/answers.csv docs/images/mechanisms.csv
    python -m tools.make_demo_tables docs/mechanisms.md

A test holds these pages to their numbers: measure again, and run this again.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from absl import app

from clipbias.analysis.replacement import Origin
from clipbias.errors import ClipbiasError
from clipbias.io import read_text, write_text
from clipbias.report.names import dataset_name
from clipbias.report.table import MISSING
from experiments import common
from tools.mechanisms import score

BEGIN = "<!-- From images/{name} by `python -m tools.make_demo_tables`; change that, or measure again. -->"
END = "<!-- What follows is written by hand. -->"
Row = Mapping[str, str]


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ("---",) * len(heads), *lines))


def _change(*numbers: float) -> str:
    """`+5.3 (+3.1 to +7.5)`, or a value alone."""
    # Adding 0 makes what rounds to -0 a 0.
    middle, *ends = (f"{round(number, 1) + 0.0:+.1f}" for number in numbers)
    return f"{middle} ({' to '.join(ends)})" if ends else middle


def _gain(row: Row) -> str:
    return _change(*(float(row[name]) for name in ("value", "low", "high")))


def gains(rows: Sequence[Row]) -> str:
    """What each method of the README's picture gains, over the three datasets and on each."""
    datasets = [name for name in rows[0] if name.startswith("demo/")]
    lines = [
        (
            row["label"],
            f"{float(row['parameters']):,.0f}",
            _gain(row),
            *(_change(float(row[name])) for name in datasets),
        )
        for row in sorted(rows, key=lambda row: -float(row["value"]))
    ]
    return markdown(("method", "parameters", "gain (points)", *map(dataset_name, datasets)), lines)


def zoo(rows: Sequence[Row]) -> str:
    """What every method gains, with parameters: kinds by their best method, the best of a kind first."""
    ordered = sorted(rows, key=lambda row: -float(row["value"]))
    kinds = list(dict.fromkeys(row["kind"] for row in ordered))
    lines = [
        (row["kind"], f"`{row['method']}`", f"{float(row['parameters']):,.0f}", _gain(row))
        for row in sorted(ordered, key=lambda row: kinds.index(row["kind"]))
    ]
    return markdown(("kind", "method", "parameters", "gain (points)"), lines)


# Shares of the gain, of what is added to image tokens, and of the exchange.
PARTS = ("attention alone", "another image's", "mean of all images", "mean of its class", "explained by the class")


def verdicts(rows: Sequence[Row]) -> str:
    """By method of several seeds and dataset: the gain in points, shares in log-likelihood, and the labels."""
    by_study: dict[tuple[str, str], dict[tuple[str, str], Row]] = {}
    for row in rows:
        if row["seeds"] == "1":
            continue
        by_study.setdefault((row["dataset"], row["method"]), {})[row["outcome"], row["quantity"]] = row
    lines = []
    for (dataset, method), parts in by_study.items():
        gain = parts["accuracy", "gain"]
        shares = (_share(parts.get(("log_likelihood", part))) for part in PARTS)
        # Labels are of log-likelihood; without more right predictions nobody asks why.
        why = (gain["where"], gain["what"]) if float(gain["low"]) > 0 else (MISSING, MISSING)
        lines.append((dataset_name(dataset), method, gain["seeds"], _gain(gain), *shares, *why))
    heads = ("dataset", "method", "seeds", "gain (points)", *(f"{part} (%)" for part in PARTS), "where", "what")
    return markdown(heads, lines)


def _rounded(numbers: Iterable[float]) -> str:
    """`98 (88 to 108)`."""
    return "{:.0f} ({:.0f} to {:.0f})".format(*numbers)


def _share(row: Row | None) -> str:
    if row is None or not row["share"]:
        return MISSING
    return _rounded(100 * float(row[f"share{end}"]) for end in ("", "_low", "_high"))


def replacements(rows: Sequence[Row]) -> str:
    """By method of several seeds and dataset: what two fitted vectors have of the gain and of the changed predictions.

    And what the method itself has of these, fitted in the same way.
    """
    ceilings = {(row["method"], row["dataset"]): row for row in rows if row["kind"] == Origin.CEILING}
    heads = (
        "dataset",
        "method",
        "seeds",
        "share of the gain (%)",
        "changed predictions (%)",
        "changed predictions of the method itself (%)",
    )
    lines = []
    for row in rows:
        if (row["kind"], row["form"]) == (Origin.FITTED, "kind") and row["models"] != "1":
            ceiling = _percent(ceilings.get((row["method"], row["dataset"])), "moved_")
            place = (dataset_name(row["dataset"]), row["method"], row["models"])
            lines.append((*place, _percent(row, ""), _percent(row, "moved_"), ceiling))
    return markdown(heads, sorted(lines, key=lambda line: line[0]))


def _percent(row: Row | None, start: str) -> str:
    """`98 (88 to 108)` of columns whose names begin with `start`."""
    if row is None or not row[f"{start}value"]:
        return MISSING
    return _rounded(float(row[f"{start}{end}"]) for end in ("value", "low", "high"))


def observations(rows: Sequence[Row]) -> str:
    """A line for each claim of the paper, a column for each method with prompts; other rows name what they are of."""
    methods = list(dict.fromkeys(row["method"] for row in rows if row["source"] == "Fig. 3"))
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        is_about_method = row["method"] in methods
        claim = row["claim"] if is_about_method else f"{row['claim']} ({row['method']})"
        line = lines.setdefault((row["source"], claim, row["statistic"]), [MISSING] * len(methods))
        line[methods.index(row["method"]) if is_about_method else 0] = _observed(row)
    return markdown(("", "claim", "statistic", *methods), [(*key, *line) for key, line in lines.items()])


def _observed(row: Row) -> str:
    """`-1.2 (-1.5 to -0.9): **holds**`."""
    if not row["value"]:
        return row["outcome"]
    sign, digits = {"points": ("+", 1), "%": ("", 1), "": ("", 2)}[row["unit"]]
    ends = [f"{round(float(row[end]), digits) + 0.0:{sign}.{digits}f}" for end in ("value", "low", "high") if row[end]]
    number = f"{ends[0]} ({ends[1]} to {ends[2]})" if len(ends) == 3 else ends[0]
    unit = f" {row['unit']}" if row["unit"] else ""
    return f"{number}{unit}: **{row['outcome']}**"


def mechanisms(rows: Sequence[Row]) -> str:
    """How often each explainer is right and wrong about models whose mechanism is known."""
    answers = pd.DataFrame(rows)
    answers["counts"] = answers["counts"] == "True"
    lines = []
    for rate in score.rates(answers).to_dict("records"):
        counts = (_rounded(rate[f"{name}{end}"] for end in ("", "_low", "_high")) for name in ("right", "wrong"))
        lines.append((rate["axis"], rate["explainer"], f"{rate['models']}", *counts))
    table = markdown(("label", "explainer", "models", "right (%)", "wrong (%)"), lines)
    return "\n\n".join((score.origin(answers), table, score.evidence(answers), score.limits(answers)))


# By page: numbers beside its pictures, and what is made of them.
PAGES: Mapping[str, Mapping[str, Callable[[Sequence[Row]], str]]] = {
    "results.md": {
        "demo_gains.csv": gains,
        "zoo_gains.csv": zoo,
        "verdict.csv": verdicts,
        "replacements.csv": replacements,
    },
    "paper.md": {"paper.csv": observations},
    "mechanisms.md": {"mechanisms.csv": mechanisms},
}


def page(whole: Path) -> str:
    """The page with its sections made again.

    Raises:
      ClipbiasError: it has none, or a file cannot be read.
    """
    if whole.name not in PAGES:
        raise ClipbiasError(f"{whole} has no table of the demo; {', '.join(PAGES)} have.")
    text = read_text(whole)
    for name, make in PAGES[whole.name].items():
        rows = list(csv.DictReader(io.StringIO(read_text(whole.parent / "images" / name))))
        begin = BEGIN.format(name=name)
        before, marker, rest = text.partition(begin)
        _, end, after = rest.partition(END)
        if not marker or not end:
            raise ClipbiasError(f"{whole} has no place for the table; write the lines {begin!r} and {END!r} there.")
        text = f"{before}{begin}\n\n{make(rows)}\n\n{END}{after}"
    return text


def main(names: Sequence[str]) -> int:
    """Writes the pages; returns the exit status."""
    for path in map(Path, names):
        write_text(path, page(path))
    return 0


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
