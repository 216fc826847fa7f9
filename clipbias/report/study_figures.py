"""The figures of a study that are lines, points and bars: a function each, from a study's arrays to panels."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.constants import TOWERS
from clipbias.explain.results import MAPS, TEXT_KINDS
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, captioned
from clipbias.report.panels import level, lines, panels, tidy
from clipbias.report.study_results import KIND_NAMES, VARIANT_NAMES, StudyResults, counted, label_of

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
    "readout_mass": {**_DASHED, "label": "query that is read out"},
    "norm_share": {"color": style.TUNED, "marker": "o", "ms": 3, "label": "size"},
    "constancy": {"color": style.TUNED, "marker": "s", "ms": 3, "label": "constant token by token"},
    "bias_likeness": {**_DASHED, "marker": "s", "ms": 3, "label": "constant as one vector"},
}
_PANELS = {
    "prompt_mass": "a  mass on prompts",
    "readout_mass": "a  mass on prompts",
    "norm_share": "b  relative size",
    "constancy": "c  constancy",
    "bias_likeness": "c  constancy",
}
_COSINE = "d  cosine to a bias"
_QUANTITIES = {
    "distance": "distance (pixels)",
    "entropy": "entropy, all queries (nats)",
    "cls_entropy": "entropy, [cls] query (nats)",
}
_FIRST = {"positive": "most", "negative": "least"}


def averages(study: StudyResults, name: str, *axes: str, **labels: Any) -> pd.DataFrame:
    """An average with its interval as a frame, empty where it was not computed."""
    found = study.average(name)
    return pd.DataFrame() if found is None else tidy(found.mean, found.standard_error, axes, **labels)


def joined(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """All frames as one."""
    there = [frame for frame in frames if len(frame)]
    return pd.concat(there, ignore_index=True) if there else pd.DataFrame()


def counts_of(study: StudyResults, section: str, models: Iterable[Mapping[str, Any]], *path: str) -> str:
    """`IVLP: 27 images; Bias tuning: 24 images`."""
    return "; ".join(f"{label_of(model)}: {_images(study, section, model['key'], *path)}" for model in models)


def _images(study: StudyResults, *path: str) -> str:
    return counted(study.count(*path), "image")


def decomposition_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 1: what prompts take from the input tokens in every layer, how large what they add is, and how constant."""
    labels = {model["key"]: label_of(model) for model in study.models}
    looks, frames, counts = dict(_SERIES), [], []
    for model in study.tuned:
        for tower in TOWERS:
            path, row = f"decomposition/{model['key']}/{tower}", f"{label_of(model)}, {tower}"
            if study.average(f"{path}/prompt_mass") is None:
                continue
            thing = "image" if tower == "vision" else "class"
            counts.append(f"{row}: {counted(study.count('decomposition', model['key'], tower), thing)}")
            common = {"model": model["key"], "tower": tower, "row": row, "depth": model[f"{tower}_depth"]}
            cosines = sorted(name.removeprefix(f"{path}/") for name in study.results.under(f"{path}/bias_cosine/"))
            for number, name in enumerate(cosines):
                label = f"cosine to {labels.get(name.partition('/')[2], name)}"
                looks[name] = {"color": style.COLOURS[2 + number], "marker": "D", "ms": 3, "label": label}
            for name in (*_PANELS, *cosines):
                place = common | {"panel": _PANELS.get(name, _COSINE), "series": name}
                if name in ("prompt_mass", "readout_mass"):
                    frames.append(averages(study, f"{path}/{name}", "layer", "head", **place))
                elif name == "norm_share":
                    frames.append(averages(study, f"{path}/{name}", "layer", **place))
                elif (values := study.array(f"{path}/{name}")) is not None:
                    frames.append(tidy(values, study.array(f"{path}/error/{name}"), ("layer",), **place))
    frame = joined(frames)
    if frame.empty:
        return None

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        lines(axes, part, x="layer", hue="series", looks=looks, dots=True)
        panel, last, depth = part["panel"].iloc[0], part["layer"].max(), part["depth"].iloc[0]
        low, high = min(0.0, float(part["value"].min())), 1.0
        if panel == _COSINE:
            low = -1.0
            level(axes, 0)
        elif panel == _PANELS["constancy"]:
            if depth < last:
                axes.axvspan(depth + 0.5, last + 0.5, color=style.GREY, alpha=0.12, lw=0)
        else:
            level(axes, 0.5)
        axes.set_ylim(1.03 * low, 1.03 * high)

    figure = panels(frame, draw, by=("row", "panel"), x_label="layer", share_x=False, share_y=False)
    return captioned("fig1_decomposition", figure, frame.drop(columns="row"), counts="; ".join(counts))


