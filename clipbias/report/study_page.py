"""The report of a study: one self-contained HTML file, and its figures as PDF, PNG and CSV.

Its top has a headline and bars for the first methods, and pictures whose prediction changed. The rest is folded below,
a part per section. The overview of several datasets has verdicts side by side, accuracies, and relevancy panels.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from clipbias.analysis.causal_section import CAUSAL
from clipbias.analysis.dataset_sections import PREDICTIONS
from clipbias.analysis.observations import OBSERVATIONS
from clipbias.analysis.results import MethodResult, ModelFacts, StudyResults
from clipbias.analysis.results_file import load_results
from clipbias.analysis.sections import all_sections
from clipbias.analysis.verdict_sentences import headline
from clipbias.analysis.words import PROMPT_WORDS
from clipbias.errors import ClipbiasError
from clipbias.intervals import by_reason, with_interval
from clipbias.io import write_text
from clipbias.report import pages, verdict
from clipbias.report.drawings import Drawing, all_drawings
from clipbias.report.names import dataset_name, ordered_datasets
from clipbias.report.overlay import ChangedPicture, changed_pictures
from clipbias.report.study_figures import dataset_figures
from clipbias.report.table import MISSING, Table
from clipbias.sentences import counted

REPORT = "report.html"
OVERVIEW = "overview.html"
FIGURES = "figures"
MOST_METHODS = 2  # at the top


def write_report(
    results_folder: str | os.PathLike,
    output_folder: str | os.PathLike,
    advance: Callable[[str, int, int], None] = lambda title, done, total: None,
) -> Path:
    """Draws a study as `report.html` and `figures/`; returns the page's path.

    `advance` is called with a title, a section's number and their count, before each is drawn. Raises `ClipbiasError`
    if results are missing or damaged, or the output cannot be written.
    """
    study = load_results(results_folder)
    output = Path(output_folder)
    verdicts = _verdicts(study, CAUSAL.title)
    tables = [*verdicts.tables, verdict.seed_table(study), verdict.towers_table(study.methods)]
    figures = [verdict.overview_figure([study]), verdict.reading_figure([study])]
    pictures = pages.save_pictures(figures, output / FIGURES)
    sections = [dataclasses.replace(verdicts, identifier=CAUSAL.name, pictures=pictures, tables=tables)]
    drawings = all_drawings()
    for number, drawing in enumerate(drawings, start=1):
        advance("drawing the report", number, len(drawings))
        if drawing.section.name in study.sections:
            sections.append(
                pages.PageSection(
                    drawing.section.title,
                    drawing.section.name,
                    pictures=pages.save_pictures([draw(study) for draw in drawing.figures], output / FIGURES),
                    tables=[draw(study) for draw in drawing.tables],
                    explorer=drawing.explorer(study),
                )
            )
    sections = [each for each in sections if not each.is_empty]
    # Every section and model is accounted for: on the page, or in a sentence that says why not.
    missing = _missing(study, {each.identifier for each in sections})
    sections.append(
        pages.PageSection("How it was made", "config", tables=[_models(study)], remarks=missing, code=_config(study))
    )
    # The methods with the largest gains are at the top, the largest first.
    gains = {method.label: method.numbers.accuracy.gain.value for method in study.methods if method.numbers}
    # A method without the causal test counts as without a gain.
    largest = sorted(study.methods, key=lambda method: -gains.get(method.label, 0.0))
    first = [
        {"name": method.label, "headline": headline(method), "facts": verdict.facts(study, method)}
        for method in largest[:MOST_METHODS]
    ]
    strip, strip_words = _strip(study, [model for each in largest for model in study.tuned if model.key in each.models])
    page = pages.render(
        "report",
        title=f"Why does tuning help on {dataset_name(study.dataset.name)}?",
        basis=_basis(study),
        methods=first or [{"headline": "There is no tuned model here to explain.", "facts": []}],
        strip=strip,
        strip_words=strip_words,
        sections=sections,
    )
    write_text(output / REPORT, page)
    return output / REPORT


def _verdicts(study: StudyResults, title: str) -> pages.PageSection:
    """Makes the section of a study's verdicts: its table, and its sentences by method."""
    groups = [(method.label, method_sentences(study, method)) for method in study.methods]
    return pages.PageSection(title, tables=[verdict.verdict_table(study, study.methods)], groups=groups)


