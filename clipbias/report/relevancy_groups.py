"""Relevancy over the images that tuning corrected, beside the control and the whole split."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipbias.explain.results import GROUPS, TEXT_KINDS, VISION_KINDS
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.relevancy_figures import COLOURS, SIDE_NAMES, SIDES, zero_shot_text
from clipbias.report.study_results import KIND_NAMES, Average, StudyResults, counted, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUP_NAMES = {"corrected": "corrected", "both_right": "both right", "all": "all"}
MARKERS = {"corrected": "o", "both_right": "s", "all": "^"}
_KINDS = {"text": TEXT_KINDS[:-1], "vision": VISION_KINDS}
_CHANGES = {"order": "rank\ncorrelation", "variation": "total\nvariation"}


def relevancy_groups_figure(study: StudyResults) -> CaptionedFigure | None:
    """What is selected by the decision having flipped and what is not: a row per model, its groups side by side."""
    shown = [model for model in study.tuned if _groups(study, model)]
    if not shown:
        return None
    rows: list[tuple[Any, ...]] = []
    with style.styled():
        figure = style.new_figure(8.6, 2.1 * len(shown) + 0.5)
        grid = figure.subplots(len(shown), 3, squeeze=False, width_ratios=(2, 1, 1))
        for line, model in zip(grid, shown, strict=True):
            for axes, part in zip(line, _KINDS, strict=False):
                rows += _kinds(axes, study, model, part)
            rows += _changes(line[2], study, model)
            line[0].set_ylabel(f"{label_of(model)}\nrelevancy")
        for axes, title in zip(grid[0], ("text tokens", "patches and prompts", "change of patches"), strict=True):
            axes.set_title(title, loc="left")
        figure.legend(handles=_legend(), loc="outside lower center", ncols=5, fontsize=7)
    counts = "; ".join(
        f"{label_of(model)}: "
        + ", ".join(f"{GROUP_NAMES[group]} {counted(_count(study, model, group), 'image')}" for group in GROUPS)
        for model in shown
    )
    caption = (
        "Relevancy for the true class's logit by kind of token, zero-shot in blue and the tuned model in orange, mean"
        " and one standard error over three groups of images: corrected, which zero-shot gets wrong and the tuned model"
        " right, and so are selected by the decision having flipped; both right, the control, which both models get"
        f" right; and all ({counts}). Right: between both models' relevancy of the patches, the rank correlation (1"
        " where the order is the same) and the total variation (0 where nothing has moved)."
        f" {zero_shot_text(study, shown)}"
    )
    columns = ("model", "group", "side", "part", "kind", "mean", "standard_error")
    title = "Relevancy of corrected images, the control, and all"
    return CaptionedFigure("relevancy_groups", title, caption, figure, columns, tuple(rows))


def _count(study: StudyResults, model: Mapping[str, Any], group: str) -> int | None:
    return study.count("relevancy", model["key"], group)


def _groups(study: StudyResults, model: Mapping[str, Any]) -> list[str]:
    return [group for group in GROUPS if study.average(f"relevancy/{model['key']}/{group}/order")]


def _kinds(axes: "Axes", study: StudyResults, model: Mapping[str, Any], part: str) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    places = np.arange(len(_KINDS[part]))
    for group in _groups(study, model):
        for side, offset in zip(SIDES, (-0.05, 0.05), strict=True):
            average = study.average(f"relevancy/{model['key']}/{group}/{part}_kinds/{side}")
            if average is not None:
                _points(axes, places + _offset(group) + offset, average, COLOURS[side], MARKERS[group])
                numbers = zip(_KINDS[part], *average, strict=True)
                rows += [(model["key"], group, side, part, *values) for values in numbers]
    _ticks(axes, [KIND_NAMES.get(kind, kind) for kind in _KINDS[part]])
    return rows


def _changes(axes: "Axes", study: StudyResults, model: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for group in _groups(study, model):
        for place, name in enumerate(_CHANGES):
            average = study.average(f"relevancy/{model['key']}/{group}/{name}")
            if average is not None:
                _points(axes, np.array([place + _offset(group)]), average, style.BLACK, MARKERS[group])
                rows.append((model["key"], group, "", "vision", name, *(float(values[0]) for values in average)))
    _ticks(axes, list(_CHANGES.values()))
    return rows


def _offset(group: str) -> float:
    return 0.27 * (GROUPS.index(group) - 1)


def _points(axes: "Axes", places: np.ndarray, average: Average, colour: str, marker: str) -> None:
    error = np.nan_to_num(average.standard_error)
    look: dict[str, Any] = {"elinewidth": 0.8, "capsize": 1.5, "markersize": 3.5}
    axes.errorbar(places, average.mean, yerr=error, fmt=marker, color=colour, **look)


def _ticks(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names, fontsize=6.5)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(min(0, axes.get_ylim()[0]), None)
    axes.grid(axis="x", visible=False)


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D

    groups = [
        Line2D([], [], color=style.GREY, marker=MARKERS[group], linestyle="", label=GROUP_NAMES[group])
        for group in GROUPS
    ]
    return [*groups, *(Line2D([], [], color=COLOURS[side], linewidth=3, label=SIDE_NAMES[side]) for side in SIDES)]
