"""How prompts enter attention: Eq. 12's two parts, measured (Fig. 1)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.study_results import Average, StudyResults, counted, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOWERS = ("vision", "text")
_TITLES = ("a  mass on prompts", "b  by query", "c  relative size", "d  constancy", "e  cosine to a bias")
_SMALL: dict[str, Any] = {"marker": "o", "markersize": 2.8}


def decomposition_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 1: what prompts take from the input tokens in every layer, how large what they add is, and how constant.

    One row per model with prompts and tower.
    """
    shown = [
        (model, tower)
        for model in study.tuned
        for tower in TOWERS
        if study.average(f"{_path(model, tower)}/prompt_mass") is not None
    ]
    if not shown:
        return None
    with style.styled():
        figure = style.new_figure(9.2, 2.15 * len(shown) + 0.35)
        grid = figure.subplots(len(shown), 5, squeeze=False, width_ratios=(1.25, 1.25, 1, 1, 1))
        for line, (model, tower) in zip(grid, shown, strict=True):
            path = _path(model, tower)
            line[0].set_ylabel(f"{label_of(model)}, {tower}")
            _mass(line[0], study.average(f"{path}/prompt_mass"), study.average(f"{path}/readout_mass"))
            _by_query(line[1], study.average(f"{path}/mass_by_query"))
            _size(line[2], study.average(f"{path}/norm_share"))
            _constancy(line[3], study, path, model[f"{tower}_depth"])
            _cosines(line[4], study, path)
        for axes, title in zip(grid[0], _TITLES, strict=True):
            axes.set_title(title, loc="left", fontsize=8)
        for axes in (grid[-1][0], *grid[-1][2:]):
            axes.set_xlabel("layer")
        figure.legend(handles=_legend(), loc="outside lower center", ncols=3, fontsize=7)
    counts = "; ".join(
        f"{label_of(model)}, {tower}: {counted(study.count('decomposition', model['key'], tower), thing)}"
        for model, tower in shown
        for thing in ["image" if tower == "vision" else "class"]
    )
    caption = (
        "The output of attention is, exactly, a part from the input tokens plus a part from the prompts (Eq. 12);"
        f" {counts}. (a) Attention mass m on the prompts; the input part is 1 − m times attention renormalised over the"
        " inputs, so the paper's ½ (dotted) would be m = 0.5. Dots are heads, mean over input queries; the line is"
        " their mean, the dashed line the mass of the [cls] or EOS query. (b) The same by query, mean over heads. (c)"
        " Norm of the prompt part over the sum of both parts' norms; they are equal at the dotted line. (d)"
        " Share of the prompt part's mean square that its average over samples explains, token by token, and (dashed)"
        " that one vector for all tokens explains, both corrected for what chance adds: a bias would be at 1. Layers"
        " beyond the prompts' depth, where slots hold what the layers before made of them, are shaded. (e) Cosine"
        " between that vector and the learned bias of the same layer. Bars in (c), (d) and (e) give one standard error"
        " over samples; in (d) and (e) it is the jackknife's."
    )
    columns = ("model", "tower", "quantity", "layer", "head", "query", "mean", "standard_error")
    rows = tuple((model["key"], tower, *row) for model, tower in shown for row in _numbers(study, _path(model, tower)))
    title = "What prompts do to attention"
    return CaptionedFigure("fig1_decomposition", title, caption, figure, columns, rows)


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"color": style.TUNED, "markersize": 3}
    return [
        Line2D([], [], marker="o", linestyle="", alpha=0.6, label="a: a head", **look),
        Line2D([], [], label="a: mean over heads and queries; d: token by token", **look),
        Line2D(
            [], [], linestyle=style.DASHED, label="a: the query that is read out; d: one vector for all tokens", **look
        ),
    ]


def _path(model: Mapping[str, Any], tower: str) -> str:
    return f"decomposition/{model['key']}/{tower}"


def _mass(axes: "Axes", mass: Average | None, readout: Average | None) -> None:
    assert mass is not None  # a row is drawn only where it is there
    style.head_dots(axes, mass.mean, style.TUNED)
    style.layer_line(axes, mass.mean.mean(axis=1))
    if readout is not None:
        style.layer_line(axes, readout.mean.mean(axis=1), linestyle=style.DASHED)
    axes.axhline(0.5, color=style.GREY, linewidth=0.8, linestyle=":")
    axes.set_ylim(0, max(0.56, 1.05 * float(mass.mean.max())))