def _strip(study: StudyResults, models: Iterable[ModelFacts]) -> tuple[list[ChangedPicture], str]:
    """Returns pictures whose prediction changed, and a sentence, of the first model that has any."""
    for model in models:
        if pictures := changed_pictures(study, model):
            corrected, broken = (int((study.predictions.changes(model.key) == change).sum()) for change in (0, 1))
            words = f"Some of the {corrected:,} pictures that {model.label} corrected and the {broken:,} that it broke."
            return pictures, words
    return [], ""


def _basis(study: StudyResults) -> str:
    """Says which images the numbers are of: accuracies may be of more images than the causal test."""
    tested = {method.images for method in study.methods if method.numbers is not None}
    basis = f"{counted(study.dataset.images, 'image')} of the {study.dataset.split} split. Zero-shot CLIP: "
    basis += " ".join([f"{study.zero_shot.accuracy:.1f} %.", *study.other_references])
    if tested - {study.dataset.images}:
        basis += f" Gains, shares and labels are of {' or '.join(f'{n:,}' for n in sorted(tested))} of them."
    return basis


def method_sentences(study: StudyResults, method: MethodResult) -> list[str]:
    """Returns the verdict on a method, and the conclusion about its replacements, if any."""
    fitted = verdict.replaced(study, method)
    return [method.sentence, fitted.sentence] if fitted else [method.sentence]


def _missing(study: StudyResults, drawn: set[str]) -> list[str]:
    """Writes a sentence for each section that is not on the page, and for each model that a section leaves out."""

    def title(section: str) -> str:
        return section.replace("_", " ").capitalize()

    sentences = verdict.why_not_patched(study)
    for name in all_sections():
        if name not in study.sections:
            sentences.append(f"{title(name)}: not computed; --config.sections={name} computes it.")
    for drawing in all_drawings():
        name = drawing.section.name
        if name in study.sections and name not in drawn:
            sentences.append(f"{title(name)}: {drawing.nothing}.")
    for name in study.sections:
        reasons = by_reason((study.labels[key], reason) for key, reason in study.why_missing(name).items())
        sentences += [f"{title(name)}, {line}" for line in reasons]
    # Sections may leave out models for the same reason.
    return list(dict.fromkeys(sentences))


def _models(study: StudyResults) -> Table:
    columns = ("Model", "Accuracy (%)", "Parameters", "Vision", "Text", "Shared", "Vision prompts", "Text prompts")
    rows = []
    for model in study.models:
        count = model.parameters
        numbers = [count.total, count.vision, count.text, count.shared, model.vision_prompts, model.text_prompts]
        rows.append([model.label, f"{model.accuracy:.1f} ± {model.standard_error:.1f}", *map("{:,}".format, numbers)])
    return Table(*pages.words_of("models_table", template=study.dataset.template), columns, rows)


def _config(study: StudyResults) -> str:
    # What a reader needs to run the study again, in the words of its settings.
    facts = {
        "checkpoint": dataclasses.asdict(study.clip),
        "models": [
            {"key": model.key, "method": model.method, "options": model.options, "source": model.source}
            for model in study.models
        ],
        "sections": list(study.sections),
        "computing seconds": study.seconds,
        "config": study.config,
    }
    return json.dumps(facts, indent=2, ensure_ascii=False)


