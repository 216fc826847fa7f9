"""What tokens attend to: the EOS token by kind (Fig. 4), and how far and how evenly patches look (Fig. 5)."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from clipbias.explain.results import TEXT_KINDS
from clipbias.report import style
from clipbias.report.drawing import Drawing
from clipbias.report.study import KIND_NAMES, VARIANT_NAMES, Average, Study, counted, label_of, layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUANTITIES = {
    "distance": "attention distance\n(pixels)",
    "entropy": "entropy, all queries\n(nats)",
    "cls_entropy": "entropy, [cls] query\n(nats)",
}


def text_attention(study: Study) -> Drawing | None:
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
                _boxes(axes, shares, colour)
            line[0].set_ylabel(f"{label_of(model)}\nshare of attention")
        for axes, kind in zip(grid[0], TEXT_KINDS, strict=True):
            axes.set_title(KIND_NAMES[kind])
        for axes in grid[-1]:
            axes.set_xlabel("layer")
            axes.set_ylim(bottom=0)
    counts = {study.count("text_attention", model["key"]) for model in shown}
    ways = {study.section("text_attention", model["key"]).get("reduction", "sum") for model in shown}
    added = " or ".join({"sum": "summed", "mean": "averaged"}[way] for way in sorted(ways))
    caption = (
        "Attention of the EOS token in the text tower (row EOS of the attention matrix) by kind of token:"
        f" {added} over the tokens of a kind, then averaged over {counted(max(counts, key=_number), 'class')}."
        " Each box shows the heads of one layer: median, quartiles, and whiskers to 1.5 times the quartile"
        " distance; each dot is one head. Original CLIP in blue, tuned models in red; “prompts” are the context"
        " words “a photo of a” where a model learns no text prompts."
    )
    if ways == {"sum"}:
        caption += " The five shares of a head sum to 1."
    rows = [
        (
            model["key"],
            layer + 1,
            head + 1,
            kind,
            average.mean[layer, head, index],
            average.standard_error[layer, head, index],
        )
        for model in shown
        for average in [found[model["key"]]]
        for layer, head in np.ndindex(average.mean.shape[:2])
        for index, kind in enumerate(TEXT_KINDS)
    ]
    columns = ("model", "layer", "head", "kind", "mean", "standard_error")
    return Drawing("fig4_text_attention", "Attention of the EOS token", caption, figure, columns, tuple(rows))


def vision_attention(study: Study) -> Drawing | None:
    """Fig. 5: attention distance above, entropy below, one dot per head; columns are models and variants."""
    shown = [
        (model, variant)
        for model in study.models
        for variant in VARIANT_NAMES
        if study.average(f"vision_attention/{model['key']}/{variant}/distance") is not None
    ]
    if not shown:
        return None
    with style.styled():
        figure = style.new_figure(1.0 + 1.85 * len(shown), 5.6)
        grid = figure.subplots(len(_QUANTITIES), len(shown), squeeze=False, sharex=True, sharey="row")
        for line, (quantity, name) in zip(grid, _QUANTITIES.items(), strict=True):
            original = _heads(study, study.zero_shot, "clip", quantity)
            for axes, (model, variant) in zip(line, shown, strict=True):
                _dots(axes, _heads(study, model, variant, quantity), original, tuned=model is not study.zero_shot)
            line[0].set_ylabel(name)
            _limit(line[0], study, quantity)
        for axes, (model, variant) in zip(grid[0], shown, strict=True):
            name = VARIANT_NAMES[variant]
            axes.set_title(f"{label_of(model)}\n{name}" if name else f"{label_of(model)}\n")
        for axes in grid[-1]:
            axes.set_xlabel("layer")
    counts = [study.count("vision_attention", model["key"]) for model, _ in shown]
    size = study.scalars["clip"]["image_size"]
    caption = (
        f"Vision tower, mean over {counted(max(counts, key=_number), 'image')} of {study.dataset}; one dot per"
        " head, the line is the layer's mean, and the dashed line repeats zero-shot's for comparison. Distance:"
        f" for each patch query, attention times the distance between patch centres in pixels of the {size}-pixel"
        " input, [cls] dropped and rows not renormalised, mean over queries. Entropy: −Σ a ln a of a row, for"
        " all queries and for the [cls] query; the dotted line is uniform attention over [cls] and"
        f" {study.patches} patches, ln {study.patches + 1} = {math.log(study.patches + 1):.4f}. W/O Prompt:"
        " prompt rows and columns dropped and rows renormalised. W Prompt: prompts stay in the softmax and count"
        " 0 in the distance."
    )
    rows: list[tuple[Any, ...]] = []
    for model, variant in shown:
        for quantity in _QUANTITIES:
            average = _heads(study, model, variant, quantity)
            if average is not None:
                rows += [
                    (model["key"], variant, quantity, layer + 1, head + 1, average.mean[layer, head], error)
                    for (layer, head), error in np.ndenumerate(average.standard_error)
                ]
    columns = ("model", "variant", "quantity", "layer", "head", "mean", "standard_error")
    title = "Attention distance and entropy"
    return Drawing("fig5_vision_attention", title, caption, figure, columns, tuple(rows))


def _number(count: int | None) -> int:
    return -1 if count is None else count


def _heads(study: Study, model: Any, variant: str, quantity: str) -> Average | None:
    return study.average(f"vision_attention/{model['key']}/{variant}/{quantity}")


def _boxes(axes: "Axes", shares: np.ndarray, colour: str) -> None:
    """`shares` [L, H]."""
    depth = layers(len(shares))
    axes.boxplot(
        list(shares),
        positions=depth,
        widths=0.62,
        patch_artist=True,
        showfliers=False,  # every head is drawn as a dot
        boxprops={"facecolor": colour, "alpha": 0.25, "edgecolor": colour, "linewidth": 0.8},
        medianprops={"color": colour, "linewidth": 1.4},
        whiskerprops={"color": colour, "linewidth": 0.8},
        capprops={"color": colour, "linewidth": 0.8},
    )
    for layer, heads in zip(depth, shares, strict=True):
        axes.plot(np.full(len(heads), layer), heads, ".", color=colour, markersize=2.5, alpha=0.7)
    style.layer_ticks(axes, len(shares))


def _dots(axes: "Axes", average: Average | None, original: Average | None, *, tuned: bool) -> None:
    if average is None:
        axes.set_axis_off()
        return
    colour = style.TUNED if tuned else style.ZERO_SHOT
    depth = layers(len(average.mean))
    for head in range(average.mean.shape[1]):
        axes.plot(depth, average.mean[:, head], "o", color=colour, markersize=3, alpha=0.65, markeredgewidth=0)
    axes.plot(depth, average.mean.mean(axis=1), color=colour, linewidth=1.3, label="mean")
    if tuned and original is not None:
        axes.plot(
            layers(len(original.mean)),
            original.mean.mean(axis=1),
            color=style.ZERO_SHOT,
            linewidth=1.1,
            linestyle=(0, (4, 2)),
            label="zero-shot mean",
        )
    style.layer_ticks(axes, len(average.mean))


def _limit(axes: "Axes", study: Study, quantity: str) -> None:
    """The entropy of uniform attention, in every panel of a row."""
    if quantity == "distance":
        axes.set_ylim(bottom=0)
        return
    for panel in axes.get_shared_y_axes().get_siblings(axes):
        panel.axhline(math.log(study.patches + 1), color=style.GREY, linewidth=0.8, linestyle=":")
