"""Where the evidence comes from: relevancy of text tokens (Fig. 2), of patches and prompts (Fig. 3), and by group."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.explain.results import (
    GROUPS,
    TEXT_KINDS,
    VISION_KINDS,
    Average,
    Relevancy,
    RelevancyGroup,
    StudyResults,
    present,
)
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, captioned, file_name
from clipbias.report.names import KIND_NAMES
from clipbias.report.panels import Layout, bars, lines, panels, points
from clipbias.report.published import dataset_name
from clipbias.report.study_figures import averages, counts_of, joined, labels_of
from clipbias.sentences import counted

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
_GROUP_NAMES = {"corrected": "corrected", "both_right": "both right", "all": "all"}
_WIDTHS = {"tokens": 1.6, "prompts": 0.6, "kinds": 1.1}
MARKERS = {"corrected": "o", "both_right": "s", "all": "^"}


def relevancy_frame(
    study: StudyResults, key: str, result: Relevancy, part: str, group: str = "corrected"
) -> pd.DataFrame:
    """Both models' rows by token and their sums by kind of token; empty without samples.

    Its `panel` is "tokens" (in text without SOS), "prompts" of the vision tower, or "kinds".
    """
    averaged = result.groups.get(group)
    if averaged is None:
        return pd.DataFrame()
    frames = []
    for side in SIDES:
        place = {"model": key, "group": group, "side": side}
        rows, sums = _of_side(averaged, part, side)
        tokens = averages(rows, "index", labels=place)
        tokens["index"] -= 1
        if part == "text":
            text = result.zero_shot if side == "zero_shot" else result.tuned
            known = text.index_kinds[: len(tokens)]
            tokens["kind"] = pd.Series(list(known)).reindex(tokens.index, fill_value="")
            tokens = tokens[: 1 + int(np.flatnonzero(tokens["value"]).max(initial=0))].assign(panel="tokens")
        else:
            prompts = tokens["index"] >= study.clip.patches
            tokens["kind"] = prompts.map(VISION_KINDS.__getitem__)
            tokens["panel"] = np.where(prompts, "prompts", "tokens")
        kinds = averages(sums, "index", labels=place)
        kinds = kinds.assign(kind=[KIND_NAMES.get(name, name) for name in _KINDS[part]][: len(kinds)], panel="kinds")
        frames += [tokens, kinds.assign(index=-1)]
    return joined(frames)


def _of_side(group: RelevancyGroup, part: str, side: str) -> tuple[Average, Average]:
    """The row of a model and its sums by kind."""
    rows, sums = (group.text, group.text_kinds) if part == "text" else (group.vision, group.vision_kinds)
    return (rows.zero_shot, sums.zero_shot) if side == "zero_shot" else (rows.tuned, sums.tuned)


def text_relevancy_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 2: relevancy by token index without SOS, and its sums by kind of token."""
    frame = _of_models(study, "text")
    if frame.empty:
        return None
    names = labels_of(study.tuned) | {"tokens": "by token, without SOS", "kinds": "by kind of token"}
    figure = panels(
        frame,
        _draw,
        by=("model", "panel"),
        layout=Layout(size=(3.2, 1.8), widths=(1.3, 1), names=names, y_label="relevancy", share_x=False, share_y=False),
    )
    return captioned("fig2_text_relevancy", figure, frame, **_facts(study, "text"))


