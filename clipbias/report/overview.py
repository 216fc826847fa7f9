"""Several datasets on one page: accuracies, the verdict's numbers, the paper's relevancy panels, the interventions."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.explain.results import INTERVENTIONS, TEXT_KINDS, VISION_KINDS, load_results
from clipbias.files import write_text
from clipbias.report import page, style
from clipbias.report.causal_figures import INTERVENTION_NAMES, percent, standard_error
from clipbias.report.drawing import Drawing
from clipbias.report.html import FIGURES, REPORT
from clipbias.report.published import dataset_name, ordered_datasets
from clipbias.report.relevancy_figures import SIDES, draw_text_panel, draw_vision_panel
from clipbias.report.study import Study, file_name, label_of

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
    studies: dict[str, Study] = {}
    for folder in map(Path, results_folders):
        study = Study(load_results(folder))
        if study.dataset in studies:
            raise ClipbiasError(f"{folder} and {folders[study.dataset]} both hold {study.dataset}; give one of them.")
        folders[study.dataset], studies[study.dataset] = folder, study
    ordered = [studies[name] for name in ordered_datasets(studies)]
    output = Path(output_folder)
    parts = [
        "<h1>Why it works: overview</h1>",
        f'<p class="lead">{len(ordered)} datasets: {page.escape(", ".join(map(_name, ordered)))}.</p>',
        "<h2>Accuracy</h2>",
        _accuracies(ordered),
        _links(ordered, folders, output),
    ]
    for key, label in _tuned(ordered).items():
        own = [study for study in ordered if _model(study, key)]
        numbers = _verdict_numbers(own, key)
        parts += [f"<h2>{page.escape(label)}</h2>", *([numbers] if numbers else [])]
        parts += [page.saved_figure(drawing, output / FIGURES) for drawing in _drawings(own, key, label)]
    path = output / OVERVIEW
    write_text(path, page.document("Why it works: overview", "\n".join(filter(None, parts))))
    return path


def _name(study: Study) -> str:
    return dataset_name(study.dataset)


def _model(study: Study, key: str) -> Mapping[str, Any] | None:
    return next((model for model in study.models if model["key"] == key), None)


def _tuned(studies: Sequence[Study]) -> dict[str, str]:
    """Every tuned model's key and label, in the order of the studies."""
    return {model["key"]: label_of(model) for study in studies for model in study.tuned}


def _accuracies(studies: Sequence[Study]) -> str:
    labels = {model["key"]: label_of(model) for study in studies for model in study.models}
    rows = []
    for study in studies:
        found = [_model(study, key) for key in labels]
        texts = [f"{percent(model):.1f} ± {standard_error(model):.1f}" if model else "–" for model in found]
        rows.append((_name(study), f"{study.zero_shot['images']:,}", *texts))
    columns = [[percent(model) for study in studies if (model := _model(study, key))] for key in labels]
    means = [f"{np.mean(values):.1f}" if len(values) == len(studies) else "–" for values in columns]
    if len(studies) > 1:
        rows.append(("Average", "", *means))
    caption = (
        "Top-1 accuracy in percent ± one binomial standard error; an average is given where every dataset has"
        " the model."
    )
    return page.table(("Dataset", "Images", *labels.values()), rows, caption=caption)


def _links(studies: Sequence[Study], folders: Mapping[str, Path], output: Path) -> str:
    items = []
    for study in studies:
        folder = folders[study.dataset]
        report = next(filter(Path.is_file, (folder / REPORT, folder / "report" / REPORT)), None)
        if report is not None:
            target = Path(os.path.relpath(report, output)).as_posix()
            items.append(f'<a href="{page.escape(target)}">{page.escape(_name(study))}</a>')
    return f"<p>Reports: {' · '.join(items)}</p>" if items else ""


def _verdict_numbers(studies: Sequence[Study], key: str) -> str:
    """A table of the verdict's numbers, datasets across; empty where no study has a verdict."""
    found = {_name(study): study.section("verdict", key, "numbers") for study in studies}
    found = {name: numbers for name, numbers in found.items() if numbers}
    names = dict.fromkeys(name for numbers in found.values() for name in numbers)
    if not names:
        return ""
    rows = [(name.replace("_", " "), *(_number(numbers.get(name)) for numbers in found.values())) for name in names]
    return page.table(("", *found), rows, caption="The verdict's numbers.")


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) and math.isfinite(value) else "–"


