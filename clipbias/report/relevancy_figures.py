"""Where the evidence comes from: relevancy of text tokens (Fig. 2), of patches and prompts (Fig. 3), and by group."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.explain.results import GROUPS, TEXT_KINDS, VISION_KINDS
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, captioned
from clipbias.report.panels import bars, lines, panels, points
from clipbias.report.published import dataset_name
from clipbias.report.study_figures import averages, counts_of, joined
from clipbias.report.study_results import KIND_NAMES, StudyResults, counted, file_name, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDES: dict[str, Any] = {
    "zero_shot": {"color": style.ZERO_SHOT, "linestyle": (0, (4, 1.5)), "label": "zero-shot"},
    "tuned": {"color": style.TUNED, "label": "tuned"},
}
_BARS: dict[str, Any] = {
    "zero_shot": {"color": style.ZERO_SHOT, "hatch": "////", "edgecolor": "white"},
    "tuned": {"color": style.TUNED},
}
_KINDS = {"text": TEXT_KINDS[:-1], "vision": VISION_KINDS}
_THINGS = {"text": "text tokens", "vision": "patches and vision prompts"}
_NORMALISED = {
    "sum": "divided by its sum, prompts included",
    "max": "divided by its largest value",
    "minmax": "scaled to 0 … 1",
}
_GROUP_NAMES = {"corrected": "corrected", "both_right": "both right", "all": "all"}
MARKERS = {"corrected": "o", "both_right": "s", "all": "^"}


def relevancy_frame(study: StudyResults, model: Mapping[str, Any], part: str, group: str = "corrected") -> pd.DataFrame:
    """Both models' rows by token and their sums by kind of token; empty without samples.

    Its `panel` is "tokens" (in text without SOS), "prompts" of the vision tower, or "kinds".
    """
    frames = []
    for side in SIDES:
        path, place = f"relevancy/{model['key']}/{group}", {"model": model["key"], "group": group, "side": side}
        tokens = averages(study, f"{path}/{part}/{side}", "index", **place)
        kinds = averages(study, f"{path}/{part}_kinds/{side}", "index", **place)
        if tokens.empty:
            return pd.DataFrame()
        tokens["index"] -= 1
        if part == "text":
            known = study.section("relevancy", model["key"], side).get("index_kinds", ())
            tokens["kind"] = [*known, *[""] * len(tokens)][: len(tokens)]
            tokens = tokens[: 1 + int(np.flatnonzero(tokens["value"]).max(initial=0))].assign(panel="tokens")
        else:
            prompts = tokens["index"] >= study.patches
            tokens["kind"], tokens["panel"] = (
                prompts.map(VISION_KINDS.__getitem__),
                np.where(prompts, "prompts", "tokens"),
            )
        kinds = kinds.assign(kind=[KIND_NAMES.get(name, name) for name in _KINDS[part]][: len(kinds)], panel="kinds")
        frames += [tokens, kinds.assign(index=-1)]
    return joined(frames)


def text_relevancy_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 2: relevancy by token index without SOS, and its sums by kind of token."""
    shown, frame = _of_models(study, "text")
    if frame.empty:
        return None
    names = {model["key"]: label_of(model) for model in shown}
    names |= {"tokens": "by token, without SOS", "kinds": "by kind of token"}
    labels: dict[str, Any] = {"names": names, "y_label": "relevancy", "share_x": False, "share_y": False}
    figure = panels(frame, _draw, by=("model", "panel"), size=(3.2, 1.8), widths=(1.3, 1), **labels)
    return captioned("fig2_text_relevancy", figure, frame, **_facts(study, "text"))


def vision_relevancy_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 3: relevancy by token index, its sums by kind of token, and the patches as maps."""
    shown, frame = _of_models(study, "vision")
    if frame.empty:
        return None
    tokens = frame["panel"] != "kinds"
    maps = joined(frame[(frame["panel"] == "tokens") & (frame["side"] == side)].assign(panel=side) for side in SIDES)

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        if part["panel"].iloc[0] not in SIDES:
            _draw(axes, part)
            if part["panel"].iloc[0] != "kinds":  # prompts on the scale of the patches
                own = frame.loc[tokens & (frame["model"] == part["model"].iloc[0]), ["value", "high"]]
                axes.set_ylim(0, 1.05 * np.nanmax(own))
            return
        top = maps.loc[maps["model"] == part["model"].iloc[0], "value"].max()
        axes.imshow(part["value"].to_numpy().reshape(study.grid), cmap="viridis", vmin=0, vmax=top)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)

    names = {model["key"]: label_of(model) for model in shown}
    names |= {"tokens": "patches by index", "prompts": "prompts", "kinds": "by kind"}
    names |= {"zero_shot": "zero-shot's map", "tuned": "tuned model's"}
    order = {"tokens": 0, "prompts": 1, "kinds": 2, "zero_shot": 3, "tuned": 4}
    laid_out = joined([frame, maps]).sort_values("panel", key=lambda panel: panel.map(order), kind="stable")
    labels: dict[str, Any] = {"names": names, "y_label": "relevancy", "share_x": False, "share_y": False}
    widths = [{"tokens": 1.6, "prompts": 0.6, "kinds": 1.1}.get(name, 0.8) for name in dict.fromkeys(laid_out["panel"])]
    figure = panels(laid_out, draw, by=("model", "panel"), size=(1.85, 2.0), widths=widths, **labels)
    return captioned("fig3_vision_relevancy", figure, frame, **_facts(study, "vision"))


def _draw(axes: "Axes", part: pd.DataFrame) -> None:
    """Lines by token with the prompts shaded, or bars by kind of token."""
    if part["panel"].iloc[0] == "kinds":
        bars(axes, part, category="kind", hue="side", looks=_BARS, text=lambda row: f"{row['value']:.2f}")
        return
    shown = part[part["kind"] != "sos"]  # beside it the others are hard to see; its number is among the kinds
    lines(axes, shown, x="index", hue="side", looks=SIDES)
    for index in shown.loc[shown["kind"].isin(("prompt", "prompts")) & (shown["side"] == "tuned"), "index"]:
        axes.axvspan(index - 0.5, index + 0.5, color=style.TUNED, alpha=0.08, lw=0)
    axes.set_ylim(bottom=0)


def _of_models(study: StudyResults, part: str) -> tuple[list[Mapping[str, Any]], pd.DataFrame]:
    found = {model["key"]: relevancy_frame(study, model, part) for model in study.tuned}
    return [model for model in study.tuned if len(found[model["key"]])], joined(found.values())


def _facts(study: StudyResults, part: str) -> dict[str, str]:
    """What captions of relevancy leave open."""
    asked = [model for model in study.tuned if not study.section("relevancy", model["key"]).get("missing")]
    ways = {str(study.section("relevancy", model["key"]).get("normalisation")) for model in asked}
    return {
        "what": _THINGS[part],
        "counts": counts_of(study, "relevancy", asked, "corrected"),
        "normalised": " or ".join(_NORMALISED.get(way, way) for way in sorted(ways)),
        "text": zero_shot_text(study, asked),
    }


def zero_shot_text(study: StudyResults, models: Sequence[Mapping[str, Any]]) -> str:
    """The text that zero-shot's rows were computed with."""
    texts = {study.section("relevancy", model["key"], "zero_shot").get("text") for model in models}
    return " or ".join(f"“{text}”" for text in sorted(map(str, texts)))


