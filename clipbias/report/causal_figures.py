"""Tests by doing: accuracy when a part of the prompts' effect is removed, and when relevant patches are."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipbias.explain.results import INTERVENTIONS, MAPS
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.study_results import StudyResults, accuracy_and_error, counted, label_of
from clipbias.report.table import MISSING, Table, cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INTERVENTION_NAMES = {
    "full": "everything",
    "values_only": "prompts' values only",
    "frozen": "values, CLIP's attention",
    "reweighting_only": "re-weighting only",
    "mean_per_token": "dataset mean, per token",
    "mean": "dataset mean, one vector",
    "none": "neither",
}
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
_TOWER_NAMES = {"both": "both towers", "vision": "vision tower", "text": "text tower"}
_FIRST = {"positive": "most", "negative": "least"}
_PANELS = [(direction, target) for direction in _FIRST for target in ("predicted", "true")]


def interventions_figure(study: StudyResults) -> CaptionedFigure | None:
    """Accuracy with only one part of what the prompts do, one row per tuned model, one panel per tower."""
    section = study.section("interventions")
    shown = [model for model in study.tuned if model["key"] in section]
    if not shown:
        return None
    rows: list[tuple[Any, ...]] = []
    towers = [name for name in _TOWER_NAMES if any(name in section[model["key"]] for model in shown)]
    with style.styled():
        figure = style.new_figure(2.6 + 2.15 * len(towers), 2.15 * len(shown) + 0.3)
        grid = figure.subplots(len(shown), len(towers), squeeze=False, sharex=True, sharey=True)
        for line, model in zip(grid, shown, strict=True):
            for axes, tower in zip(line, towers, strict=True):
                parts = section[model["key"]].get(tower)
                if parts is None:
                    axes.set_axis_off()
                    continue
                rows += [(model["key"], tower, *numbers) for numbers in _bars(axes, parts)]
                axes.axvline(
                    accuracy_and_error(study.zero_shot)[0],
                    color=style.ZERO_SHOT,
                    linestyle=style.DASHED,
                    linewidth=1.1,
                )
                axes.set_title(f"{label_of(model)}: {_TOWER_NAMES[tower]}", loc="left", fontsize=8)
        grid[0][0].set_yticks(range(len(INTERVENTIONS)), [INTERVENTION_NAMES[name] for name in INTERVENTIONS])
        grid[0][0].set(xlim=(0, 108), ylim=(len(INTERVENTIONS) - 0.4, -0.6))
        for axes in grid[-1]:
            axes.set_xlabel("accuracy (%)")
    caption = (
        f"Top-1 accuracy over {counted(rows[0][-1], 'image')} of {study.dataset} when the prompts act only in part, in"
        " the named tower; bars give one binomial standard error, the dashed blue line is zero-shot. In each layer"
        " prompts scale the part r that comes from the input tokens and add a part p of their own, (1 − m) r + p"
        " (everything). Prompts' values only: r + p. Values, CLIP's attention: the same, with the attention that the"
        " unprompted model has for the same sample. Re-weighting only: (1 − m) r. Dataset mean: p is replaced by its"
        " average over the samples, for each token or as one vector for all tokens of a layer, which is a bias."
        " Neither: r."
    )
    columns = ("model", "tower", "intervention", "accuracy", "standard_error", "images")
    title = "What is left when one part is taken away"
    return CaptionedFigure("interventions", title, caption, figure, columns, tuple(rows))


def _bars(axes: "Axes", parts: Mapping[str, Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Draws one bar per intervention and returns their numbers."""
    rows = []
    for position, name in enumerate(INTERVENTIONS):
        if name not in parts:
            continue
        value, error = accuracy_and_error(parts[name])
        colour = {"full": style.TUNED, "none": style.GREY}.get(name, style.ORANGE)
        axes.barh(position, value, xerr=error, height=0.66, color=colour, error_kw={"elinewidth": 0.8, "capsize": 1.8})
        axes.text(value + error + 1.5, position, f"{value:.1f}", va="center", fontsize=6.5)
        rows.append((name, value, error, parts[name]["images"]))
    axes.grid(axis="y", visible=False)
    return rows


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
    title = "Do the maps point at what matters?"
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
