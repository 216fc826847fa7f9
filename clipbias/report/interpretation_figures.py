"""Figures of what adapters learned: how long their vectors are, and how they lie to one another."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from clipbias.report import looks, style
from clipbias.report.captioned import CaptionedFigure, captioned
from clipbias.report.names import method_name, ordered_methods
from clipbias.report.panels import lines, panels
from clipbias.report.study_results import file_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KINDS = {"context": "prompts", "prompt": "prompts", "bias": "biases"}

Findings = Mapping[str, Any]


def norm_frame(found: Findings) -> pd.DataFrame:
    """The rows of `norms.csv`, layers and prompts from 1."""
    columns = ["adapter", "method", "tower", "part", "layer", "prompt", "norm", "tokens_norm"]
    methods = {one["name"]: one["method"] for one in found["adapters"]}
    frame = pd.DataFrame([{**row, "method": methods[row["adapter"]]} for row in found["norms"]], columns=columns)
    frame[["layer", "prompt"]] = frame[["layer", "prompt"]].astype("Int64") + 1
    return frame


def norm_figure(found: Findings) -> CaptionedFigure | None:
    """Norms by layer, a panel per tower and kind of vector, a line per method; `None` where nothing has layers."""
    frame = norm_frame(found)
    drawn = frame[frame["part"].isin(_KINDS)].assign(low=float("nan"), high=float("nan"))
    if drawn.empty:
        return None
    drawn["panel"] = drawn["tower"] + ": " + drawn["part"].map(_KINDS)
    drawn["layer"] = drawn["layer"].astype(int)
    line_looks: dict[str, Any] = {}
    for method in ordered_methods(drawn["method"]):
        colour, marker, _ = looks.method_look(method)
        line_looks[method] = {"color": colour, "marker": marker, "label": method_name(method)}
    dotted = {
        method: {"color": look["color"], "linestyle": style.DOTTED, "label": "tokens that they join"}
        for method, look in line_looks.items()
    }

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        lines(axes, part.assign(value=part["norm"]), x="layer", hue="method", looks=line_looks)
        joined = part.dropna(subset="tokens_norm")
        if len(joined):
            lines(axes, joined.assign(value=joined["tokens_norm"].astype(float)), x="layer", hue="method", looks=dotted)
        if (part["norm"] > 0).any():
            style.log_scale(axes)
        style.layer_ticks(axes, found["clip"][f"{part['tower'].iloc[0]}_layers"])

    labels: dict[str, Any] = {"x_label": "layer", "y_label": "Euclidean norm"}
    figure = panels(drawn, draw, by=("", "panel"), size=(2.6, 2.4), share_x=False, share_y=False, wrap=4, **labels)
    return captioned("norms", figure, frame)


def projection_figures(found: Findings) -> list[CaptionedFigure]:
    """PCA of every group of adapters: colours are datasets, markers methods or, with one method, seeds."""
    adapters = {one["name"]: one for one in found["adapters"]}
    return [
        _projection(projection, [adapters[name] for name in projection["adapters"]], number)
        for number, projection in enumerate(found["projections"], start=1)
    ]


def _projection(projection: Findings, members: Sequence[Findings], number: int) -> CaptionedFigure:
    by = "method" if len({one["method"] for one in members}) > 1 else "seed"
    facts = ("name", "dataset", "method", "shots", "seed")
    frame = pd.DataFrame([[one[fact] for fact in facts] for one in members], columns=["adapter", *facts[1:]])
    frame[["pca_1", "pca_2"]] = projection["pca"]
    frame[["explained_1", "explained_2"]] = projection["explained"]
    datasets, kinds = (list(dict.fromkeys(frame[name].astype(str))) for name in ("dataset", by))
    markers = {kind: looks.MARKERS[place % len(looks.MARKERS)] for place, kind in enumerate(kinds)}
    fills = {dataset: _fill(place) for place, dataset in enumerate(datasets)}

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        for _, row in part.iterrows():
            look = fills[str(row["dataset"])]
            axes.plot(row["pca_1"], row["pca_2"], linestyle="", marker=markers[str(row[by])], ms=6, **look)
        axes.margins(0.12)

    legend: dict[str, Any] = {dataset: {**look, "linestyle": "", "marker": "o"} for dataset, look in fills.items()}
    for kind, marker in markers.items() if len(kinds) > 1 else ():
        label = method_name(kind) if by == "method" else f"seed {kind}"
        legend[label] = {"linestyle": "", "marker": marker, "color": style.GREY}
    first, second = (f"{name} direction, {100 * share:.0f} % of variance"
                     for name, share in zip(("first", "second"), projection["explained"], strict=True))  # fmt: skip
    figure = panels(frame, draw, by=("", ""), size=(4.4, 3.2), x_label=first, y_label=second, legend=legend)
    return captioned(
        "projection",
        figure,
        frame,
        name=f"projection_{number}_{file_name(projection['tower'])}",
        methods=", ".join(method_name(method) for method in ordered_methods(frame["method"])),
        tower=projection["tower"],
        count=len(members),
        arrays=projection["arrays"],
        by=by,
        sentence=projection["sentence"],
    )


def _fill(number: int) -> dict[str, Any]:
    """A colour for each of eight datasets, filled; the next eight have the same colours as rings."""
    filled = number // len(style.COLOURS) % 2 == 0
    return {"color": style.COLOURS[number % len(style.COLOURS)], "fillstyle": "full" if filled else "none"}