def write_overview(results_folders: Sequence[str | os.PathLike], output_folder: str | os.PathLike) -> Path:
    """Draws studies of several datasets as `overview.html` and `figures/`; returns the page's path.

    The page links to reports in the folders or their `report/`. Raises `ClipbiasError` without folders, if two hold a
    method on the same dataset, or if results are missing or damaged.
    """
    if not results_folders:
        raise ClipbiasError("an overview needs at least one folder with results; none was given.")
    studies = load_studies(map(Path, results_folders))
    ordered = list(studies.values())
    names = [dataset_name(study.dataset.name) for study in ordered]
    output = Path(output_folder)
    figures = [verdict.overview_figure(ordered), verdict.reading_figure(ordered)]
    overview = pages.save_pictures(figures, output / FIGURES)
    sections = [
        dataclasses.replace(_verdicts(study, f"Verdicts on {name}"), remarks=[_basis(study)])
        for study, name in zip(ordered, names, strict=True)
    ]
    # By key: a model of several datasets has a figure with a panel for each.
    for key, label in {model.key: model.label for study in ordered for model in study.tuned}.items():
        pictures = pages.save_pictures(dataset_figures(ordered, key, label), output / FIGURES)
        sections.append(pages.PageSection(f"Relevancy: {label}", pictures=pictures))
    pictures = pages.save_pictures([verdict.replacement_figure(ordered)], output / FIGURES)
    sections.append(pages.PageSection("Replacements of each method", pictures=pictures))
    reports = []
    for folder, name in zip(studies, names, strict=True):
        path = folder / REPORT if (folder / REPORT).is_file() else folder / "report" / REPORT
        if path.is_file():
            # Relative links: a folder with reports and overview can be moved, and opened from any disk.
            reports.append((name, Path(os.path.relpath(path, output)).as_posix()))
    page = pages.render(
        "overview",
        title=f"Why does tuning help on {counted(len(ordered), 'dataset')}?",
        datasets=names,
        pictures=overview,
        accuracies=_accuracies(ordered),
        reports=reports,
        sections=[section for section in sections if not section.is_empty],
    )
    write_text(output / OVERVIEW, page)
    return output / OVERVIEW


def load_studies(folders: Iterable[Path]) -> dict[Path, StudyResults]:
    """Reads studies by folder, in the order of datasets.

    Raises `ClipbiasError` if two folders hold a method on the same dataset, or results are missing or damaged.
    """
    studies: dict[Path, StudyResults] = {}
    holders: dict[tuple[str, str], Path] = {}
    for folder in folders:
        studies[folder] = study = load_results(folder)
        dataset = study.dataset.name
        # Two studies of a method on a dataset would be two points in one place of every figure.
        for name in dict.fromkeys(model.name for model in study.tuned):
            if (holder := holders.setdefault((dataset, name), folder)) != folder:
                raise ClipbiasError(
                    f"{folder} and {holder} both hold {name} on {dataset}; give one of them. Seeds belong in one study."
                )
    # Folders come in any order, and every table and figure has that of the papers.
    order = ordered_datasets(study.dataset.name for study in studies.values())
    return dict(sorted(studies.items(), key=lambda item: order.index(item[1].dataset.name)))


def _accuracies(studies: Sequence[StudyResults]) -> Table:
    labels = {model.key: model.label for study in studies for model in study.models}
    rows = []
    accuracies: dict[str, list[float]] = {key: [] for key in labels}
    for study in studies:
        # Studies may have different models: a dash where a dataset lacks one, and no average over different datasets.
        texts = dict.fromkeys(labels, MISSING)
        for model in study.models:
            texts[model.key] = f"{model.accuracy:.1f} ± {model.standard_error:.1f}"
            accuracies[model.key].append(model.accuracy)
        rows.append([dataset_name(study.dataset.name), f"{study.zero_shot.images:,}", *texts.values()])
    if len(studies) > 1:
        # A mean over the datasets that a model has would flatter models that lack the hard ones.
        means = (f"{np.mean(values):.1f}" if len(values) == len(studies) else MISSING for values in accuracies.values())
        rows.append(["Average", "", *means])
    return Table(*pages.words_of("accuracies_table"), ("Dataset", "Images", *labels.values()), rows)


WORD_ROWS = 96  # on the page; results hold all
CLASS_ROWS = 30  # with more classes, those with the largest losses and gains


def word_table(study: StudyResults) -> Table | None:
    """Makes a row of nearest words per prompt; `None` without learned text prompts."""
    prompts = [
        (study.labels[key], prompt) for key, result in PROMPT_WORDS.present(study).items() for prompt in result.prompts
    ]
    rows = []
    for label, prompt in prompts[:WORD_ROWS]:
        # The distance stands beside the word: the nearest word may be far.
        words = [f"{word} ({far:.3g})" for word, far in zip(prompt.words, prompt.distances, strict=True)]
        name = label if prompt.class_name is None else f"{label}, {prompt.class_name}"
        rows.append((name, str(prompt.prompt + 1), ", ".join(words), f"{prompt.mean_distance:.3g}"))
    title, caption = pages.words_of("words_table")
    if more := len(prompts) - len(rows):
        caption += f" {counted(more, 'more prompt')} in results.json."
    heads = ("Model", "Prompt", "Nearest words (distance)", "Mean")
    return Table(title, caption, heads, rows, words={2}) if rows else None


