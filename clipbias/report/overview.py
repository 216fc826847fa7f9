"""Several datasets on one page: the verdicts side by side, accuracies, and relevancy panels."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.explain.results import StudyResults, load_results
from clipbias.report import pages
from clipbias.report.names import dataset_name, ordered_datasets
from clipbias.report.relevancy_figures import dataset_figures
from clipbias.report.replacement import replacement_figure
from clipbias.report.study_page import FIGURES, REPORT, method_sentences
from clipbias.report.table import MISSING, Table, cells
from clipbias.report.verdict import overview_figure, verdict_table
from clipbias.sentences import counted

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
      ClipbiasError: no folder was given, two folders hold a method on the same dataset, or results are missing or
        damaged.
    """
    if not results_folders:
        raise ClipbiasError("an overview needs at least one folder with results; none was given.")
    studies = load_studies(map(Path, results_folders))
    ordered = list(studies.values())
    output = Path(output_folder)
    verdict = overview_figure(ordered)
    sections = []
    for study in ordered:
        groups = [(method.label, method_sentences(study, method)) for method in study.methods]
        table = verdict_table(study, study.methods)
        sections.append(pages.Section(f"Verdicts on {_name(study)}", tables=[table] if table else [], groups=groups))
    for key, label in {model.key: model.label for study in ordered for model in study.tuned}.items():
        figures = dataset_figures(ordered, key, label)
        pictures = [pages.save_picture(figure, output / FIGURES) for figure in figures]
        sections += [pages.Section(f"Relevancy: {label}", pictures=pictures)] if pictures else []
    if drawn := replacement_figure(ordered):
        sections.append(
            pages.Section(
                "What can stand for each method",
                pictures=[pages.save_picture(drawn, output / FIGURES)],
            )
        )
    return pages.write_page(
        output / OVERVIEW,
        "overview",
        title=f"Why does tuning help on {counted(len(ordered), 'dataset')}?",
        datasets=[_name(study) for study in ordered],
        verdict=pages.save_picture(verdict, output / FIGURES) if verdict else None,
        accuracies=_accuracies(ordered),
        reports=[
            (_name(study), Path(os.path.relpath(report, output)).as_posix())
            for folder, study in studies.items()
            for report in _report_in(folder)
        ],
        sections=sections,
    )


def load_studies(folders: Iterable[Path]) -> dict[Path, StudyResults]:
    """Studies by their folders, in the order in which datasets are shown.

    Raises:
      ClipbiasError: two folders hold the same method on the same dataset, or results are missing or damaged.
    """
    studies: dict[Path, StudyResults] = {}
    holders: dict[tuple[str, str], Path] = {}
    for folder in folders:
        studies[folder] = study = load_results(folder)
        dataset = study.dataset.name
        for name in dict.fromkeys(model.name for model in study.tuned):
            if (holder := holders.setdefault((dataset, name), folder)) != folder:
                raise ClipbiasError(
                    f"{folder} and {holder} both hold {name} on {dataset}; give one of them. Seeds belong into one"
                    " study."
                )
    order = ordered_datasets(study.dataset.name for study in studies.values())
    return dict(sorted(studies.items(), key=lambda item: order.index(item[1].dataset.name)))


def _name(study: StudyResults) -> str:
    return dataset_name(study.dataset.name)


def _report_in(folder: Path) -> list[Path]:
    return list(filter(Path.is_file, (folder / REPORT, folder / "report" / REPORT)))[:1]


def _accuracies(studies: Sequence[StudyResults]) -> Table:
    labels = {model.key: model.label for study in studies for model in study.models}
    rows = []
    accuracies: dict[str, list[float]] = {key: [] for key in labels}
    for study in studies:
        texts = dict.fromkeys(labels, MISSING)
        for model in study.models:
            texts[model.key] = f"{model.accuracy:.1f} ± {model.standard_error:.1f}"
            accuracies[model.key].append(model.accuracy)
        rows.append(cells(_name(study), f"{study.zero_shot.images:,}", *texts.values()))
    if len(studies) > 1:
        means = (f"{np.mean(values):.1f}" if len(values) == len(studies) else MISSING for values in accuracies.values())
        rows.append(cells("Average", "", *means))
    caption = (
        "Top-1 accuracy in percent ± one binomial standard error; an average is given where every dataset has the"
        " model."
    )
    return Table("", caption, ("Dataset", "Images", *labels.values()), tuple(rows))
