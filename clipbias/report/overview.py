"""Several datasets on one page: the verdicts and their mean, accuracies, and relevancy panels."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.explain.results import TEXT_KINDS, VISION_KINDS, load_results
from clipbias.report import pages, style
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.published import dataset_name, ordered_datasets
from clipbias.report.relevancy_figures import SIDES, draw_text_panel, draw_vision_panel, zero_shot_text
from clipbias.report.study_page import FIGURES, REPORT
from clipbias.report.study_results import StudyResults, accuracy_and_error, counted, file_name, label_of
from clipbias.report.summary_figures import summary_figure, summary_table
from clipbias.report.table import MISSING, Table, cells
from clipbias.report.verdict_summary import left_out, sentences, summarize_verdicts

OVERVIEW = "overview.html"


def write_overview(results_folders: Sequence[str | os.PathLike], output_folder: str | os.PathLike) -> Path:
    """Draws one page over the studies of several datasets.

    Args:
      results_folders: one folder per dataset, as `write_report` reads them; where a folder also holds its report, at
        its top or in `report/`, the page links to it.
      output_folder: where to write `overview.html` and `figures/`.

    Returns:
      The path of the page.

    Raises:
      ClipbiasError: no folder was given, two folders hold the same dataset, or results are missing or damaged.
    """
    if not results_folders:
        raise ClipbiasError("an overview needs at least one folder with results; none was given.")
    folders: dict[str, Path] = {}
    studies: dict[str, StudyResults] = {}
    for folder in map(Path, results_folders):
        study = StudyResults(load_results(folder))
        if study.dataset in studies:
            raise ClipbiasError(f"{folder} and {folders[study.dataset]} both hold {study.dataset}; give one of them.")
        folders[study.dataset], studies[study.dataset] = folder, study
    ordered = [studies[name] for name in ordered_datasets(studies)]
    output = Path(output_folder)
    summaries = summarize_verdicts(ordered)
    verdict = summary_figure(summaries, left_out(ordered))
    sections = [
        pages.Section(f"{each.label} by dataset", tables=[summary_table(each)], remarks=sentences(each))
        for each in summaries
    ]
    for key, label in {model["key"]: label_of(model) for study in ordered for model in study.tuned}.items():
        own = [study for study in ordered if _model(study, key)]
        pictures = [pages.save_picture(figure, output / FIGURES) for figure in _figures(own, key, label)]
        sections += [pages.Section(f"Relevancy: {label}", pictures=pictures)] if pictures else []
    return pages.write_page(
        output / OVERVIEW,
        "overview",
        title=f"Why does tuning help on {counted(len(ordered), 'dataset')}?",
        datasets=[_name(study) for study in ordered],
        verdict=pages.save_picture(verdict, output / FIGURES) if verdict else None,
        accuracies=_accuracies(ordered),
        reports=[
            (_name(study), Path(os.path.relpath(report, output)).as_posix())
            for study in ordered
            for report in _report_in(folders[study.dataset])
        ],
        sections=sections,
    )


def _name(study: StudyResults) -> str:
    return dataset_name(study.dataset)


def _model(study: StudyResults, key: str) -> Mapping[str, Any] | None:
    return next((model for model in study.models if model["key"] == key), None)


def _report_in(folder: Path) -> list[Path]:
    return list(filter(Path.is_file, (folder / REPORT, folder / "report" / REPORT)))[:1]


def _accuracies(studies: Sequence[StudyResults]) -> Table:
    labels = {model["key"]: label_of(model) for study in studies for model in study.models}
    rows = []
    means: dict[str, list[float]] = {key: [] for key in labels}
    for study in studies:
        texts = dict.fromkeys(labels, MISSING)
        for model in study.models:
            accuracy, error = accuracy_and_error(model)
            texts[model["key"]] = f"{accuracy:.1f} ± {error:.1f}"
            means[model["key"]].append(accuracy)
        rows.append(cells(_name(study), f"{study.zero_shot['images']:,}", *texts.values()))
    if len(studies) > 1:
        averages = (f"{np.mean(own):.1f}" if len(own) == len(studies) else MISSING for own in means.values())
        rows.append(cells("Average", "", *averages))
    caption = (
        "Top-1 accuracy in percent ± one binomial standard error; an average is given where every dataset has the"
        " model."
    )
    return Table("", caption, ("Dataset", "Images", *labels.values()), tuple(rows))


def _figures(studies: Sequence[StudyResults], key: str, label: str) -> list[CaptionedFigure]:
    made = (
        _panels(studies, key, label, "text", draw_text_panel, TEXT_KINDS),
        _panels(studies, key, label, "vision", draw_vision_panel, VISION_KINDS),
    )
    return [figure for figure in made if figure]


def _panels(
    studies: Sequence[StudyResults], key: str, label: str, part: str, draw: Callable[..., None], kinds: Sequence[str]
) -> CaptionedFigure | None:
    """The paper's Fig. 2 or 3: one panel per dataset."""
    paths = {side: f"relevancy/{key}/corrected/{part}/{side}" for side in SIDES}
    shown = [study for study in studies if len(study.averages(paths)) == len(SIDES)]
    if not shown:
        return None
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    with style.styled():
        figure = style.new_figure(3.1 * columns, 2.1 * lines + 0.45)
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes, study in zip(grid.ravel(), shown, strict=False):
            draw(axes, study, _model(study, key))
            count = study.count("relevancy", key, "corrected")
            axes.set_title(f"{_name(study)} (n = {count})" if count is not None else _name(study), loc="left")
            if axes.get_legend():
                axes.get_legend().remove()
        for axes in grid.ravel()[len(shown) :]:
            axes.set_visible(False)
        for axes in grid[:, 1:].ravel():
            axes.set_ylabel("")
        # One for all panels, where it covers no line.
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    number, thing = {"text": ("2", "text tokens"), "vision": ("3", "patches and vision prompts")}[part]
    texts = [zero_shot_text(study, [model]) for study in shown for model in [_model(study, key)] if model]
    caption = (
        f"{label} in orange against zero-shot in blue, one panel per dataset, by token index: mean relevancy for the"
        " true class over the n test images that zero-shot gets wrong and the tuned model right; bands give one"
        f" standard error. {' '.join(dict.fromkeys(texts))}"
    )
    rows: list[tuple[Any, ...]] = []
    for study in shown:
        for side in SIDES:
            for level, path, names in (("token", part, None), ("kind", f"{part}_kinds", kinds)):
                average = study.average(f"relevancy/{key}/corrected/{path}/{side}")
                if average is not None:
                    numbers = zip(names or range(len(average.mean)), *average, strict=False)
                    rows += [(study.dataset, side, level, *values) for values in numbers]
    name = f"fig{number}_{part}_relevancy_{file_name(key)}"
    columns_of_numbers = ("dataset", "side", "level", "token", "mean", "standard_error")
    return CaptionedFigure(name, f"Relevancy of {thing}: {label}", caption, figure, columns_of_numbers, tuple(rows))