def text_attention_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 4: what share of the EOS token's attention goes to each kind of token, layer by layer."""
    found = {
        key: averages(study, f"text_attention/{key}", "layer", "head", "kind", model=key)
        for key in (model["key"] for model in study.models)
    }
    shown = [model for model in study.models if len(found[model["key"]])]
    frame = joined(found.values())
    if frame.empty:
        return None
    frame["kind"] = frame["kind"].map(lambda number: TEXT_KINDS[number - 1])
    used = frame[frame.groupby(["model", "kind"])["value"].transform("max") > 0]

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        lines(axes, part, x="layer", hue="kind", looks=_KIND_LOOKS)
        axes.set_ylim(-0.02, 1.02)

    sections = {label_of(model): study.section("text_attention", model["key"]) for model in shown}
    ways = {about.get("reduction", "sum") for about in sections.values()}
    figure = panels(
        used,
        draw,
        by=("", "model"),
        wrap=4,
        names={"": "", **{model["key"]: label_of(model) for model in shown}},
        x_label="layer",
        y_label="share of attention",
        share_y=True,
    )
    return captioned(
        "fig4_text_attention",
        figure,
        frame,
        added=" or ".join({"sum": "summed", "mean": "averaged"}[way] for way in sorted(ways)),
        counts=counted(study.largest_count("text_attention", shown), "class"),
        texts="; ".join(f"{label} “{about.get('text')}”" for label, about in sections.items()),
    )


def vision_attention_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 5: attention distance and entropies, a row for each model and variant."""
    frame = joined(
        averages(
            study,
            f"vision_attention/{model['key']}/{variant}/{quantity}",
            *("layer", "head"),
            **{"row": f"{label_of(model)} {name}".strip(), "model": model["key"], "variant": variant},
            quantity=quantity,
        )
        for model in study.models
        for variant, name in VARIANT_NAMES.items()
        for quantity in _QUANTITIES
    )
    if frame.empty:
        return None
    original = frame[frame["model"] == study.zero_shot["key"]]

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        model, quantity = part["model"].iloc[0], part["quantity"].iloc[0]
        tuned = model != study.zero_shot["key"]
        name = "tuned" if tuned else "zero-shot"
        look = {"color": style.TUNED if tuned else style.ZERO_SHOT, "label": f"{name}, mean over heads"}
        lines(axes, part, x="layer", looks={"": look}, dots=True)
        if tuned:
            mean = original[original["quantity"] == quantity].groupby("layer")["value"].mean()
            axes.plot(mean.index, mean, color=style.ZERO_SHOT, linestyle=style.DASHED, lw=1, label="zero-shot's again")
        if quantity != "distance":
            level(axes, math.log(study.tokens))

    layout: dict[str, Any] = {"size": (2.6, 1.6), "share_y": "col", "bottom": 0}
    figure = panels(frame, draw, by=("row", "quantity"), names=_QUANTITIES, x_label="layer", **layout)
    return captioned(
        "fig5_vision_attention",
        figure,
        frame.drop(columns="row"),
        counts=counted(study.largest_count("vision_attention", study.models), "image"),
        dataset=study.dataset,
        size=study.scalars["clip"]["image_size"],
        keys=f"{'[cls] and ' if study.tokens > study.patches else ''}{study.patches} patches",
        tokens=study.tokens,
        uniform=math.log(study.tokens),
        missing=study.scalars["vision_attention"][study.zero_shot["key"]].get("no_cls_entropy", ""),
    )


def correlation_figure(study: StudyResults) -> CaptionedFigure | None:
    """The rank correlation of `[cls]` attention and similarity to the prompts by layer."""
    frame = joined(
        averages(study, f"similarity/{model['key']}/rank_correlation", "layer", model=model["key"])
        for model in study.tuned
    )
    if frame.empty:
        return None

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        level(axes, 0)
        lines(axes, part, x="layer", looks={"": {"color": style.TUNED, "marker": "o"}})
        axes.set_ylim(-1, 1)

    shown = [model for model in study.tuned if (frame["model"] == model["key"]).any()]
    names = {"": "", **{model["key"]: label_of(model) for model in shown}}
    labels: dict[str, Any] = {"names": names, "x_label": "layer", "y_label": "rank correlation"}
    figure = panels(frame, draw, by=("", "model"), wrap=4, share_y=True, legend=False, **labels)
    return captioned("fig6_rank_correlation", figure, frame, counts=counts_of(study, "similarity", shown))


def faithfulness_figure(study: StudyResults) -> CaptionedFigure | None:
    """Accuracy while patches are removed in the order of each map: lower is better on the left, higher on the right."""
    fractions = study.array("faithfulness/fractions")
    frames = []
    for model in study.models:
        for direction, first in _FIRST.items():
            for target in ("predicted", "true"):
                place = {"model": model["key"], "direction": direction, "target": target}
                place["panel"] = f"{first} relevant first,\nmap of {target} class"
                for kind in MAPS:
                    curve = study.array(f"faithfulness/{model['key']}/{kind}/{direction}/{target}")
                    if curve is not None and fractions is not None:
                        numbers = tidy(100 * np.asarray(curve), None, ("point",), map=kind, **place)
                        frames.append(numbers.assign(point=100 * fractions).rename(columns={"point": "removed"}))
    frame = joined(frames)
    if frame.empty:
        return None

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        lines(axes, part, x="removed", hue="map", looks=_MAP_LOOKS)

    shown = [model for model in study.models if (frame["model"] == model["key"]).any()]
    names = {model["key"]: label_of(model) for model in shown}
    labels: dict[str, Any] = {"names": names, "x_label": "patches removed (%)", "y_label": "accuracy (%)"}
    figure = panels(frame, draw, by=("model", "panel"), bottom=0, **labels)
    counts = counts_of(study, "faithfulness", shown)
    numbers = frame.drop(columns=["panel", "low", "high"])
    return captioned("faithfulness", figure, numbers, dataset=study.dataset, counts=counts)
