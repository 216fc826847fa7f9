"""The report of one study: one HTML file that needs nothing else, and its figures as PDF, PNG and CSV.

Its first page asks, answers, and shows one figure and one table. All else is folded below, a part per section.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipbias.explain.results import load_results, plain
from clipbias.report import pages
from clipbias.report.answer import answer_sentences, certainty, question
from clipbias.report.answer_figure import COLUMNS, answer_figure, answer_note, answer_rows
from clipbias.report.explorer import explorer_data
from clipbias.report.image_tables import image_tables
from clipbias.report.map_figures import examples_figure, similarity_figures
from clipbias.report.methods import MethodResults, study_methods
from clipbias.report.relevancy_figures import relevancy_groups_figure, text_relevancy_figure, vision_relevancy_figure
from clipbias.report.study_figures import (
    decomposition_figure,
    faithfulness_figure,
    text_attention_figure,
    vision_attention_figure,
)
from clipbias.report.study_results import StudyResults, label_of, why_missing
from clipbias.report.table import Table, cells
from clipbias.report.verdict_figures import effects_figure, ladder_figure
from clipbias.report.verdict_tables import (
    area_table,
    constants_table,
    effects_table,
    temperature_table,
    why_no_constants,
    why_no_effects,
)

REPORT, FIGURES = "report.html", "figures"

# By section of the study, in reading order: the title, what draws it, and why there may be nothing to draw.
_Draw = Callable[[StudyResults], Any]
_DRAWN: dict[str, tuple[str, tuple[_Draw, ...], str]] = {
    "decomposition": ("What prompts do to attention", (decomposition_figure,), "no model has prompts"),
    "relevancy": (
        "Which tokens and patches count",
        (text_relevancy_figure, vision_relevancy_figure, relevancy_groups_figure),
        "there is no image that zero-shot gets wrong and a tuned model right",
    ),
    "text_attention": ("Attention of the end-of-text token", (text_attention_figure,), "no model has a text"),
    "vision_attention": ("Attention distance and entropy", (vision_attention_figure,), "no model sees an image"),
    "similarity": (
        "Where [cls] looks, and what is like the prompts",
        (similarity_figures,),
        "no model has vision prompts",
    ),
    "faithfulness": ("Whether the maps point at what matters", (faithfulness_figure,), "no image could be read"),
    "examples": ("Relevancy on example pictures", (examples_figure,), "no image could be read"),
}


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
    methods = study_methods(study)
    figure = answer_figure(study, methods)
    sections = _verdict(study, methods, output)
    if data := explorer_data(study):
        sections.append(pages.Section("Explore the images", "explore", explorer=data))
    if tables := image_tables(study):
        sections.append(pages.Section("Class by class", "classes", tables=tables))
    for name, (title, draws, _) in _DRAWN.items():
        pictures = [pages.save_picture(each, output / FIGURES) for draw in draws for each in _listed(draw(study))]
        areas = area_table(study) if name == "faithfulness" and pictures else None
        sections.append(pages.Section(title, name, pictures, [areas] if areas else []))
    drawn = {section.identifier for section in sections if not section.is_empty}
    sections.append(
        pages.Section(
            "How it was made", "config", tables=[_models(study)], remarks=_missing(study, drawn), code=_config(study)
        )
    )
    return pages.write_page(
        output / REPORT,
        "report",
        title=f"Why does tuning help on {study.dataset}?",
        question=question(study),
        answer=answer_sentences(study, methods),
        certainty=certainty(study, methods),
        picture=pages.save_picture(figure, output / FIGURES) if figure else None,
        columns=COLUMNS,
        rows=answer_rows(study, methods),
        note=answer_note(study, methods),
        sections=[section for section in sections if not section.is_empty],
    )


def _listed(made: Any) -> list[Any]:
    return made if isinstance(made, list) else [made] if made else []


def _missing(study: StudyResults, drawn: set[str]) -> list[str]:
    """One sentence for each section that is not on the page, and for each model that a section leaves out."""
    asked = study.scalars["sections"]
    found = []
    for name in ("verdict", "explore", *_DRAWN):
        if name not in asked:
            found.append(f"{_title(name)}: not computed; --config.sections={name} has it.")
        elif name in _DRAWN and name not in drawn:
            found.append(f"{_title(name)}: {_DRAWN[name][2]}.")
    # Sections of the verdict tell which models they leave out.
    others = [name for name in asked if name not in ("factorial", "constants", "verdict")]
    found += [f"{_title(name)}, {line}" for name in others for line in why_missing(study, name)]
    return list(dict.fromkeys(found))


def _title(section: str) -> str:
    return section.replace("_", " ").capitalize()


def _models(study: StudyResults) -> Table:
    columns = ("Model", "Parameters", "Vision", "Text", "Shared", "Vision prompts", "Text prompts")
    rows = [
        cells(
            label_of(model),
            *(f"{model['parameters'][part]:,}" for part in ("total", "vision", "text", "shared")),
            str(model["vision_prompts"]),
            str(model["text_prompts"]),
        )
        for model in study.models
    ]
    template = study.scalars["dataset"]["template"]
    caption = f"Learned parameters: all, of each tower, of both together. Zero-shot's text: {template}"
    return Table("", caption, columns, tuple(rows))


def _verdict(study: StudyResults, methods: Sequence[MethodResults], output: Path) -> list[pages.Section]:
    """What the gain is made of, what a constant keeps of it, and all of it in words."""
    if not study.section("verdict"):
        return []
    sections = []
    for title, identifier, figure, tables, reasons in (
        (
            "What carries the gain, in full",
            "effects",
            effects_figure(methods),
            (effects_table(methods), temperature_table(methods)),
            why_no_effects(methods),
        ),
        (
            "What a constant keeps",
            "constants",
            ladder_figure(methods),
            (constants_table(methods),),
            why_no_constants(study, methods),
        ),
    ):
        pictures = [pages.save_picture(figure, output / FIGURES)] if figure else []
        sections.append(pages.Section(title, identifier, pictures, list(filter(None, tables)), remarks=reasons))
    said = [(each.label, each.verdict["sentences"]) for each in methods if each.verdict.get("sentences")]
    labels = {model["key"]: label_of(model) for model in study.models}
    said += [
        (labels[key], study.section("verdict", key)["sentences"])
        for each in methods
        if len(each.keys) > 1
        for key in each.keys
    ]
    return [*sections, pages.Section("Method by method, in words", "words", groups=said)]


def _config(study: StudyResults) -> str:
    scalars = study.scalars
    facts = {
        "checkpoint": scalars["clip"],
        "models": [
            {name: model.get(name) for name in ("key", "method", "options", "source")} for model in study.models
        ],
        "sections": scalars["sections"],
        "computing seconds": scalars.get("seconds"),
        "config": scalars.get("config"),
    }
    return json.dumps(plain(facts), indent=2, ensure_ascii=False)
