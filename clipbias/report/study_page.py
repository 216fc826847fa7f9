"""The report of one study: one HTML file that needs nothing else, and its figures as PDF, PNG and CSV."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipbias.explain.results import load_results, plain
from clipbias.report import pages
from clipbias.report.explorer import explorer_data
from clipbias.report.image_tables import image_tables
from clipbias.report.map_figures import examples_figure, similarity_figures
from clipbias.report.relevancy_figures import (
    relevancy_groups_figure,
    text_relevancy_figure,
    vision_relevancy_figure,
)
from clipbias.report.study_figures import (
    decomposition_figure,
    faithfulness_figure,
    text_attention_figure,
    vision_attention_figure,
)
from clipbias.report.study_results import StudyResults, accuracy_and_error, label_of, why_missing
from clipbias.report.summary_figures import summary_figure
from clipbias.report.table import MISSING, Table, cells
from clipbias.report.verdict_figures import effects_figure, kept_figure
from clipbias.report.verdict_summary import left_out, summarize_verdicts
from clipbias.report.verdict_tables import area_table, effects_table, kept_table, why_no_effects, why_nothing_kept

REPORT, FIGURES = "report.html", "figures"
_MEASURED = (
    "In brackets 95 % intervals: 1.96 standard errors to either side, over images, or over classes in the text tower."
    " Changes are paired image by image; constancy, likeness and cosines have the jackknife's error."
)

# From so many tuned models on, one picture shows them all before each is shown by itself.
_SIDE_BY_SIDE = 4

# In reading order, the decomposition first, then the paper's figures by number, then checks: the section of the study
# that each is drawn from, and why there may be nothing to draw.
_FIGURES: tuple[tuple[Callable[[StudyResults], Any], str, str], ...] = (
    (decomposition_figure, "decomposition", "no model has prompts"),
    (text_relevancy_figure, "relevancy", "there is no image that zero-shot gets wrong and a tuned model right"),
    (vision_relevancy_figure, "relevancy", "there is no image that zero-shot gets wrong and a tuned model right"),
    (relevancy_groups_figure, "relevancy", "no image could be read"),
    (text_attention_figure, "text_attention", "no model has a text of its own"),
    (vision_attention_figure, "vision_attention", "no model sees an image"),
    (similarity_figures, "similarity", "no model has vision prompts"),
    (faithfulness_figure, "faithfulness", "no image could be read"),
    (examples_figure, "examples", "no image could be read"),
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
    sections, missing = _verdict(study, output), []
    if data := explorer_data(study):
        sections.append(pages.Section("Explore the images", "explore", explorer=data))
    elif "explore" not in study.scalars["sections"]:
        missing.append("Explore: it was not asked for; --config.sections=explore has it.")
    if tables := image_tables(study):
        sections.append(pages.Section("Class by class, image by image", "images", tables=tables))
    sections.append(pages.Section("Models", "models", tables=[_models(study)]))
    for draw, section, reason in _FIGURES:
        made = draw(study)
        for figure in made if isinstance(made, list) else [made] if made else []:
            picture = pages.save_picture(figure, output / FIGURES)
            areas = area_table(study) if figure.name == "faithfulness" else None
            tables = [areas] if areas else []
            sections.append(pages.Section(figure.title, figure.name, [picture], tables))
        if not made and section not in study.scalars["sections"]:
            reason = f"it was not asked for; --config.sections={section} has it"
        if not made:
            missing.append(f"{section.replace('_', ' ').capitalize()}: {reason}.")
    missing += _models_without(study)
    if missing:
        sections.append(pages.Section("What is not here", "missing", remarks=list(dict.fromkeys(missing))))
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


def _models_without(study: StudyResults) -> list[str]:
    """Why a section has not all models; the verdict's own sections tell that themselves."""
    told = ("factorial", "amounts", "verdict")
    sections = [section for section in study.scalars["sections"] if section not in told]
    return [f"{each.replace('_', ' ').capitalize()}, {line}" for each in sections for line in why_missing(study, each)]


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


def _verdict(study: StudyResults, output: Path) -> list[pages.Section]:
    """What the gain is made of, what a constant keeps of it, all of it in words, and what else was measured."""
    if not study.section("verdict"):
        reason = "No verdict: it was not asked for; --config.sections=factorial,amounts,verdict has it."
        return [pages.Section("What carries the gain", "verdict_effects", remarks=[reason])]
    sections = []
    if len(study.tuned) >= _SIDE_BY_SIDE and (figure := summary_figure(summarize_verdicts([study]), left_out([study]))):
        picture = pages.save_picture(figure, output / FIGURES)
        sections.append(pages.Section("Methods side by side", "verdict_overview", [picture]))
    for title, draw, table, reasons in (
        ("What carries the gain", effects_figure, effects_table(study), why_no_effects(study)),
        ("What a constant keeps", kept_figure, kept_table(study), why_nothing_kept(study)),
    ):
        figure, identifier = draw(study), draw.__name__.replace("_figure", "")
        pictures = [pages.save_picture(figure, output / FIGURES)] if figure else []
        tables = [table] if table else []
        sections.append(pages.Section(title, f"verdict_{identifier}", pictures, tables, remarks=reasons))
    measured: list[Table] = []
    for model in study.tuned:
        verdict = study.section("verdict", model["key"])
        sections.append(
            pages.Section(
                f"In words: {label_of(model)}",
                f"verdict_{model['key']}",
                conclusion=verdict.get("conclusion") or "",
                remarks=verdict.get("sentences", ()),
            )
        )
        rows = tuple(cells(row["text"], value_and_interval(row), row["sentence"]) for row in verdict.get("rows", ()))
        if rows:
            columns = ("Quantity", "Value", "In words")
            measured.append(Table(label_of(model), _MEASURED if not measured else "", columns, rows, words={2}))
    if measured:
        sections.append(pages.Section("What else was measured", "measured", tables=measured))
    if study.scalars.get("agreement"):
        sections.append(pages.Section("Whether seeds agree", "agreement", remarks=agreement_sentences(study)))
    return sections


def agreement_sentences(study: StudyResults) -> list[str]:
    """For every pair of models of one method, whether the intervals of their shares overlap."""
    labels = {model["key"]: label_of(model) for model in study.models}
    said = []
    for pair in study.scalars.get("agreement") or ():
        names = " and ".join(labels.get(key, key) for key in pair["models"])
        apart = [name for name, meets in pair["overlap"].items() if not meets]
        said.append(
            f"{names} contradict each other about {', '.join(apart)}: these intervals do not overlap."
            if apart
            else f"{names} agree: the intervals of every effect's share overlap."
        )
    return said


def value_and_interval(row: Mapping[str, Any]) -> str:
    """A value with its unit and interval, `0.71 (0.66 to 0.75)`, or a dash where it could not be measured."""
    value, low, high = (row.get(name) for name in ("value", "low", "high"))
    if value is None:
        return MISSING
    digits = 1 if abs(value) >= 10 else 3 if abs(value) >= 0.01 or not value else 5
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
        "sections": scalars.get("sections"),
        "computing seconds": scalars.get("seconds"),
        "seconds by section": scalars.get("seconds_by_section"),
        "config": scalars.get("config"),
    }
    return json.dumps(plain(facts), indent=2, ensure_ascii=False)
