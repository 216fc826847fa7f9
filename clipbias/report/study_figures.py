"""The figures of a study that are lines, points and bars: a function each, from a study's arrays to panels."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.explain.results import MAPS, TEXT_KINDS, Average, ModelFacts, StudyResults, TowerDecomposition, present
from clipbias.report import style
from clipbias.report.captions import CaptionedFigure, captioned
from clipbias.report.names import KIND_NAMES, VARIANT_NAMES
from clipbias.report.panels import Layout, level, lines, panels, tidy
from clipbias.report.table import Table, cells
from clipbias.sentences import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAP_NAMES = {
    "relevancy": "relevancy",
    "attention": "last-layer attention",
    "rollout": "attention rollout",
    "legrad": "LeGrad",
    "grad_eclip": "Grad-ECLIP",
    "random": "random order",
}
_MAP_LOOKS: dict[str, Any] = {
    name: {"color": colour, "linestyle": dashes, "label": MAP_NAMES[name]}
    for name, colour, dashes in zip(
        MAP_NAMES,
        (style.RED, style.BLUE, style.GREEN, style.PURPLE, style.ORANGE, style.GREY),
        (*style.LINES, style.SOLID, style.SOLID),
        strict=True,
    )
}
_KIND_LOOKS: dict[str, Any] = {
    kind: {"color": style.COLOURS[place], "marker": "osD^vP"[place], "ms": 3.5, "label": KIND_NAMES[kind]}
    for place, kind in enumerate(TEXT_KINDS)
}
_DASHED: dict[str, Any] = {"color": style.TUNED, "linestyle": style.DASHED}
_SERIES: dict[str, Any] = {
    "prompt_mass": {"color": style.TUNED, "label": "mean over queries"},
    "pooled_mass": {**_DASHED, "label": "query that is pooled"},
    "norm_share": {"color": style.TUNED, "marker": "o", "ms": 3, "label": "size"},
    "constancy": {"color": style.TUNED, "marker": "s", "ms": 3, "label": "constant token by token"},
    "bias_likeness": {**_DASHED, "marker": "s", "ms": 3, "label": "constant as one vector"},
}
_PANELS = {
    "prompt_mass": "a  mass on prompts",
    "pooled_mass": "a  mass on prompts",
    "norm_share": "b  relative size",
    "constancy": "c  constancy",
    "bias_likeness": "c  constancy",
}
_COSINE = "d  cosine to a bias"
_COSINES = "bias_cosine/"
_QUANTITIES = {
    "distance": "distance (pixels)",
    "entropy": "entropy, all queries (nats)",
    "cls_entropy": "entropy, [cls] query (nats)",
}
_FIRST = {"positive": "most", "negative": "least"}


def averages(average: Average, *axes: str, labels: Mapping[str, object]) -> pd.DataFrame:
    """An average with its interval as a frame; `labels` as in `tidy`."""
    return tidy(average.mean, average.standard_error, axes, labels)


def joined(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """All frames as one."""
    there = [frame for frame in frames if len(frame)]
    return pd.concat(there, ignore_index=True) if there else pd.DataFrame()


def counts_of(labels: Mapping[str, str], counts: Mapping[str, int]) -> str:
    """`IVLP: 27 images; Bias tuning: 24 images`, of labels and counts by key."""
    return "; ".join(f"{labels[key]}: {counted(count, 'image')}" for key, count in counts.items())


def labels_of(models: Iterable[ModelFacts]) -> dict[str, str]:
    """Labels by key."""
    return {model.key: model.label for model in models}


def decomposition_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 1: what prompts take from the input tokens in every layer, how large what they add is, and how constant."""
    labels = labels_of(study.models)
    looks = dict(_SERIES)
    frames = []
    counts = []
    for key, decomposition in present(study.decomposition).items():
        for tower, result in decomposition.towers.items():
            row = f"{labels[key]}, {tower}"
            counts.append(f"{row}: {counted(result.count, 'image' if tower == 'vision' else 'class')}")
            for number, bias in enumerate(sorted(result.bias_cosine)):
                label = f"cosine to {labels.get(bias, bias)}"
                colour = style.COLOURS[2 + number]
                looks[f"{_COSINES}{bias}"] = {"color": colour, "marker": "D", "ms": 3, "label": label}
            place = {"model": key, "tower": tower, "row": row, "depth": result.depth}
            frames.append(_decomposition_frame(result, place))
    frame = joined(frames)
    if frame.empty:
        return None

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        lines(axes, part, x="layer", hue="series", looks=looks, dots=True)
        panel = part["panel"].iloc[0]
        last = part["layer"].max()
        depth = part["depth"].iloc[0]
        low = min(0.0, float(part["value"].min()))
        if panel == _COSINE:
            low = -1.0
            level(axes, 0)
        elif panel == _PANELS["constancy"]:
            if depth < last:
                axes.axvspan(depth + 0.5, last + 0.5, color=style.GREY, alpha=0.12, lw=0)
        else:
            level(axes, 0.5)
        axes.set_ylim(1.03 * low, 1.03)

    figure = panels(frame, draw, by=("row", "panel"), layout=Layout(x_label="layer", share_x=False, share_y=False))
    return captioned("fig1_decomposition", figure, frame.drop(columns="row"), counts="; ".join(counts))


