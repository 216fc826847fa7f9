"""Do the maps point at what matters: accuracy when relevant patches are removed."""

from typing import Any

from clipbias.explain.results import MAPS
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.study_results import StudyResults, counted, label_of
from clipbias.report.table import MISSING, Table, cells

MAP_NAMES = {
    "relevancy": "relevancy",
    "attention": "last-layer attention",
    "rollout": "attention rollout",
    "legrad": "LeGrad",
    "grad_eclip": "Grad-ECLIP",
    "random": "random order",
}
_MAP_LOOK: dict[str, tuple[str, Any, float]] = {
    "relevancy": (style.RED, style.SOLID, 2.0),
    "attention": (style.BLUE, style.DASHED, 1.3),
    "rollout": (style.GREEN, style.DOTTED, 1.5),
    "legrad": (style.PURPLE, style.DASH_DOTTED, 1.3),
    "grad_eclip": (style.ORANGE, style.SOLID, 1.3),
    "random": (style.GREY, style.SOLID, 0.9),
}
_FIRST = {"positive": "most", "negative": "least"}
_PANELS = [(direction, target) for direction in _FIRST for target in ("predicted", "true")]


def faithfulness_figure(study: StudyResults) -> CaptionedFigure | None:
    """Accuracy while patches are removed in the order of each map: lower is better on the left, higher on the right."""
    fractions = study.array("faithfulness/fractions")
    shown = [model for model in study.models if any(study.results.under(f"faithfulness/{model['key']}/"))]
    if fractions is None or not shown:
        return None
    rows: list[tuple[Any, ...]] = []
    with style.styled():
        figure = style.new_figure(8.8, 1.95 * len(shown) + 0.6)
        grid = figure.subplots(len(shown), len(_PANELS), squeeze=False, sharex=True, sharey="row")
        for line, model in zip(grid, shown, strict=True):
            for axes, (direction, target) in zip(line, _PANELS, strict=True):
                for kind in MAPS:
                    curve = study.array(f"faithfulness/{model['key']}/{kind}/{direction}/{target}")
                    if curve is None:
                        continue
                    colour, dashes, width = _MAP_LOOK[kind]
                    look: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": width}
                    axes.plot(100 * fractions, 100 * curve, label=MAP_NAMES[kind], **look)
                    points = zip(fractions, 100 * curve, strict=True)
                    rows += [(model["key"], kind, direction, target, *point) for point in points]
            line[0].set_ylabel(f"{label_of(model)}\naccuracy (%)")
            line[0].set_ylim(bottom=0)
        for axes, (direction, target) in zip(grid[0], _PANELS, strict=True):
            axes.set_title(f"{_FIRST[direction]} relevant first\nmap of the {target} class", fontsize=7.5)
        for axes in grid[-1]:
            axes.set_xlabel("patches removed (%)")
        handles, names = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=7.5)
    counts = {study.count("faithfulness", model["key"]) for model in shown}
    images = " or ".join(counted(count, "image") for count in sorted(counts, key=lambda count: count or 0))
    caption = (
        f"Perturbation test (Chefer et al. 2021) on {images} of {study.dataset}: patches are set to zero before"
        " normalisation in the order of a map, and accuracy is measured. Removing the most relevant first should hurt"
        " at once (lower is better), removing the least relevant first should hurt late (higher is better)."
    )
    columns = ("model", "map", "direction", "target", "fraction", "accuracy")
    title = "Whether the maps point at what matters"
    return CaptionedFigure("faithfulness", title, caption, figure, columns, tuple(rows))


def area_table(study: StudyResults) -> Table | None:
    """The areas under the curves of the perturbation test in percent, a row per model and map."""
    rows = []
    for model in study.models:
        areas = study.section("faithfulness", model["key"], "area")
        for kind in filter(areas.__contains__, MAPS):
            values = [areas[kind].get(direction, {}).get(target) for direction, target in _PANELS]
            texts = [MISSING if value is None else f"{100 * value:.1f}" for value in values]
            rows.append(cells(label_of(model), MAP_NAMES[kind], *texts))
    caption = (
        "Area under each curve in percent. Most relevant first: the smaller, the better the map; least relevant first:"
        " the larger, the better."
    )
    columns = ("Model", "Map", *(f"{_FIRST[direction]} first, {target}" for direction, target in _PANELS))
    return Table("", caption, columns, tuple(rows), words={1}) if rows else None
