"""Writes what was measured on the demo into pages of docs/, from the numbers beside their pictures.

    python -m tools.draw_verdict workdir/why --to=docs/images/verdict.png
    python -m tools.make_demo_tables docs/report.md

    cp workdir/zoo_demo/gains.csv docs/images/zoo_gains.csv
    python -m tools.make_demo_tables docs/methods.md

    python -m tools.draw_verdict workdir/why_siglip --to=docs/images/verdict_siglip.png
    python -m tools.make_demo_tables docs/models.md

    python -m tools.draw_replacements workdir/frontier/study --to=docs/images/replacements.png
    python -m tools.make_demo_tables docs/distil.md

    python -m tools.mechanisms draw workdir/mechanisms/answers.csv --to=docs/images/mechanisms.png
    python -m tools.make_demo_tables docs/mechanisms.md

A test holds these pages to their numbers: measure again, and run this again.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from clipbias.errors import ClipbiasError
from clipbias.explain.endpoint import TOKENS_ALONE
from clipbias.explain.results import Kind
from clipbias.io import read_text
from clipbias.report.methods import ALL_ADDED, ATTENTION_ALONE, BEST_ADDED, MEAN_ADDED
from clipbias.report.published import dataset_name
from clipbias.report.table import MISSING
from tools.mechanisms.models import LABELS
from tools.mechanisms.rules import RULES
from tools.mechanisms.score import rates
from tools.pages import markdown, with_section, write_page

BEGIN = "<!-- From images/{name} by `python -m tools.make_demo_tables`; change that, or measure again. -->"
# Columns of changes, and columns of shares of all that is added.
CHANGES = ("gain", ATTENTION_ALONE, TOKENS_ALONE)
SHARES = (MEAN_ADDED, BEST_ADDED)
# How an outcome's table is introduced, and digits of its changes.
OUTCOMES = {"accuracy": ("Points of accuracy", 1), "calibrated": ("Nats of calibrated log-likelihood", 3)}

# Explainers whose answers are shown by family of models, and the axis.
BY_FAMILY = (
    ("where", "corners with levels"),
    *(("what", name) for name in ("corners with levels", "optimal ablation")),
)

Row = Mapping[str, str]


def verdicts(rows: Sequence[Row]) -> str:
    """A table for each outcome: a line for each method and dataset."""
    return "\n\n".join(_verdicts(rows, outcome) for outcome in OUTCOMES if any(r["outcome"] == outcome for r in rows))


def _verdicts(rows: Sequence[Row], outcome: str) -> str:
    title, digits = OUTCOMES[outcome]
    by_place = _by_place(rows, outcome)

    def change(row: Row | None) -> str:
        return MISSING if row is None else _with_ends(row, "value", digits)

    def share(row: Row | None) -> str:
        if row is None or not row["share"] or float(by_place[row["method"], row["dataset"], ALL_ADDED]["low"]) <= 0:
            return MISSING
        return _with_ends(row, "share", 0)

    lines = [
        (
            method,
            dataset_name(dataset),
            *(change(by_place.get((method, dataset, name))) for name in CHANGES),
            *(share(by_place.get((method, dataset, name))) for name in SHARES),
        )
        for method, dataset in dict.fromkeys((method, dataset) for method, dataset, _ in by_place)
    ]
    table = markdown(("method", "dataset", *CHANGES, *SHARES), lines).rstrip()
    return f"{title}, and percent of all that is added to image tokens, in brackets 95 %:\n\n{table}"


def _by_place(rows: Sequence[Row], outcome: str) -> dict[tuple[str, str, str], Row]:
    """The rows of an outcome by method, dataset and quantity, without those of means over datasets."""
    of_outcome = (row for row in rows if row["outcome"] == outcome and row["dataset"] != "mean")
    return {(row["method"], row["dataset"], row["quantity"]): row for row in of_outcome}


def _with_ends(row: Row, value: str, digits: int) -> str:
    """`+5.3 (+3.1 to +7.5)` of a change, or `74 (68 to 79)` of a share in percent."""
    ends = ("value", "low", "high") if value == "value" else ("share", "share_low", "share_high")
    numbers = [float(row[name]) * (1 if digits else 100) for name in ends]
    # Adding 0 makes what rounds to -0 a 0.
    middle, *others = (f"{round(number, digits) + 0.0:{f'+.{digits}f' if digits else '.0f'}}" for number in numbers)
    return f"{middle} ({' to '.join(others)})"


def zoo(rows: Sequence[Row]) -> str:
    """What every method gains, with parameters: kinds by their best method, the best of a kind first."""
    ordered = sorted(rows, key=lambda row: -float(row["value"]))
    kinds = list(dict.fromkeys(row["kind"] for row in ordered))
    lines = [
        (row["kind"], f"`{row['method']}`", f"{float(row['parameters']):,.0f}", _with_ends(row, "value", 1))
        for row in sorted(ordered, key=lambda row: kinds.index(row["kind"]))
    ]
    return markdown(("kind", "method", "parameters", "gain (points)"), lines).rstrip()


def families(clip: Sequence[Row], siglip: Sequence[Row]) -> str:
    """What one vector and two per layer keep of the gain of methods that both studies have, for each outcome."""
    both = {row["method"] for row in clip} & {row["method"] for row in siglip}
    tables = []
    for outcome, (title, digits) in OUTCOMES.items():
        lines: dict[tuple[str, str], list[str]] = {}
        for rows in (clip, siglip):
            by_place = _by_place([row for row in rows if row["method"] in both], outcome)
            for (method, dataset, _), gain in [each for each in by_place.items() if each[0][2] == "gain"]:
                kept_rows = [by_place[method, dataset, f"kept:{form}"] for form in ("vector", "kind")]
                shares = [_with_ends(row, "share", 0) if float(gain["low"]) > 0 else MISSING for row in kept_rows]
                line = lines.setdefault((method, dataset), [method, dataset_name(dataset)])
                line.extend([_with_ends(gain, "value", digits), *shares])
        heads = (f"{family}: {column}" for family in ("CLIP", "SigLIP") for column in ("gain", "one", "two"))
        table = markdown(("method", "dataset", *heads), list(lines.values())).rstrip()
        tables.append(f"{title}, and percent of a gain that one vector and two keep, in brackets 95 %:\n\n{table}")
    return "\n\n".join(tables)


def mechanisms(rows: Sequence[Row]) -> str:
    """How often each explainer is right and wrong, and what some of them say of each family of models."""
    answers = pd.DataFrame(rows)
    answers["counts"] = answers["counts"] == "True"
    numbers = rates(answers).set_index(["axis", "explainer"])
    models = {axis: numbers.loc[axis]["models"].iloc[0] for axis in LABELS}
    lines = []
    for explainer in RULES:
        cells = [_rate(numbers, axis, explainer, name) for axis in LABELS for name in ("right", "wrong")]
        lines.append((explainer, *cells))
    heads = ("explainer", *(f"{axis}: {name} (%)" for axis in LABELS for name in ("right", "wrong")))
    counted = " and ".join(f"{count} with a label *{axis}*" for axis, count in models.items())
    return f"Of {counted}, in brackets 95 %:\n\n{markdown(heads, lines)}\n{_by_family(answers)}"


def _rate(numbers: pd.DataFrame, axis: str, explainer: str, name: str) -> str:
    if (axis, explainer) not in numbers.index:
        return MISSING
    row = numbers.loc[(axis, explainer)]
    return f"{row[name]:.0f} ({row[f'{name}_low']:.0f} to {row[f'{name}_high']:.0f})"


def _by_family(answers: pd.DataFrame) -> str:
    lines = []
    for family, models in answers.groupby(answers["model"].str.partition("-")[0], sort=False):
        counted = models[models["counts"]]
        truths = [models[f"truth: {axis}"].iloc[0] or MISSING for axis in LABELS]
        said = [Counter(counted[f"{explainer}: {axis}"]).most_common() for axis, explainer in BY_FAMILY]
        cells = [", ".join(f"{label} {count}" for label, count in each) or MISSING for each in said]
        lines.append((f"`{family}`", f"{len(counted)} of {len(models)}", *truths, *cells))
    heads = ("family", "count", *(f"truth: {axis}" for axis in LABELS))
    return markdown((*heads, *(f"{explainer}: {axis}" for axis, explainer in BY_FAMILY)), lines).rstrip()


# Methods of the table of replacements: the paper's with prompts.
REPLACED = ("VPT", "IVLP", "MaPLe")


def replacements(rows: Sequence[Row]) -> str:
    """By method and dataset, what two fitted vectors per layer have of the gain and of the moved decisions.

    Of `REPLACED` alone.
    """
    ceilings = {(row["method"], row["dataset"]): row for row in rows if row["kind"] == Kind.CEILING}
    heads = ["method", "dataset", "seeds", "share of the gain (%)", "same moved decisions (%)"]
    lines = []
    for row in rows:
        if (row["kind"], row["form"]) == (Kind.FITTED, "kind") and row["method"] in REPLACED:
            place = (row["method"], dataset_name(row["dataset"]), row["models"])
            line = (*place, _percent(row, ""), _percent(row, "moved_"))
            ceiling = _percent(ceilings.get((row["method"], row["dataset"])), "moved_")
            lines.append((*line, ceiling) if ceilings else line)
    return markdown((*heads, "the method, fitted to itself (%)") if ceilings else heads, lines).rstrip()


def _percent(row: Row | None, start: str) -> str:
    """`98 (88 to 108)` of columns whose names begin with `start`."""
    if row is None or not row[f"{start}value"]:
        return MISSING
    return "{:.0f} ({:.0f} to {:.0f})".format(*(float(row[f"{start}{end}"]) for end in ("value", "low", "high")))


# By page: numbers beside its pictures, and what is made of them.
PAGES: Mapping[str, Mapping[tuple[str, ...], Callable[..., str]]] = {
    "report.md": {("verdict.csv",): verdicts},
    "methods.md": {("zoo_gains.csv",): zoo},
    "distil.md": {("replacements.csv",): replacements},
    "models.md": {("verdict.csv", "verdict_siglip.csv"): families},
    "mechanisms.md": {("mechanisms.csv",): mechanisms},
}


def page(whole: Path) -> str:
    """The page with its sections made again.

    Raises:
      ClipbiasError: it has none, or a file cannot be read.
    """
    if whole.name not in PAGES:
        raise ClipbiasError(f"{whole} has no table of the demo; {', '.join(PAGES)} have.")
    text = read_text(whole)
    for names, make in PAGES[whole.name].items():
        files = [csv.DictReader(io.StringIO(read_text(whole.parent / "images" / name))) for name in names]
        text = with_section(whole, text, BEGIN.format(name=" and ".join(names)), make(*map(list, files)))
    return text


def main() -> None:
    write_page("tools.make_demo_tables", __doc__, page)


if __name__ == "__main__":
    main()
