"""The report of one study: one HTML file that needs nothing else, and its figures as PDF, PNG and CSV.

Its first page has the verdict in a sentence for each method, one table and one picture. All else is folded below, a
part per section, each figure with its caption.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipbias.explain.results import MethodResult, StudyResults, load_results
from clipbias.explain.wording import by_reason
from clipbias.report import pages
from clipbias.report.explorer import explorer_data
from clipbias.report.observations import observations_table
from clipbias.report.relevancy_figures import (
    examples_figure,
    relevancy_groups_figure,
    similarity_figures,
    text_relevancy_figure,
    vision_relevancy_figure,
)
from clipbias.report.replacement import replacement_table
from clipbias.report.study_figures import (
    area_table,
    decomposition_figure,
    faithfulness_figure,
    labels_of,
    text_attention_figure,
    vision_attention_figure,
)
from clipbias.report.study_tables import image_tables, word_table
from clipbias.report.table import Table, cells
from clipbias.report.verdict import (
    other_levels,
    replaced,
    seed_table,
    shown_methods,
    verdict_figure,
    verdict_table,
    why_not_mixed,
)
from clipbias.sentences import counted

REPORT = "report.html"
FIGURES = "figures"
MOST_SENTENCES = 3  # of the first page, one for each method

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
    sentences = {method.label: method_sentences(study, method) for method in study.methods}
    first = list(sentences)[:MOST_SENTENCES]
    figure = verdict_figure(study)
    sections = _sections(study, sentences if len(sentences) > len(first) else {}, output)
    drawn = {section.identifier for section in sections}
    sections.append(
        pages.Section(
            "How it was made", "config", tables=[_models(study)], remarks=_missing(study, drawn), code=_config(study)
        )
    )
    return pages.write_page(
        output / REPORT,
        "report",
        title=f"Why does tuning help on {study.dataset.name}?",
        sentences=[" ".join(sentences[label]) for label in first] or ["There is no tuned model here to explain."],
        basis=f"{counted(study.dataset.images, 'image')} of the {study.dataset.split} split. Zero-shot CLIP: "
        f"{study.zero_shot.accuracy:.1f} %.",
        table=verdict_table(study, shown_methods(study)),
        picture=pages.save_picture(figure, output / FIGURES) if figure else None,
        sections=sections,
    )


def method_sentences(study: StudyResults, method: MethodResult) -> list[str]:
    """The verdict on a method, then what can stand in its place, if that was measured."""
    fitted = replaced(study, method)
    return [method.sentence, fitted.sentence] if fitted else [method.sentence]


def _sections(study: StudyResults, sentences: dict[str, list[str]], output: Path) -> list[pages.Section]:
    """All that is folded, in reading order; none of it empty."""
    tables = [table for table in (seed_table(study), other_levels(study.methods)) if table]
    fitted = replacement_table(study)
    observed = observations_table(study)
    sections = [
        pages.Section("All methods", "verdict", tables=tables, groups=list(sentences.items())),
        pages.Section("Class by class", "classes", tables=image_tables(study)),
        pages.Section("What can stand for it", "replacement", tables=[fitted] if fitted else []),
        pages.Section("What the paper observes", "observations", tables=[observed] if observed else []),
        pages.Section("Explore the images", "explore", explorer=explorer_data(study)),
    ]
    for name, (title, draws, _) in _DRAWN.items():
        made = [figure for draw in draws for figure in _listed(draw(study))]
        pictures = [pages.save_picture(figure, output / FIGURES) for figure in made]
        areas = area_table(study) if name == "faithfulness" and pictures else None
        sections.append(pages.Section(title, name, pictures, [areas] if areas else []))
    words = word_table(study)
    sections.append(pages.Section("Nearest words", "nearest", tables=[words] if words else []))
    return [section for section in sections if not section.is_empty]


def _listed(made: Any) -> list[Any]:
    return made if isinstance(made, list) else [made] if made else []


def _missing(study: StudyResults, drawn: set[str]) -> list[str]:
    """One sentence for each section that is not on the page, and for each model that a section leaves out."""
    sentences = why_not_mixed(study)
    for name in ("causal", "explore", *_DRAWN):
        if name not in study.sections:
            sentences.append(f"{_title(name)}: not computed; --config.sections={name} has it.")
        elif name in _DRAWN and name not in drawn:
            sentences.append(f"{_title(name)}: {_DRAWN[name][2]}.")
    labels = labels_of(study.models)
    for name in study.sections:
        reasons = by_reason((labels[key], reason) for key, reason in study.why_missing(name).items())
        sentences += [f"{_title(name)}, {line}" for line in reasons]
    return list(dict.fromkeys(sentences))


def _title(section: str) -> str:
    return section.replace("_", " ").capitalize()


def _models(study: StudyResults) -> Table:
    columns = ("Model", "Accuracy (%)", "Parameters", "Vision", "Text", "Shared", "Vision prompts", "Text prompts")
    rows = []
    for model in study.models:
        count = model.parameters
        numbers = (count.total, count.vision, count.text, count.shared)
        prompts = (str(model.vision_prompts), str(model.text_prompts))
        accuracy = f"{model.accuracy:.1f} ± {model.standard_error:.1f}"
        rows.append(cells(model.label, accuracy, *(f"{number:,}" for number in numbers), *prompts))
    caption = (
        "Accuracy ± one binomial standard error. Learned parameters: all, of each tower, of both together. Zero-shot's"
        f" text: {study.dataset.template}"
    )
    return Table("", caption, columns, tuple(rows))


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
