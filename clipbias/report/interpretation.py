"""The page about what adapters learned: one HTML file that needs nothing else, its figures, and its numbers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.files import write_text
from clipbias.report import page
from clipbias.report.cells import MISSING
from clipbias.report.drawing import write_csv
from clipbias.report.interpretation_figures import NORM_COLUMNS, norm_figure, norm_rows, projection_figures
from clipbias.report.names import method_name, ordered_methods
from clipbias.report.study import counted

RESULT, PAGE, FIGURES = "interpretation.json", "interpretation.html", "figures"
MOST_ROWS = 96  # of words on the page; the file has all

Facts = Mapping[str, Any]


def write_interpretation(found: Facts, folder: Path) -> Path:
    """Writes what `explain.interpret.interpret` found: JSON, CSV, figures and the page, whose path is returned.

    Raises:
      ClipbiasError: the folder cannot be written.
    """
    write_text(folder / RESULT, json.dumps(found, indent=1, allow_nan=False) + "\n")
    write_csv(folder / "words.csv", *word_table(found))
    write_csv(folder / "norms.csv", NORM_COLUMNS, norm_rows(found))
    title = "What was learned"
    sections = [("Adapters", _adapters(found)), ("Nearest words", _words(found)), ("Norms", _norms(found, folder))]
    pictures = "\n".join(page.saved_figure(drawing, folder / FIGURES) for drawing in projection_figures(found))
    sections.append(("Datasets and seeds", pictures))
    if found["remarks"]:
        remarks = "".join(f"<li>{page.escape(remark)}</li>" for remark in found["remarks"])
        sections.append(("Left out", f"<ul>{remarks}</ul>"))
    clip = found["clip"]
    lead = (
        f"{counted(len(found['adapters']), 'adapter')} of {clip['name']} ({clip['vision_layers']} vision and"
        f" {clip['text_layers']} text layers, {clip['vocabulary']:,} tokens in the vocabulary)."
    )
    body = [f"<h1>{title}</h1>", f'<p class="lead">{page.escape(lead)}</p>']
    body += [f"<section><h2>{page.escape(head)}</h2>\n{text}</section>" for head, text in sections if text]
    path = folder / PAGE
    write_text(path, page.document(title, "\n".join(body)))
    return path


def word_table(found: Facts) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and rows of `words.csv`: a row per prompt and word, layers, prompts and ranks from 1."""
    columns = ("adapter", "class", "layer", "prompt", "rank", "token", "word", "distance", "mean_distance")
    rows = [
        (
            entry["adapter"],
            entry["class"],
            entry["layer"] + 1,
            entry["prompt"] + 1,
            rank,
            word["id"],
            word["word"],
            word["distance"],
            entry["mean_distance"],
        )
        for entry in found["words"]
        for rank, word in enumerate(entry["nearest"], start=1)
    ]
    return columns, rows


def _adapters(found: Facts) -> str:
    heads = ("Adapter", "Method", "Dataset", "Shots", "Seed", "Accuracy (%)", "Parameters")
    rows = [
        (
            one["name"],
            method_name(one["method"]),
            *(MISSING if one[key] is None else str(one[key]) for key in ("dataset", "shots", "seed")),
            MISSING if one["accuracy"] is None else f"{one['accuracy']:.2f}",
            f"{one['parameters']['total']:,}",
        )
        for one in found["adapters"]
    ]
    return page.table(heads, rows, words=(1, 2))


def _words(found: Facts) -> str:
    entries = found["words"]
    if not entries:
        return ""
    # One adapter per method and dataset: those of other seeds say much the same.
    first: dict[tuple[Any, Any], str] = {}
    for one in found["adapters"]:
        first.setdefault((one["method"], one["dataset"]), one["name"])
    shown = [entry for entry in entries if entry["adapter"] in first.values()][:MOST_ROWS]
    rows = [
        (
            entry["adapter"] + (f", {entry['class']}" if entry["class"] is not None else ""),
            str(entry["layer"] + 1),
            str(entry["prompt"] + 1),
            ", ".join(f"{word['word']} ({word['distance']:.3g})" for word in entry["nearest"]),
            f"{entry['mean_distance']:.3g}",
        )
        for entry in shown
    ]
    rest = len(entries) - len(rows)
    caption = (
        "The vocabulary's tokens nearest to each learned text prompt, with Euclidean distances; a hyphen ends a piece"
        " of a word. Last column: the mean distance to the whole vocabulary; nearest words that are hardly nearer than"
        " that say nothing. Layer 1: among token embeddings. Deeper layers: among the states that single tokens have in"
        " the prompt's place at the layer's input, in the frozen model; a prompt much shorter than those (see Norms) is"
        " nearest to the shortest of them, whatever its direction."
        + (f" {counted(rest, 'more prompt')} in words.csv." if rest else "")
    )
    return page.table(
        ("Adapter", "Layer", "Prompt", "Nearest words (distance)", "Mean"), rows, caption=caption, words=(3,)
    )


def _norms(found: Facts, folder: Path) -> str:
    methods = {one["name"]: one["method"] for one in found["adapters"]}
    groups: dict[tuple[str, str, str], list[Facts]] = {}
    for row in found["norms"]:
        groups.setdefault((methods[row["adapter"]], row["tower"], row["part"]), []).append(row)
    order = ordered_methods(key[0] for key in groups)
    rows = [
        (method_name(method), tower, part, *_range(own, "norm"), *_range(own, "tokens_norm"))
        for (method, tower, part), own in sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    ]
    heads = ("Method", "Tower", "What", "Norm", "from – to", "Tokens", "from – to")
    caption = "Means, and smallest and largest mean of a layer; tokens are those that the learned vectors join."
    drawing = norm_figure(found)
    picture = page.saved_figure(drawing, folder / FIGURES) if drawing else ""
    return picture + page.table(heads, rows, caption=caption, words=(1, 2))


def _range(rows: Sequence[Facts], field: str) -> tuple[str, str]:
    """A mean, and the range over layers of their means."""
    layers: dict[Any, list[float]] = {}
    for row in rows:
        if row[field] is not None:
            layers.setdefault(row["layer"], []).append(row[field])
    if not layers:
        return MISSING, MISSING
    means = [float(np.mean(values)) for values in layers.values()]
    return f"{np.mean(means):.3g}", f"{min(means):.3g} – {max(means):.3g}"
