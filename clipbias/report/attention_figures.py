"""What tokens attend to: the EOS token by kind (Fig. 4), and how far and how evenly patches look (Fig. 5)."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from clipbias.explain.results import TEXT_KINDS
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.study_results import KIND_NAMES, VARIANT_NAMES, Average, StudyResults, counted, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUANTITIES = {
    "distance": "attention distance\n(pixels)",
    "entropy": "entropy, all queries\n(nats)",
    "cls_entropy": "entropy, [cls] query\n(nats)",
}


def text_attention_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 4: what share of the EOS token's attention goes to each kind of token, a box over the heads per layer."""
    found = study.averages({model["key"]: f"text_attention/{model['key']}" for model in study.models})
    shown = [model for model in study.models if model["key"] in found]
    if not shown:
        return None
    with style.styled():
        figure = style.new_figure(8.6, 1.5 * len(shown) + 0.5)
        grid = figure.subplots(len(shown), len(TEXT_KINDS), squeeze=False, sharex=True, sharey="col")
        for line, model in zip(grid, shown, strict=True):
            colour = style.ZERO_SHOT if model is study.zero_shot else style.TUNED
            for axes, shares in zip(line, np.moveaxis(found[model["key"]].mean, -1, 0), strict=True):
                if shares.any():
                    _boxes(axes, shares, colour)
                else:
                    axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes, fontsize=6.5)
            line[0].set_ylabel(f"{label_of(model)}\nshare of attention")
        for axes, kind in zip(grid[0], TEXT_KINDS, strict=True):
            axes.set_title(KIND_NAMES[kind])
        for axes in grid[-1]:
            axes.set_xlabel("layer")
            axes.set_ylim(bottom=0)
    texts = [f"{label_of(model)} “{study.section('text_attention', model['key']).get('text')}”" for model in shown]
    ways = {study.section("text_attention", model["key"]).get("reduction", "sum") for model in shown}
    added = " or ".join({"sum": "summed", "mean": "averaged"}[way] for way in sorted(ways))
    caption = (
        "Attention of the EOS token in the text tower (row EOS of the attention matrix) by kind of token:"
        f" {added} over the tokens of a kind, then averaged over"
        f" {counted(study.largest_count('text_attention', shown), 'class')}. Each box shows the heads of one layer:"
        " median, quartiles, and whiskers to 1.5 times the quartile distance; each dot is one head. Original CLIP in"
        " blue, tuned models in orange. Prompts are learned tokens, words those of a text that stay frozen:"
        f" {'; '.join(texts)}."
    )
    if ways == {"sum"}:
        caption += " The shares of a head sum to 1."
    rows = [
        (key, layer, head, TEXT_KINDS[kind - 1], mean, error)
        for key, average in found.items()
        for layer, head, kind, mean, error in average.rows()
    ]
    columns = ("model", "layer", "head", "kind", "mean", "standard_error")
    return CaptionedFigure("fig4_text_attention", "Attention of the EOS token", caption, figure, columns, tuple(rows))


