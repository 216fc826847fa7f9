"""The report of one study: one HTML file that needs nothing else, and its figures as PDF, PNG and CSV.

Its first page asks, answers, and shows one figure and one table. All else is folded below, a part per section.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipbias.explain.results import StudyResults, load_results
from clipbias.explain.wording import by_reason
from clipbias.report import pages
from clipbias.report.answer_figure import COLUMNS, answer_figure, answer_note, answer_rows
from clipbias.report.endpoint_table import endpoint_table
from clipbias.report.explorer import explorer_data
from clipbias.report.fitted_table import fitted_remarks, fitted_table
from clipbias.report.image_tables import image_tables
from clipbias.report.map_figures import examples_figure, similarity_figures
from clipbias.report.methods import MethodResults, study_methods
from clipbias.report.relevancy_figures import relevancy_groups_figure, text_relevancy_figure, vision_relevancy_figure
from clipbias.report.study_figures import (
    decomposition_figure,
    faithfulness_figure,
    labels_of,
    text_attention_figure,
    vision_attention_figure,
)
from clipbias.report.table import Table, cells
from clipbias.report.verdict_figures import effects_figure
from clipbias.report.verdict_tables import (
    area_table,
    constants_table,
    corners_table,
    effects_table,
    levels_table,
    temperature_table,
    why_no_constants,
    why_no_effects,
    why_no_levels,
)
from clipbias.report.word_table import word_table

REPORT = "report.html"
FIGURES = "figures"

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
    study = load_results(results_folder)
    output = Path(output_folder)
    methods = study_methods(study)
    figure = answer_figure(study, methods)
    sections = _verdict(study, methods, output)
    if fitted := fitted_table(study.replacement.methods if study.replacement else ()):
        remarks = fitted_remarks(study)
        sections.append(pages.Section("What can stand for it", "replacement", tables=[fitted], remarks=remarks))
    if data := explorer_data(study):
        sections.append(pages.Section("Explore the images", "explore", explorer=data))
    if tables := image_tables(study):
        sections.append(pages.Section("Class by class", "classes", tables=tables))
    for name, (title, draws, _) in _DRAWN.items():
        pictures = [pages.save_picture(each, output / FIGURES) for draw in draws for each in _listed(draw(study))]
        areas = area_table(study) if name == "faithfulness" and pictures else None
        sections.append(pages.Section(title, name, pictures, [areas] if areas else []))
    words = word_table(study)
    sections.append(pages.Section("Nearest words", "nearest", tables=[words] if words else []))
    drawn = {section.identifier for section in sections if not section.is_empty}
    sections.append(
        pages.Section(
            "How it was made", "config", tables=[_models(study)], remarks=_missing(study, drawn), code=_config(study)
        )
    )
    return pages.write_page(
        output / REPORT,
        "report",
        title=f"Why does tuning help on {study.dataset.name}?",
        answer=study.answer,
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
    sentences = []
    for name in ("verdict", "explore", *_DRAWN):
        if name not in study.sections:
            sentences.append(f"{_title(name)}: not computed; --config.sections={name} has it.")
        elif name in _DRAWN and name not in drawn:
            sentences.append(f"{_title(name)}: {_DRAWN[name][2]}.")
    labels = labels_of(study.models)
    for name in study.sections:
        if name not in ("factorial", "constants", "verdict"):  # the verdict tells which models these leave out
            reasons = by_reason((labels[key], reason) for key, reason in study.why_missing(name).items())
            sentences += [f"{_title(name)}, {line}" for line in reasons]
    return list(dict.fromkeys(sentences))


def _title(section: str) -> str:
    return section.replace("_", " ").capitalize()


def _models(study: StudyResults) -> Table:
    columns = ("Model", "Parameters", "Vision", "Text", "Shared", "Vision prompts", "Text prompts")
    rows = []
    for model in study.models:
        count = model.parameters
        numbers = (count.total, count.vision, count.text, count.shared)
        prompts = (str(model.vision_prompts), str(model.text_prompts))
        rows.append(cells(model.label, *(f"{number:,}" for number in numbers), *prompts))
    caption = "Learned parameters: all, of each tower, of both together. Zero-shot's text: " + study.dataset.template
    return Table("", caption, columns, tuple(rows))


def _verdict(study: StudyResults, methods: Sequence[MethodResults], output: Path) -> list[pages.Section]:
    """What the gain is made of, what a constant keeps of it, and all of it in words."""
    if study.verdict is None:
        return []
    effects = effects_figure(methods)
    draws = (corners_table, levels_table, effects_table, temperature_table)
    tables = [endpoint_table([study]), *(draw(methods) for draw in draws)]
    return [
        pages.Section(
            "What carries the gain, in full",
            "effects",
            [pages.save_picture(effects, output / FIGURES)] if effects else [],
            list(filter(None, tables)),
            remarks=why_no_effects(methods) + why_no_levels(methods),
        ),
        pages.Section(
            "What the mean of what blocks add keeps",
            "constants",
            tables=list(filter(None, (constants_table(methods),))),
            remarks=why_no_constants(study, methods),
        ),
        pages.Section("Method by method, in words", "words", groups=_sentences(study, methods)),
    ]


def _sentences(study: StudyResults, methods: Sequence[MethodResults]) -> list[tuple[str, Sequence[str]]]:
    """The verdict on each method, then on each of its seeds."""
    verdicts = [method.verdict for method in methods]
    for method in methods:
        if len(method.facts.models) > 1:
            verdicts += [study.verdict_on([key]) for key in method.facts.models]
    return [(each.label, each.sentences) for each in verdicts if each is not None]


def _config(study: StudyResults) -> str:
    facts = {
        "checkpoint": dataclasses.asdict(study.clip),
        "models": [
            {"key": model.key, "method": model.method, "options": model.options, "source": model.source}
            for model in study.models
        ],
        "sections": study.sections,
        "computing seconds": study.seconds,
        "config": study.config,
    }
    return json.dumps(facts, indent=2, ensure_ascii=False)