def _decomposition_frame(tower: TowerDecomposition, common: Mapping[str, object]) -> pd.DataFrame:
    """A row for each number of a tower, with its `panel` and `series`, and `common` columns."""

    def place(series: str) -> dict[str, object]:
        return {**common, "panel": _PANELS.get(series, _COSINE), "series": series}

    frames = [averages(tower.prompt_mass, "layer", "head", labels=place("prompt_mass"))]
    if tower.pooled_mass is not None:
        frames.append(averages(tower.pooled_mass, "layer", "head", labels=place("pooled_mass")))
    frames += [
        averages(tower.norm_share, "layer", labels=place("norm_share")),
        tidy(tower.constancy, None, ("layer",), place("constancy")),
        tidy(tower.bias_likeness, None, ("layer",), place("bias_likeness")),
    ]
    for bias in sorted(tower.bias_cosine):
        frames.append(tidy(tower.bias_cosine[bias], None, ("layer",), place(f"{_COSINES}{bias}")))
    return joined(frames)


def text_attention_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 4: the EOS row's attention by kind of token."""
    results = present(study.text_attention)
    frame = joined(
        averages(result.shares, "layer", "head", "kind", labels={"model": key}) for key, result in results.items()
    )
    if frame.empty:
        return None
    frame["kind"] = frame["kind"].map(lambda number: TEXT_KINDS[number - 1])
    used = frame[frame.groupby(["model", "kind"])["value"].transform("max") > 0]

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        lines(axes, part, x="layer", hue="kind", looks=_KIND_LOOKS)
        axes.set_ylim(-0.02, 1.02)

    labels = labels_of(study.models)
    figure = panels(
        used,
        draw,
        by=("", "model"),
        layout=Layout(wrap=4, names={"": "", **labels}, x_label="layer", y_label="share of attention", share_y=True),
    )
    return captioned(
        "fig4_text_attention",
        figure,
        frame,
        counts=counted(max(result.count for result in results.values()), "class"),
        texts="; ".join(f"{labels[key]} “{result.text}”" for key, result in results.items()),
    )