def vision_attention_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 5: attention distance above, entropy below, one dot per head; columns are models and variants."""
    shown = [
        (model, variant)
        for model in study.models
        for variant in VARIANT_NAMES
        if _heads(study, model, variant, "distance") is not None
    ]
    if not shown:
        return None
    rows: list[tuple[Any, ...]] = []
    with style.styled():
        figure = style.new_figure(1.0 + 1.85 * len(shown), 5.6)
        grid = figure.subplots(len(_QUANTITIES), len(shown), squeeze=False, sharex=True, sharey="row")
        for line, (quantity, name) in zip(grid, _QUANTITIES.items(), strict=True):
            original = _heads(study, study.zero_shot, "clip", quantity)
            for axes, (model, variant) in zip(line, shown, strict=True):
                average = _heads(study, model, variant, quantity)
                _dots(axes, average, original, tuned=model is not study.zero_shot)
                if quantity != "distance":  # the entropy of uniform attention
                    axes.axhline(math.log(study.patches + 1), color=style.GREY, linewidth=0.8, linestyle=":")
                if average is not None:
                    rows += [(model["key"], variant, quantity, *numbers) for numbers in average.rows()]
            line[0].set_ylabel(name)
        grid[0][0].set_ylim(bottom=0)
        for axes, (model, variant) in zip(grid[0], shown, strict=True):
            axes.set_title(f"{label_of(model)}\n{VARIANT_NAMES[variant]}")
        for axes in grid[-1]:
            axes.set_xlabel("layer")
        figure.legend(handles=_legend(), loc="outside lower center", ncols=5, fontsize=7)
    images = study.largest_count("vision_attention", [model for model, _ in shown])
    size = study.scalars["clip"]["image_size"]
    caption = (
        f"Vision tower, mean over {counted(images, 'image')} of {study.dataset}; one dot per head, the line is the"
        " layer's mean, and the dashed line repeats zero-shot's for comparison. Distance: for each patch query,"
        f" attention times the distance between patch centres in pixels of the {size}-pixel input, [cls] dropped and"
        " rows not renormalised, mean over queries. Entropy: −Σ a ln a of a row, for all queries and for the [cls]"
        f" query; the dotted line is uniform attention over [cls] and {study.patches} patches,"
        f" ln {study.patches + 1} = {math.log(study.patches + 1):.4f}. W/O Prompt: prompt rows and columns dropped and"
        " rows renormalised. W Prompt: prompts stay in the softmax and count 0 in the distance."
    )
    columns = ("model", "variant", "quantity", "layer", "head", "mean", "standard_error")
    # By model, then by quantity, as a reader of the CSV would look for them.
    order = {(model["key"], variant): place for place, (model, variant) in enumerate(shown)}
    rows.sort(key=lambda row: order[row[:2]])
    title = "Attention distance and entropy"
    return CaptionedFigure("fig5_vision_attention", title, caption, figure, columns, tuple(rows))


def _heads(study: StudyResults, model: Mapping[str, Any], variant: str, quantity: str) -> Average | None:
    return study.average(f"vision_attention/{model['key']}/{variant}/{quantity}")


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D

    looks: dict[str, dict[str, Any]] = {
        "a head": {"color": style.GREY, "marker": "o", "linestyle": "", "markersize": 3},
        "zero-shot, mean over heads": {"color": style.ZERO_SHOT},
        "tuned, mean over heads": {"color": style.TUNED},
        "zero-shot's, repeated": {"color": style.ZERO_SHOT, "linestyle": style.DASHED},
        "uniform attention": {"color": style.GREY, "linestyle": ":"},
    }
    return [Line2D([], [], label=label, **look) for label, look in looks.items()]


def _boxes(axes: "Axes", shares: np.ndarray, colour: str) -> None:
    """`shares` [L, H]."""
    thin = {"color": colour, "linewidth": 0.8}
    axes.boxplot(
        list(shares),
        positions=style.layers(len(shares)),
        widths=0.62,
        patch_artist=True,
        showfliers=False,  # every head is drawn as a dot
        boxprops={"facecolor": colour, "alpha": 0.25, "edgecolor": colour, "linewidth": 0.8},
        medianprops={"color": colour, "linewidth": 1.4},
        whiskerprops=thin,
        capprops=thin,
    )
    axes.plot(style.layers(len(shares)), shares, ".", color=colour, markersize=2.5, alpha=0.7)
    style.layer_ticks(axes, len(shares))


def _dots(axes: "Axes", average: Average | None, original: Average | None, *, tuned: bool) -> None:
    if average is None:
        axes.set_axis_off()
        return
    colour = style.TUNED if tuned else style.ZERO_SHOT
    style.head_dots(axes, average.mean, colour)
    style.layer_line(axes, average.mean.mean(axis=1), color=colour, linewidth=1.3)
    if tuned and original is not None:
        mean = original.mean.mean(axis=1)
        style.layer_line(axes, mean, color=style.ZERO_SHOT, linewidth=1.1, linestyle=style.DASHED)
