"""The report of one study: one HTML file that needs nothing else, and its figures as PDF, PNG and CSV."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipbias.explain.results import load_results, plain
from clipbias.files import write_text
from clipbias.report import page
from clipbias.report.attention_figures import text_attention, vision_attention
from clipbias.report.causal_figures import area_table, faithfulness, interventions, percent, standard_error
from clipbias.report.decomposition_figures import decomposition
from clipbias.report.drawing import Drawing
from clipbias.report.map_figures import examples, similarity
from clipbias.report.relevancy_figures import text_relevancy, vision_relevancy
from clipbias.report.study import Study, label_of

REPORT, FIGURES = "report.html", "figures"

# In reading order: what is left of the effect first, then the paper's figures by number, then checks.
_DRAWN = (
    interventions,
    decomposition,
    text_relevancy,
    vision_relevancy,
    text_attention,
    vision_attention,
    similarity,
    faithfulness,
    examples,
)


@dataclasses.dataclass(frozen=True)
class _Section:
    identifier: str
    title: str
    body: str


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
    study = Study(load_results(results_folder))
    output = Path(output_folder)
    sections = [_Section("models", "Models", _models(study)), *_verdicts(study)]
    for drawing in drawings(study):
        image = page.saved_figure(drawing, output / FIGURES)
        extra = _areas(study) if drawing.name == "faithfulness" else ""
        sections.append(_Section(drawing.name, drawing.title, image + extra))
    sections.append(_Section("config", "How it was made", _config(study)))
    path = output / REPORT
    write_text(path, page.document(f"Why it works: {study.dataset}", _body(study, sections)))
    return path


def drawings(study: Study) -> list[Drawing]:
    """All figures that the study has results for, in reading order."""
    drawn: list[Drawing] = []
    for draw in _DRAWN:
        made = draw(study)
        drawn.extend(made if isinstance(made, list) else [made] if made else [])
    return drawn


def _body(study: Study, sections: Sequence[_Section]) -> str:
    tuned = ", ".join(label_of(model) for model in study.tuned) or "zero-shot CLIP"
    clip = study.scalars["clip"]
    lead = (
        f"{tuned} beside zero-shot CLIP ({clip['name']}, {clip['image_size']}-pixel images, patches of"
        f" {clip['patch_size']}) on the {study.scalars['dataset']['split']} images of {study.dataset}."
    )
    conclusions = "".join(
        f'<p class="conclusion">{page.escape(label_of(model))}: '
        f"{page.escape(study.section('verdict', model['key'])['conclusion'])}</p>"
        for model in study.tuned
        if study.section("verdict", model["key"]).get("conclusion")
    )
    contents = "".join(
        f'<li><a href="#{page.escape(section.identifier)}">{page.escape(section.title)}</a></li>'
        for section in sections
    )
    parts = [
        f"<h1>Why it works: {page.escape(study.dataset)}</h1>",
        f'<p class="lead">{page.escape(lead)}</p>',
        conclusions,
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>',
    ]
    for section in sections:
        heading = f"<h2>{page.escape(section.title)}</h2>"
        parts.append(f'<section id="{page.escape(section.identifier)}">{heading}\n{section.body}</section>')
    return "\n".join(part for part in parts if part)


def _models(study: Study) -> str:
    rows = []
    for model in study.models:
        parameters = model["parameters"]
        rows.append(
            (
                label_of(model),
                f"{percent(model):.2f} ± {standard_error(model):.2f}",
                f"{parameters['total']:,}",
                f"{parameters['vision']:,}",
                f"{parameters['text']:,}",
                str(model["vision_prompts"]),
                str(model["text_prompts"]),
            )
        )
    heads = ("Model", "Accuracy (%)", "Parameters", "Vision", "Text", "Vision prompts", "Text prompts")
    images = study.zero_shot["images"]
    dataset = study.scalars["dataset"]
    caption = (
        f"Top-1 accuracy over {images:,} {dataset['split']} images in {len(dataset['class_names'])} classes ± one"
        " binomial standard error; learned parameters in all and per tower. Zero-shot text:"
        f" {dataset['template']}"
    )
    return page.table(heads, rows, caption=caption)


def _verdicts(study: Study) -> list[_Section]:
    """One section per tuned model: a table per hypothesis, every number with its sentence, then the conclusion."""
    sections = []
    for model in study.tuned:
        verdict = study.section("verdict", model["key"])
        if not verdict:
            continue
        parts = []
        for hypothesis in verdict.get("hypotheses", {}).values():
            rows = [(row["text"], measured(row), row["sentence"]) for row in hypothesis["rows"]]
            parts.append(f"<h3>{page.escape(hypothesis['title'])}</h3>")
            parts.append(page.table(("Quantity", "Value", "In words"), rows, words=(2,)))
        if verdict.get("conclusion"):
            parts.append(f'<p class="conclusion">{page.escape(verdict["conclusion"])}</p>')
        title = f"The verdict: {label_of(model)}"
        sections.append(_Section(f"verdict_{model['key']}", title, "\n".join(parts)))
    return sections


def measured(row: Mapping[str, Any]) -> str:
    """A value with its standard error, `0.71 ± 0.02`, or a dash where it could not be measured."""
    value, error = row.get("value"), row.get("standard_error")
    if value is None:
        return "–"
    digits = 1 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")


def _areas(study: Study) -> str:
    heads, rows = area_table(study)
    caption = (
        "Area under each curve in percent. Most relevant first: the smaller, the better the map; least relevant"
        " first: the larger, the better."
    )
    return page.table(heads, rows, caption=caption, words=(1,)) if rows else ""


def _config(study: Study) -> str:
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
    text = json.dumps(plain(facts), indent=2, ensure_ascii=False)
    return f"<pre>{page.escape(text)}</pre>"