def vision_attention_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 5: attention distance and entropies, a row for each model and variant."""
    results = present(study.vision_attention)
    labels = labels_of(study.models)
    frames = []
    for key, result in results.items():
        for variant, quantities in result.variants.items():
            place = {"row": f"{labels[key]} {VARIANT_NAMES[variant]}".strip(), "model": key, "variant": variant}
            for quantity, number in quantities.quantities.items():
                frames.append(averages(number, "layer", "head", labels={**place, "quantity": quantity}))
    frame = joined(frames)
    if frame.empty:
        return None
    zero_shot = study.zero_shot.key
    original = frame[frame["model"] == zero_shot]
    clip = study.clip

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        quantity = part["quantity"].iloc[0]
        tuned = part["model"].iloc[0] != zero_shot
        name = "tuned" if tuned else "zero-shot"
        look = {"color": style.TUNED if tuned else style.ZERO_SHOT, "label": f"{name}, mean over heads"}
        lines(axes, part, x="layer", looks={"": look}, dots=True)
        if tuned:
            mean = original[original["quantity"] == quantity].groupby("layer")["value"].mean()
            axes.plot(mean.index, mean, color=style.ZERO_SHOT, linestyle=style.DASHED, lw=1, label="zero-shot's again")
        if quantity != "distance":
            level(axes, math.log(clip.tokens))

    figure = panels(
        frame,
        draw,
        by=("row", "quantity"),
        layout=Layout(names=_QUANTITIES, x_label="layer", size=(2.6, 1.6), share_y="col", bottom=0),
    )
    return captioned(
        "fig5_vision_attention",
        figure,
        frame.drop(columns="row"),
        counts=counted(max(result.count for result in results.values()), "image"),
        dataset=study.dataset.name,
        size=clip.image_size,
        keys=f"{'[cls] and ' if clip.tokens > clip.patches else ''}{clip.patches} patches",
        tokens=clip.tokens,
        uniform=math.log(clip.tokens),
        missing=next((result.no_cls_entropy for result in results.values() if result.no_cls_entropy), ""),
    )


def correlation_figure(study: StudyResults) -> CaptionedFigure | None:
    """The rank correlation of `[cls]` attention and similarity to the prompts by layer."""
    results = present(None if study.similarity is None else study.similarity.models)
    frame = joined(averages(result.rank_correlation, "layer", labels={"model": key}) for key, result in results.items())
    if frame.empty:
        return None

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        level(axes, 0)
        lines(axes, part, x="layer", looks={"": {"color": style.TUNED, "marker": "o"}})
        axes.set_ylim(-1, 1)

    labels = labels_of(study.models)
    figure = panels(
        frame,
        draw,
        by=("", "model"),
        legend=False,
        layout=Layout(wrap=4, share_y=True, names={"": "", **labels}, x_label="layer", y_label="rank correlation"),
    )
    counts = {key: result.count for key, result in results.items()}
    return captioned("fig6_rank_correlation", figure, frame, counts=counts_of(labels, counts))


def faithfulness_figure(study: StudyResults) -> CaptionedFigure | None:
    """Accuracy while patches are removed in the order of each map: lower is better on the left, higher on the right."""
    if study.faithfulness is None:
        return None
    removed = 100 * study.faithfulness.fractions
    results = present(study.faithfulness.models)
    frames = []
    for key, result in results.items():
        for direction, first in _FIRST.items():
            for target in ("predicted", "true"):
                panel = f"{first} relevant first,\nmap of {target} class"
                for kind in MAPS:
                    curve = result.maps[kind][direction][target].accuracy
                    place = {"map": kind, "model": key, "direction": direction, "target": target, "panel": panel}
                    numbers = tidy(100 * np.asarray(curve), None, ("point",), place)
                    frames.append(numbers.assign(point=removed).rename(columns={"point": "removed"}))
    frame = joined(frames)
    if frame.empty:
        return None

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        lines(axes, part, x="removed", hue="map", looks=_MAP_LOOKS)

    labels = labels_of(study.models)
    figure = panels(
        frame,
        draw,
        by=("model", "panel"),
        layout=Layout(bottom=0, names=labels, x_label="patches removed (%)", y_label="accuracy (%)"),
    )
    counts = counts_of(labels, {key: result.count for key, result in results.items()})
    numbers = frame.drop(columns=["panel", "low", "high"])
    return captioned("faithfulness", figure, numbers, dataset=study.dataset.name, counts=counts)


def area_table(study: StudyResults) -> Table | None:
    """The areas under the curves of the perturbation test in percent, a row per model and map."""
    if study.faithfulness is None:
        return None
    labels = labels_of(study.models)
    targets = ("predicted", "true")
    rows = []
    for key, result in present(study.faithfulness.models).items():
        for kind in MAPS:
            curves = result.maps[kind]
            areas = [curves[direction][target].area for direction in _FIRST for target in targets]
            rows.append(cells(labels[key], MAP_NAMES[kind], *(f"{100 * area:.1f}" for area in areas)))
    caption = (
        "Area under each curve in percent. Most relevant first: the smaller, the better the map; least relevant first:"
        " the larger, the better."
    )
    heads = [f"{first.capitalize()} first, {target}" for first in _FIRST.values() for target in targets]
    return Table("", caption, ("Model", "Map", *heads), tuple(rows), words={1}) if rows else None