def relevancy_groups_figure(study: StudyResults) -> CaptionedFigure | None:
    """Relevancy by kind of token over corrected images, over the control, and over all."""
    frames, counts, shown = [], [], []
    for model in study.tuned:
        found = [group for group in GROUPS if study.average(f"relevancy/{model['key']}/{group}/order")]
        for group in found:
            for part in _KINDS:
                frame = relevancy_frame(study, model, part, group)
                frames.append(frame[frame["panel"] == "kinds"].assign(panel=_THINGS[part]) if len(frame) else frame)
            for name, label in (("order", "rank correlation"), ("variation", "total variation")):
                place = {"model": model["key"], "group": group, "side": "", "kind": label, "panel": "change of patches"}
                frames.append(averages(study, f"relevancy/{model['key']}/{group}/{name}", "index", **place))
        if found:
            shown.append(model)
            sizes = (f"{_GROUP_NAMES[g]} {counted(study.count('relevancy', model['key'], g), 'image')}" for g in found)
            counts.append(f"{label_of(model)}: {', '.join(sizes)}")
    frame = joined(frames)
    if frame.empty:
        return None
    frame["series"] = frame["group"] + " " + frame["side"]
    sides = {"zero_shot": style.ZERO_SHOT, "tuned": style.TUNED, "": style.BLACK}
    looks: dict[str, Any] = {
        f"{group} {side}": {"color": colour, "marker": MARKERS[group], "ms": 3.5, "label": None}
        for group in GROUPS
        for side, colour in sides.items()
    }
    legend: dict[str, Any] = {
        _GROUP_NAMES[group]: {"color": style.GREY, "marker": marker, "linestyle": ""}
        for group, marker in MARKERS.items()
    }
    legend |= {SIDES[side]["label"]: {"color": sides[side], "linewidth": 3} for side in SIDES}

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        points(axes, part, category="kind", hue="series", looks=looks, step=0.13)

    names = {model["key"]: label_of(model) for model in shown}
    layout: dict[str, Any] = {"size": (2.7, 2.2), "share_x": False, "share_y": False, "legend": legend}
    figure = panels(frame, draw, by=("model", "panel"), names=names, **layout)
    numbers = frame.drop(columns=["series", "index"])
    models = zero_shot_text(study, shown)
    return captioned("relevancy_groups", figure, numbers, counts="; ".join(counts), text=models)


def dataset_figures(studies: Sequence[StudyResults], key: str, label: str) -> list[CaptionedFigure]:
    """Fig. 2 and 3 of one model over several datasets: a panel for each."""
    made = []
    for part, number in (("text", 2), ("vision", 3)):
        frames, texts = [], []
        for study in studies:
            model = next((model for model in study.models if model["key"] == key), None)
            frame = pd.DataFrame() if model is None else relevancy_frame(study, model, part)
            if model is not None and len(frame):
                count = study.count("relevancy", key, "corrected")
                title = f"{dataset_name(study.dataset)} (n = {count})"
                frames.append(frame.assign(dataset=study.dataset, title=title))
                texts.append(zero_shot_text(study, [model]))
        frame = joined(frames)
        if frame.empty:
            continue
        drawn = frame[frame["panel"] != "kinds"].assign(panel="tokens")
        labels: dict[str, Any] = {"x_label": "token index", "y_label": "relevancy"}
        figure = panels(drawn, _draw, by=("", "title"), wrap=3, share_x=False, share_y=False, size=(3.0, 2.0), **labels)
        facts = {"what": _THINGS[part], "label": label, "text": " or ".join(dict.fromkeys(texts))}
        name = f"fig{number}_{part}_relevancy_{file_name(key)}"
        made.append(captioned("dataset_relevancy", figure, frame.drop(columns="title"), name=name, **facts))
    return made