DRAWING_OF_PROMPT_WORDS = Drawing(
    PROMPT_WORDS, place=120, tables=(word_table,), nothing="no model has learned text prompts"
)


def class_table(study: StudyResults) -> Table | None:
    """Makes a row per class: zero-shot's accuracy, its most frequent error, and each tuned model's change."""
    if not study.tuned:
        return None
    predictions = study.predictions
    answered = predictions.zero_shot >= 0
    steps = {}  # by image: +1 where tuning made the prediction right, -1 where it made it wrong, else 0
    for model in study.tuned:
        changes = predictions.changes(model.key)
        steps[model.key] = np.select([changes == 0, changes == 1], [1, -1], 0)
        # Changes of different models are compared on the same images.
        answered &= changes >= 0
    columns = {"label": predictions.labels, "zero_shot": predictions.zero_shot, **steps}
    names = study.dataset.class_names
    rows, net = {}, {}
    # Classes are those of the images: one without test images has no row.
    for label, images in pd.DataFrame(columns)[answered].groupby("label"):
        # Sorted by class, so that the first of equally frequent errors is the same everywhere.
        wrong = images["zero_shot"][images["zero_shot"] != label].value_counts(sort=False).sort_index()
        taken_for = f"{names[wrong.idxmax()]} ({wrong.max()} of {len(images)})" if len(wrong) else MISSING
        rows[label] = [names[label], str(len(images)), f"{100 * (images['zero_shot'] == label).mean():.1f}", taken_for]
        for key in steps:
            change = images[key]
            error = f" ± {100 * change.sem():.1f}" if len(change) > 1 else ""
            became = f"({(change == 1).sum()}, {(change == -1).sum()})"
            rows[label].append(f"{100 * change.mean():+.1f}{error} {became}")
        # Classes are ordered by what all models together change, so that one model's noise does not order them.
        net[label] = images[list(steps)].mean().sum()
    order = sorted(rows, key=lambda label: (net[label], label))
    # Classes in the middle change little.
    half = CLASS_ROWS // 2
    ends = ""
    if len(order) > CLASS_ROWS:
        ends = f"; of {len(order)} classes the {half} at either end"
        order = order[:half] + order[-half:]
    return Table(
        "Gains and losses by class",
        "Change of accuracy against zero-shot in points ± one standard error, of the images of a class.",
        (
            "Class",
            "Images",
            "Zero-shot (%)",
            "Zero-shot's most frequent error",
            *(model.label for model in study.tuned),
        ),
        [rows[label] for label in order],
        words={3},
        note=f"Classes by the sum of these changes, the largest losses first{ends}. In brackets: numbers of images that"
        " became right and wrong.",
    )


DRAWING_OF_PREDICTIONS = Drawing(PREDICTIONS, place=10, tables=(class_table,), nothing="there is no tuned model")


def observations_table(study: StudyResults) -> Table | None:
    """Makes a row for each claim and method; `None` without observations."""
    observations = OBSERVATIONS.of(study)
    # Changes have their sign, shares have none; `z` writes no negative 0.
    forms = {"points": "{:+z.1f}", "%": "{:z.1f}", "": "{:z.2f}"}
    rows = []
    for row in observations.rows if observations else ():
        number = row.number and f"{with_interval(row.number, forms[row.unit].format)} {row.unit}".rstrip()
        rows.append((f"{row.source}: {row.claim}", row.method, row.statistic, number or MISSING, row.outcome.value))
    heads = ("Claim", "Model", "Statistic", "Value", "Decision")
    return Table(*pages.words_of("observations_table"), heads, rows, words={1, 2, 4}) if rows else None


DRAWING_OF_OBSERVATIONS = Drawing(
    OBSERVATIONS, place=30, tables=(observations_table,), nothing="no claim could be measured"
)