def _drawings(studies: Sequence[Study], key: str, label: str) -> list[Drawing]:
    made = (
        _panels(studies, key, label, "text", draw_text_panel, TEXT_KINDS),
        _panels(studies, key, label, "vision", draw_vision_panel, VISION_KINDS),
        _interventions(studies, key, label),
    )
    return [drawing for drawing in made if drawing]


def _panels(
    studies: Sequence[Study], key: str, label: str, part: str, draw: Callable[..., None], kinds: Sequence[str]
) -> Drawing | None:
    """The paper's Fig. 2 or 3: one panel per dataset."""
    shown = [
        study for study in studies if all(study.average(f"relevancy/{key}/{part}/{side}") is not None for side in SIDES)
    ]
    if not shown:
        return None
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    with style.styled():
        figure = style.new_figure(3.1 * columns, 2.1 * lines + 0.45)
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes, study in zip(grid.ravel(), shown, strict=False):
            draw(axes, study, _model(study, key))
            count = study.count("relevancy", key)
            axes.set_title(f"{_name(study)} (n = {count})" if count is not None else _name(study), loc="left")
        for axes in grid.ravel()[len(shown) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("relevancy")
        for axes in grid[:, 1:].ravel():
            axes.set_ylabel("")
        for axes in grid.ravel():
            if axes.get_legend():
                axes.get_legend().remove()
        # One for all panels, where it covers no line.
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    number, thing = {"text": ("2", "text tokens"), "vision": ("3", "patches and vision prompts")}[part]
    caption = (
        f"{label} in red against zero-shot in blue, one panel per dataset, by token index: mean relevancy for the"
        " true class over the n test images that zero-shot gets wrong and the tuned model right; bands give one"
        " standard error."
    )
    rows: list[tuple[Any, ...]] = []
    for study in shown:
        for side, average in study.averages({side: f"relevancy/{key}/{part}/{side}" for side in SIDES}).items():
            rows += [
                (study.dataset, side, "token", index, mean, average.standard_error[index])
                for index, mean in enumerate(average.mean)
            ]
            sums = study.average(f"relevancy/{key}/{part}_kinds/{side}")
            if sums is not None:
                rows += [
                    (study.dataset, side, "kind", kind, mean, error)
                    for kind, mean, error in zip(kinds, sums.mean, sums.standard_error, strict=False)
                ]
    name = f"fig{number}_{part}_relevancy_{file_name(key)}"
    columns_of_numbers = ("dataset", "side", "level", "token", "mean", "standard_error")
    return Drawing(name, f"Relevancy of {thing}: {label}", caption, figure, columns_of_numbers, tuple(rows))


def _interventions(studies: Sequence[Study], key: str, label: str) -> Drawing | None:
    """Accuracy with one part of the prompts' effect in both towers: one line of dots per dataset."""
    parts = {study.dataset: study.section("interventions", key, "both") for study in studies}
    shown = [study for study in studies if parts[study.dataset]]
    if not shown:
        return None
    looks = (
        (style.RED, "o"),
        (style.ORANGE, "s"),
        (style.BLACK, "P"),
        (style.PURPLE, "v"),
        (style.GREEN, "D"),
        (style.SKY, "^"),
        (style.GREY, "x"),
    )
    rows = []
    with style.styled():
        figure = style.new_figure(7.2, 0.36 * len(shown) + 1.3)
        axes = figure.subplots()
        for (colour, marker), name in zip(looks, INTERVENTIONS, strict=True):
            found = [(line, part) for line, study in enumerate(shown) if (part := parts[study.dataset].get(name))]
            axes.plot(
                [percent(part) for _, part in found],
                [line for line, _ in found],
                marker,
                color=colour,
                label=INTERVENTION_NAMES[name],
            )
            rows += [(shown[line].dataset, name, percent(part), standard_error(part)) for line, part in found]
        zero_shot = [percent(study.zero_shot) for study in shown]
        axes.plot(zero_shot, range(len(shown)), "|", color=style.ZERO_SHOT, markersize=12, label="zero-shot")
        axes.set_yticks(range(len(shown)), [_name(study) for study in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel("accuracy (%)")
        figure.legend(loc="outside lower center", ncols=4, fontsize=7)
    caption = (
        f"{label}: top-1 accuracy when the prompts act only in part, in both towers at once. Each dataset's own"
        " report gives the definitions, the towers apart, and the standard errors."
    )
    columns = ("dataset", "intervention", "accuracy", "standard_error")
    title = f"What is left when one part is taken away: {label}"
    return Drawing(f"interventions_{file_name(key)}", title, caption, figure, columns, tuple(rows))
