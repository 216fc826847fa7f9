"""The report of one study: one HTML file that needs nothing else, and its figures as PDF, PNG and CSV."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipbias.explain.results import load_results, plain
from clipbias.report import pages
from clipbias.report.attention_figures import text_attention_figure, vision_attention_figure
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.decomposition_figures import decomposition_figure
from clipbias.report.faithfulness_figures import area_table, faithfulness_figure
from clipbias.report.map_figures import examples_figure, similarity_figures
from clipbias.report.relevancy_figures import text_relevancy_figure, vision_relevancy_figure
from clipbias.report.study_results import StudyResults, accuracy_and_error, label_of
from clipbias.report.table import MISSING, Table, cells

REPORT, FIGURES = "report.html", "figures"

# In reading order: the decomposition first, then the paper's figures by number, then checks.
_FIGURES = (
    decomposition_figure,
    text_relevancy_figure,
    vision_relevancy_figure,
    text_attention_figure,
    vision_attention_figure,
    similarity_figures,
    faithfulness_figure,
    examples_figure,
)


def write_report(results_folder: str | os.PathLike, output_folder: str | os.PathLike) -> Path:
    """Draws everything that a study computed.

    Args:
      results_folder: where `results.npz` and `results.json` are.
      output_folder: where to write `report.html` and `figures/`.

    Returns:
      The path of the page.

    Raises:
      ClipbiasError: the results are missing or damaged, or the output cannot be written.
    """
    study = StudyResults(load_results(results_folder))
    output = Path(output_folder)
    sections = [pages.Section("Models", "models", tables=[_models(study)]), *_verdicts(study)]
    for figure in figures(study):
        picture = pages.save_picture(figure, output / FIGURES)
        areas = area_table(study) if figure.name == "faithfulness" else None
        sections.append(pages.Section(figure.title, figure.name, [picture], [areas] if areas else []))
    sections.append(pages.Section("How it was made", "config", code=_config(study)))
    conclusions = [(label_of(model), study.section("verdict", model["key"]).get("conclusion")) for model in study.tuned]
    return pages.write_page(
        output / REPORT,
        "report",
        title=f"Why it works: {study.dataset}",
        models=", ".join(map(label_of, study.tuned)) or "zero-shot CLIP",
        clip=study.scalars["clip"],
        dataset=study.scalars["dataset"],
        conclusions=[(label, sentence) for label, sentence in conclusions if sentence],
        sections=sections,
    )


def figures(study: StudyResults) -> list[CaptionedFigure]:
    """All figures that the study has results for, in reading order."""
    drawn: list[CaptionedFigure] = []
    for draw in _FIGURES:
        made = draw(study)
        drawn.extend(made if isinstance(made, list) else [made] if made else [])
    return drawn


def _models(study: StudyResults) -> Table:
    dataset = study.scalars["dataset"]
    caption = (
        f"Top-1 accuracy over {study.zero_shot['images']:,} {dataset['split']} images in"
        f" {len(dataset['class_names'])} classes ± one binomial standard error; learned parameters in all and per"
        f" tower. Zero-shot text: {dataset['template']}"
    )
    columns = ("Model", "Accuracy (%)", "Parameters", "Vision", "Text", "Vision prompts", "Text prompts")
    rows = [
        cells(
            label_of(model),
            "{:.2f} ± {:.2f}".format(*accuracy_and_error(model)),
            *(f"{model['parameters'][part]:,}" for part in ("total", "vision", "text")),
            str(model["vision_prompts"]),
            str(model["text_prompts"]),
        )
        for model in study.models
    ]
    return Table("", caption, columns, tuple(rows))


def _verdicts(study: StudyResults) -> list[pages.Section]:
    """One section per tuned model: what was found in words, then every measured quantity with its sentence."""
    sections = []
    for model in study.tuned:
        verdict = study.section("verdict", model["key"])
        if not verdict:
            continue
        found = tuple(cells(sentence) for sentence in verdict.get("sentences", ()))
        rows = tuple(cells(row["text"], value_and_interval(row), row["sentence"]) for row in verdict.get("rows", ()))
        tables = [
            Table("What was found", "", ("In words",), found, words={0}),
            Table("What else was measured", "", ("Quantity", "Value", "In words"), rows, words={2}),
        ]
        title, identifier = f"The verdict: {label_of(model)}", f"verdict_{model['key']}"
        sections.append(pages.Section(title, identifier, tables=tables, conclusion=verdict.get("conclusion") or ""))
    return sections


def value_and_interval(row: Mapping[str, Any]) -> str:
    """A value with its unit and interval, `0.71 (0.66 to 0.75)`, or a dash where it could not be measured."""
    value, low, high = (row.get(name) for name in ("value", "low", "high"))
    if value is None:
        return MISSING
    digits = 1 if abs(value) >= 10 else 3
    unit = f" {row['unit']}" if row.get("unit") else ""
    ends = f" ({low:.{digits}f} to {high:.{digits}f})" if low is not None and high is not None else ""
    return f"{value:.{digits}f}{unit}{ends}"


def _config(study: StudyResults) -> str:
    scalars = study.scalars
    facts = {
        "checkpoint": scalars["clip"],
        "models": [
            {name: model.get(name) for name in ("key", "method", "options", "source")} for model in study.models
        ],
        "sections": scalars.get("figures"),
        "computing seconds": scalars.get("seconds"),
        "config": scalars.get("config"),
    }
    return json.dumps(plain(facts), indent=2, ensure_ascii=False)
