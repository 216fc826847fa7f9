"""Figures of what adapters learned: how long their vectors are, and how they lie to one another."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipbias.report import looks, style
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.names import method_name, ordered_methods
from clipbias.report.study_results import file_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
NORM_COLUMNS = ("adapter", "method", "tower", "part", "layer", "prompt", "norm", "tokens_norm")

Findings = Mapping[str, Any]


def norm_rows(found: Findings) -> tuple[tuple[Any, ...], ...]:
    """The rows of `norms.csv`, layers and prompts from 1."""
    methods = {one["name"]: one["method"] for one in found["adapters"]}
    return tuple(
        (
            *(row["adapter"], methods[row["adapter"]], row["tower"], row["part"]),
            *(None if row[place] is None else row[place] + 1 for place in ("layer", "prompt")),
            *(row["norm"], row["tokens_norm"]),
        )
        for row in found["norms"]
    )


def norm_figure(found: Findings) -> CaptionedFigure | None:
    """Norms by layer, a panel per tower and kind of vector, a line per method; `None` where nothing has layers."""
    methods = {one["name"]: one["method"] for one in found["adapters"]}
    kinds = {"context": "prompts", "prompt": "prompts", "bias": "biases"}
    panels: dict[tuple[str, str], dict[str, list[Findings]]] = {}
    for row in found["norms"]:
        if row["part"] in kinds:
            panel = panels.setdefault((row["tower"], kinds[row["part"]]), {})
            panel.setdefault(methods[row["adapter"]], []).append(row)
    if not panels:
        return None
    from matplotlib.lines import Line2D

    with style.styled():
        figure = style.new_figure(2.6 * len(panels) + 0.4, 2.9)
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        handles: dict[str, Any] = {}
        for axes, ((tower, kind), rows) in zip(grid, panels.items(), strict=True):
            for method in ordered_methods(rows):
                colour, marker, _ = looks.method_look(method)
                steps, own = _means(rows[method], "norm")
                line = axes.plot(steps, own, color=colour, marker=marker)[0]
                handles.setdefault(method_name(method), line)
                steps, tokens = _means(rows[method], "tokens_norm")
                if steps:
                    axes.plot(steps, tokens, color=colour, linestyle=style.DOTTED)
            axes.set(title=f"{tower}: {kind}", xlabel="layer")
            if any(row["norm"] > 0 for own in rows.values() for row in own):
                style.log_scale(axes)
            style.layer_ticks(axes, found["clip"][f"{tower}_layers"])
        grid[0].set_ylabel("Euclidean norm")
        if any(row["tokens_norm"] is not None for row in found["norms"]):
            handles["tokens that they join"] = Line2D([], [], color=style.GREY, linestyle=style.DOTTED)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6)
    caption = (
        "Euclidean norms of learned prompts (contexts at layer 1) and biases, averaged over prompts and over a method's"
        " adapters. Dotted, where computed: the mean norm of the tokens that they join in the tuned model. Prompts join"
        " the other tokens at the layer's input (at layer 1 before position embeddings in the text tower and before the"
        " pre-LayerNorm in the vision tower); biases join all tokens at the layer's output."
    )
    return CaptionedFigure("norms", "Norms of what was learned", caption, figure, NORM_COLUMNS, norm_rows(found))


def _means(rows: Sequence[Findings], field: str) -> tuple[list[int], list[float]]:
    """Layers from 1, and the mean of a field over the rows of each."""
    values: dict[int, list[float]] = {}
    for row in rows:
        if row[field] is not None:
            values.setdefault(row["layer"] + 1, []).append(row[field])
    return sorted(values), [float(np.mean(values[layer])) for layer in sorted(values)]


def projection_figures(found: Findings) -> list[CaptionedFigure]:
    """PCA and t-SNE of every group of adapters: colours are datasets, markers methods or, with one method, seeds."""
    adapters = {one["name"]: one for one in found["adapters"]}
    return [
        _projection(projection, [adapters[name] for name in projection["adapters"]], number)
        for number, projection in enumerate(found["projections"], start=1)
    ]


def _projection(projection: Findings, members: Sequence[Findings], number: int) -> CaptionedFigure:
    by = "method" if len({one["method"] for one in members}) > 1 else "seed"
    planes = {"PCA": np.asarray(projection["pca"], float)}
    if projection["tsne"] is not None:
        planes["t-SNE"] = np.asarray(projection["tsne"], float)
    datasets = list(dict.fromkeys(str(one["dataset"]) for one in members))
    kinds = list(dict.fromkeys(str(one[by]) for one in members))
    with style.styled():
        figure = style.new_figure(3.1 * len(planes) + 1.6, 3.0)
        grid = figure.subplots(1, len(planes), squeeze=False)[0]
        for axes, (name, points) in zip(grid, planes.items(), strict=True):
            _scatter(axes, points, members, by, datasets, kinds)
            axes.set_title(name)
        shares = [f"{100 * share:.0f} % of variance" for share in projection["explained"]]
        grid[0].set(xlabel=f"first direction, {shares[0]}", ylabel=f"second, {shares[1]}")
        for axes in grid[1:]:
            axes.set(xlabel=f"perplexity {projection['perplexity']:.3g}", xticklabels=[], yticklabels=[])
        _legend(figure, by, datasets, kinds)
    methods = ", ".join(method_name(method) for method in ordered_methods(one["method"] for one in members))
    title = f"{methods}: what was learned in the {projection['tower']} tower"
    caption = (
        f"Each point is one adapter ({len(members)} of them): {projection['arrays']}, flattened to one vector. Colours"
        f" are datasets, markers {by}s. PCA keeps distances as far as a plane can; t-SNE keeps neighbourhoods only, and"
        f" its distances and sizes mean nothing. {projection['sentence']}"
    )
    explained, tsne = projection["explained"], projection["tsne"] or [(None, None)] * len(members)
    rows = tuple(
        (one["name"], one["dataset"], one["method"], one["shots"], one["seed"], *pca, *plane, *explained)
        for one, pca, plane in zip(members, projection["pca"], tsne, strict=True)
    )
    places = ("pca_1", "pca_2", "tsne_1", "tsne_2", "explained_1", "explained_2")
    columns = ("adapter", "dataset", "method", "shots", "seed", *places)
    stem = f"projection_{number}_{file_name(projection['tower'])}"
    return CaptionedFigure(stem, title, caption, figure, columns, rows)


def _colour(number: int) -> tuple[str, bool]:
    """A colour for each of eight datasets, filled; the next eight have the same colours as rings."""
    return style.COLOURS[number % len(style.COLOURS)], number // len(style.COLOURS) % 2 == 0


def _scatter(
    axes: "Axes",
    points: np.ndarray,
    members: Sequence[Findings],
    by: str,
    datasets: Sequence[str],
    kinds: Sequence[str],
) -> None:
    for (x, y), one in zip(points, members, strict=True):
        marker = MARKERS[kinds.index(str(one[by])) % len(MARKERS)]
        colour, filled = _colour(datasets.index(str(one["dataset"])))
        look: dict[str, Any] = {"facecolors": colour if filled else "none", "edgecolors": "white" if filled else colour}
        axes.scatter(x, y, s=38, marker=marker, linewidths=0.7, **look)
    axes.margins(0.18)
    for number, dataset in enumerate(datasets):  # a name at each group, since colour alone is not for everyone
        own = points[[str(one["dataset"]) == dataset for one in members]]
        place = (own[:, 0].mean(), own[:, 1].max())
        offset: dict[str, Any] = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "fontsize": 6.5}
        axes.annotate(dataset, place, color=_colour(number)[0], annotation_clip=False, **offset)


def _legend(figure: Any, by: str, datasets: Sequence[str], kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles: dict[str, Line2D] = {}
    for number, dataset in enumerate(datasets):
        colour, filled = _colour(number)
        fill: Any = "full" if filled else "none"
        handles[dataset] = Line2D([], [], linestyle="", marker="o", color=colour, fillstyle=fill)
    for number, kind in enumerate(kinds if len(kinds) > 1 else ()):
        label = method_name(kind) if by == "method" else f"seed {kind}"
        handles[label] = Line2D([], [], linestyle="", marker=MARKERS[number % len(MARKERS)], color=style.GREY)
    figure.legend(handles.values(), handles.keys(), loc="outside right center")