def vision_relevancy_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 3: relevancy by token index, its sums by kind of token, and the patches as maps."""
    frame = _of_models(study, "vision")
    if frame.empty:
        return None
    tokens = frame["panel"] != "kinds"
    maps = joined(frame[(frame["panel"] == "tokens") & (frame["side"] == side)].assign(panel=side) for side in SIDES)
    grid = (study.clip.grid, study.clip.grid)

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        model = part["model"].iloc[0]
        if part["panel"].iloc[0] not in SIDES:
            _draw(axes, part)
            if part["panel"].iloc[0] != "kinds":  # prompts on the scale of the patches
                ends = frame.loc[tokens & (frame["model"] == model), ["value", "high"]]
                axes.set_ylim(0, 1.05 * np.nanmax(ends))
            return
        top = maps.loc[maps["model"] == model, "value"].max()
        axes.imshow(part["value"].to_numpy().reshape(grid), cmap="viridis", vmin=0, vmax=top)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)

    names = labels_of(study.tuned) | {"tokens": "patches by index", "prompts": "prompts", "kinds": "by kind"}
    names |= {"zero_shot": "zero-shot's map", "tuned": "tuned model's"}
    order = {"tokens": 0, "prompts": 1, "kinds": 2, "zero_shot": 3, "tuned": 4}
    laid_out = joined([frame, maps]).sort_values("panel", key=lambda panel: panel.map(order), kind="stable")
    figure = panels(
        laid_out,
        draw,
        by=("model", "panel"),
        layout=Layout(
            size=(1.85, 2.0),
            widths=[_WIDTHS.get(name, 0.8) for name in dict.fromkeys(laid_out["panel"])],
            names=names,
            y_label="relevancy",
            share_x=False,
            share_y=False,
        ),
    )
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


def _of_models(study: StudyResults, part: str) -> pd.DataFrame:
    return joined(relevancy_frame(study, key, result, part) for key, result in present(study.relevancy).items())


def _facts(study: StudyResults, part: str) -> dict[str, str]:
    """What captions of relevancy leave open."""
    results = present(study.relevancy)
    counts = {key: result.corrected_count for key, result in results.items()}
    return {
        "what": _THINGS[part],
        "counts": counts_of(labels_of(study.tuned), counts),
        "text": zero_shot_text(results.values()),
    }


def zero_shot_text(results: Iterable[Relevancy]) -> str:
    """The text that zero-shot's rows were computed with."""
    texts = {result.zero_shot.text for result in results}
    return " or ".join(f"“{text}”" for text in sorted(texts))


def relevancy_groups_figure(study: StudyResults) -> CaptionedFigure | None:
    """Relevancy by kind of token over corrected images, over the control, and over all."""
    results = {key: result for key, result in present(study.relevancy).items() if result.groups}
    labels = labels_of(study.tuned)
    frame = joined(_groups_frame(study, key, result) for key, result in results.items())
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

    figure = panels(
        frame,
        draw,
        by=("model", "panel"),
        legend=legend,
        layout=Layout(names=labels, size=(2.7, 2.2), share_x=False, share_y=False),
    )
    counts = "; ".join(f"{labels[key]}: {_group_counts(result)}" for key, result in results.items())
    numbers = frame.drop(columns=["series", "index"])
    return captioned("relevancy_groups", figure, numbers, counts=counts, text=zero_shot_text(results.values()))


def _groups_frame(study: StudyResults, key: str, result: Relevancy) -> pd.DataFrame:
    """Of every group of images the sums by kind, and how far the patches' relevancy moved."""
    frames = []
    for group, averaged in result.groups.items():
        for part in _KINDS:
            frame = relevancy_frame(study, key, result, part, group)
            frames.append(frame[frame["panel"] == "kinds"].assign(panel=_THINGS[part]))
        place = {"model": key, "group": group, "side": "", "panel": "change of patches"}
        frames += [
            averages(averaged.order, "index", labels={"kind": "rank correlation", **place}),
            averages(averaged.variation, "index", labels={"kind": "total variation", **place}),
        ]
    return joined(frames)


def _group_counts(result: Relevancy) -> str:
    return ", ".join(
        f"{_GROUP_NAMES[name]} {counted(averaged.count, 'image')}" for name, averaged in result.groups.items()
    )


def dataset_figures(studies: Sequence[StudyResults], key: str, label: str) -> list[CaptionedFigure]:
    """Fig. 2 and 3 of one model over several datasets: a panel for each."""
    made = []
    results = [(study, result) for study in studies if (result := present(study.relevancy).get(key))]
    for part, number in (("text", 2), ("vision", 3)):
        frames = []
        texts = []
        for study, result in results:
            frame = relevancy_frame(study, key, result, part)
            if len(frame):
                title = f"{dataset_name(study.dataset.name)} (n = {result.corrected_count})"
                frames.append(frame.assign(dataset=study.dataset.name, title=title))
                texts.append(zero_shot_text([result]))
        frame = joined(frames)
        if frame.empty:
            continue
        drawn = frame[frame["panel"] != "kinds"].assign(panel="tokens")
        figure = panels(
            drawn,
            _draw,
            by=("", "title"),
            layout=Layout(
                wrap=3, share_x=False, share_y=False, size=(3.0, 2.0), x_label="token index", y_label="relevancy"
            ),
        )
        made.append(
            captioned(
                "dataset_relevancy",
                figure,
                frame.drop(columns="title"),
                name=f"fig{number}_{part}_relevancy_{file_name(key)}",
                what=_THINGS[part],
                label=label,
                text=" or ".join(dict.fromkeys(texts)),
            )
        )
    return made
