"""The page about what adapters learned: one HTML file that needs nothing else, its figures, and its numbers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clipbias.io import write_text
from clipbias.report import pages
from clipbias.report.captioned import write_csv
from clipbias.report.interpretation_figures import norm_figure, norm_frame, projection_figures
from clipbias.report.names import method_name, ordered_methods
from clipbias.report.study_results import counted
from clipbias.report.table import MISSING, Table, cells

RESULT, PAGE, FIGURES = "interpretation.json", "interpretation.html", "figures"
MOST_ROWS = 96  # of words on the page; the file has all
WORD_COLUMNS = ("adapter", "class", "layer", "prompt", "rank", "token", "word", "distance", "mean_distance")

Findings = Mapping[str, Any]


def write_interpretation(found: Findings, folder: Path) -> Path:
    """Writes what `explain.interpret.interpret` found: JSON, CSV, figures and the page, whose path is returned.

    Raises:
      ClipbiasError: the folder cannot be written.
    """
    write_text(folder / RESULT, json.dumps(found, indent=1, allow_nan=False) + "\n")
    write_csv(folder / "words.csv", pd.DataFrame(word_rows(found), columns=WORD_COLUMNS))
    write_csv(folder / "norms.csv", norm_frame(found))
    norms = norm_figure(found)
    sections = [
        pages.Section(
            "How long the learned vectors are",
            pictures=[pages.save_picture(norms, folder / FIGURES)] if norms else [],
            tables=[_norms(found)],
            open=True,
        ),
        pages.Section("Nearest words", tables=[_nearest_words(found)] if found["words"] else []),
        pages.Section(
            "Datasets and seeds",
            pictures=[pages.save_picture(figure, folder / FIGURES) for figure in projection_figures(found)],
        ),
        pages.Section("Adapters, and what was left out", tables=[_adapters(found)], remarks=found["remarks"]),
    ]
    return pages.write_page(
        folder / PAGE,
        "interpretation",
        title="What was learned",
        adapters=counted(len(found["adapters"]), "adapter"),
        clip=found["clip"],
        sections=[section for section in sections if not section.is_empty],
    )


def word_rows(found: Findings) -> list[tuple[Any, ...]]:
    """The rows of `words.csv`: one per prompt and word, layers, prompts and ranks from 1."""
    return [
        (
            *(prompt["adapter"], prompt["class"], prompt["layer"] + 1, prompt["prompt"] + 1, rank),
            *(word["id"], word["word"], word["distance"], prompt["mean_distance"]),
        )
        for prompt in found["words"]
        for rank, word in enumerate(prompt["nearest"], start=1)
    ]


def _adapters(found: Findings) -> Table:
    columns = ("Adapter", "Method", "Dataset", "Shots", "Seed", "Accuracy (%)", "Parameters")
    rows = tuple(
        cells(
            one["name"],
            method_name(one["method"]),
            *(MISSING if one[key] is None else str(one[key]) for key in ("dataset", "shots", "seed")),
            MISSING if one["accuracy"] is None else f"{one['accuracy']:.2f}",
            f"{one['parameters']['total']:,}",
        )
        for one in found["adapters"]
    )
    return Table("", "", columns, rows, words={1, 2})


def _nearest_words(found: Findings) -> Table:
    # One adapter per method and dataset: those of other seeds say much the same.
    first: dict[tuple[Any, Any], str] = {}
    for one in found["adapters"]:
        first.setdefault((one["method"], one["dataset"]), one["name"])
    shown = [prompt for prompt in found["words"] if prompt["adapter"] in first.values()][:MOST_ROWS]
    rows = tuple(
        cells(
            prompt["adapter"] + (f", {prompt['class']}" if prompt["class"] is not None else ""),
            str(prompt["layer"] + 1),
            str(prompt["prompt"] + 1),
            ", ".join(f"{word['word']} ({word['distance']:.3g})" for word in prompt["nearest"]),
            f"{prompt['mean_distance']:.3g}",
        )
        for prompt in shown
    )
    rest = len(found["words"]) - len(rows)
    caption = (
        "The vocabulary's tokens nearest to each learned text prompt, with Euclidean distances; a hyphen ends a piece"
        " of a word. Last column: the mean distance to the whole vocabulary; nearest words that are hardly nearer than"
        " that say nothing. Layer 1: among token embeddings. Deeper layers: among the states that single tokens have in"
        " the prompt's place at the layer's input, in the frozen model; a prompt much shorter than those (see Norms) is"
        " nearest to the shortest of them, whatever its direction."
        + (f" {counted(rest, 'more prompt')} in words.csv." if rest else "")
    )
    return Table("", caption, ("Adapter", "Layer", "Prompt", "Nearest words (distance)", "Mean"), rows, words={3})


def _norms(found: Findings) -> Table:
    methods = {one["name"]: one["method"] for one in found["adapters"]}
    groups: dict[tuple[str, str, str], list[Findings]] = {}
    for row in found["norms"]:
        groups.setdefault((methods[row["adapter"]], row["tower"], row["part"]), []).append(row)
    order = ordered_methods(method for method, _, _ in groups)
    rows = tuple(
        cells(method_name(method), tower, part, *_mean_and_range(own, "norm"), *_mean_and_range(own, "tokens_norm"))
        for (method, tower, part), own in sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    )
    caption = "Means, and smallest and largest mean of a layer; tokens are those that the learned vectors join."
    columns = ("Method", "Tower", "What", "Norm", "from – to", "Tokens", "from – to")
    return Table("", caption, columns, rows, words={1, 2})


def _mean_and_range(rows: Sequence[Findings], field: str) -> tuple[str, str]:
    """A mean, and the range over layers of their means."""
    layers: dict[Any, list[float]] = {}
    for row in rows:
        if row[field] is not None:
            layers.setdefault(row["layer"], []).append(row[field])
    if not layers:
        return MISSING, MISSING
    means = [float(np.mean(values)) for values in layers.values()]
    return f"{np.mean(means):.3g}", f"{min(means):.3g} – {max(means):.3g}"