def _by_query(axes: "Axes", mass: Average | None) -> None:
    """A map of layers (down) by queries (across)."""
    if mass is None:
        axes.set_axis_off()
        return
    from matplotlib.ticker import MaxNLocator

    values = mass.mean.mean(axis=1)
    picture = axes.imshow(
        values, aspect="auto", cmap="magma_r", vmin=0, extent=(-0.5, values.shape[1] - 0.5, len(values) + 0.5, 0.5)
    )
    axes.grid(False)
    axes.set_xlabel("query index", fontsize=7)
    axes.set_ylabel("layer", fontsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    bar = axes.figure.colorbar(picture, ax=axes, fraction=0.06, pad=0.03)
    bar.ax.tick_params(labelsize=6, length=2)
    bar.outline.set_linewidth(0.4)


def _size(axes: "Axes", share: Average | None) -> None:
    """A share, not a ratio: where a head looks at prompts only the input part is nearly nothing, and ratios explode."""
    if share is None:
        axes.set_axis_off()
        return
    style.layer_line(axes, share.mean, error=share.standard_error, **_SMALL)
    axes.axhline(0.5, color=style.GREY, linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 1.03)


def _constancy(axes: "Axes", study: StudyResults, path: str, depth: int) -> None:
    looks = {"constancy": style.SOLID, "bias_likeness": style.DASHED}
    found = {name: values for name in looks if (values := study.array(f"{path}/{name}")) is not None}
    for name, values in found.items():
        error = study.array(f"{path}/error/{name}")
        style.layer_line(axes, values, error=error, linestyle=looks[name], **_SMALL)
    count = max(map(len, found.values()), default=0)
    if depth < count:
        axes.axvspan(depth + 0.5, count + 0.5, color=style.GREY, alpha=0.12, lw=0)
    # An estimate of a share that is nearly 0 may lie below it.
    lowest = min((float(np.nanmin(values, initial=0)) for values in found.values()), default=0)
    axes.set_ylim(1.03 * lowest, 1.03)


def _cosines(axes: "Axes", study: StudyResults, path: str) -> None:
    names = sorted(study.results.under(f"{path}/bias_cosine/"))
    labels = {model["key"]: label_of(model) for model in study.models}
    axes.axhline(0, color=style.GREY, linewidth=0.8)
    for name, dashes in zip(names, style.LINES * len(names), strict=False):
        key = name.rsplit("/", 1)[1]
        label = f"with {labels.get(key, key)}"
        error = study.array(f"{path}/error/bias_cosine/{key}")
        style.layer_line(axes, study.present(name), error=error, linestyle=dashes, label=label, **_SMALL)
    axes.set_ylim(-1.03, 1.03)
    if names:
        axes.legend(loc="lower left", fontsize=6.5, handlelength=1.6)
    else:
        nothing = "no bias-tuned model\nto compare with"
        axes.text(0.5, 0.25, nothing, ha="center", transform=axes.transAxes, fontsize=6.5)


def _numbers(study: StudyResults, path: str) -> list[tuple[Any, ...]]:
    """Rows of quantity, layer, head, query, mean and standard error; empty where a quantity has no such place."""
    rows: list[tuple[Any, ...]] = []
    for quantity in ("prompt_mass", "readout_mass", "norm_share"):
        average = study.average(f"{path}/{quantity}")
        for layer, *head, mean, error in average.rows() if average is not None else ():
            rows.append((quantity, layer, *(head or [""]), "", mean, error))
    by_query = study.average(f"{path}/mass_by_query")
    if by_query is not None:  # mean over heads, as drawn
        for (layer, query), mean in np.ndenumerate(by_query.mean.mean(axis=1)):
            rows.append(("mass_by_query", layer + 1, "", query, mean, ""))
    cosines = sorted(name.removeprefix(f"{path}/") for name in study.results.under(f"{path}/bias_cosine/"))
    for quantity in ("constancy", "bias_likeness", *cosines):
        values, errors = (study.array(f"{path}/{name}") for name in (quantity, f"error/{quantity}"))
        for layer, value in enumerate(values if values is not None else (), start=1):
            rows.append((quantity, layer, "", "", value, "" if errors is None else errors[layer - 1]))
    return rows
