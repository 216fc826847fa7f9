"""Where the evidence comes from: relevancy of text tokens (Fig. 2), of patches and prompts (Fig. 3), and by group.

Maps over pictures: `[cls]` attention beside likeness to the prompts (Fig. 6), and relevancy on examples.
"""

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
    Similarity,
    SimilarityMaps,
    StudyResults,
    present,
)
from clipbias.report import style
from clipbias.report.captions import CaptionedFigure, captioned, file_name
from clipbias.report.names import KIND_NAMES, dataset_name
from clipbias.report.overlay import Overlay, draw_overlay, draw_text, heat_scale, show_heat, show_picture
from clipbias.report.panels import Layout, bars, lines, panels, points, tidy
from clipbias.report.study_figures import averages, correlation_figure, counts_of, joined, labels_of
from clipbias.sentences import counted
from clipbias.terminal import printable

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


_ROWS = {"zero_shot_cls": "original\n[cls]", "cls": "prompted\n[cls]", "prompts": "prompt\nsimilarity"}
_PICTURES = 4  # per figure: one in four rotations
_ACROSS = 2  # pictures side by side
_SIDE = 0.82  # inches of a map


def similarity_figures(study: StudyResults) -> list[CaptionedFigure]:
    """Fig. 6: a figure per tuned model, and one of the two maps' rank correlation over the dataset."""
    if study.similarity is None:
        return []
    labels = labels_of(study.tuned)
    results = present(study.similarity.models)
    figures = [_maps(study, study.similarity, key, labels[key], maps) for key, maps in results.items()]
    correlation = correlation_figure(study)
    return figures if correlation is None else [*figures, correlation]


def _maps(study: StudyResults, similarity: Similarity, key: str, label: str, result: SimilarityMaps) -> CaptionedFigure:
    images = similarity.images
    rotations = similarity.rotations
    depths = similarity.layers
    assert images is not None and rotations is not None and depths is not None
    maps = {"zero_shot_cls": result.zero_shot_cls, "cls": result.cls, "prompts": result.prompts}
    shown = min(_PICTURES, len(images))
    columns = 1 + len(depths)
    across = min(_ACROSS, shown)
    down = -(-shown // across)
    with style.styled():
        figure = style.new_figure(across * columns * _SIDE + 0.6, down * (len(maps) * _SIDE + 0.3) + 0.6)
        grid = figure.subplots(down * len(maps), across * columns, squeeze=False)
        for axes in grid.ravel():
            axes.set_axis_off()
        for picture in range(shown):
            first = (picture // across * len(maps), picture % across * columns)
            block = grid[first[0] : first[0] + len(maps), first[1] : first[1] + columns]
            show_picture(block[0, 0], images[picture])
            for line, (name, values) in zip(block, maps.items(), strict=True):
                for axes, heat in zip(line[1:], values[picture], strict=True):
                    show_heat(axes, images[picture], heat)
                line[1].text(
                    -0.08, 0.5, _ROWS[name], fontsize=6.5, ha="right", va="center", transform=line[1].transAxes
                )
            titles = [f"input, {int(rotations[picture])}°"] + [f"layer {depth + 1}" for depth in depths]
            for axes, title in zip(block[0], titles, strict=True):
                axes.set_title(title, fontsize=7, fontweight="normal")
        heat_scale(figure, grid)
    size = study.clip.grid
    numbers = joined(
        tidy(
            _by_patch(values[picture, place], size), None, ("row", "column"), {"picture": picture, "map": name}
        ).assign(rotation=int(rotations[picture]), layer=int(depth) + 1)
        for name, values in maps.items()
        for picture in range(len(images))
        for place, depth in enumerate(depths)
    )
    return captioned(
        "fig6_similarity",
        figure,
        numbers.drop(columns=["low", "high"]),
        name=f"fig6_similarity_{file_name(key)}",
        label=label,
        dataset=study.dataset.name,
        shown=shown,
        counts=counted(len(images), "picture"),
    )


def _by_patch(values: np.ndarray, grid: int) -> np.ndarray:
    """Means over the pixels of each patch, of `grid` along a side."""
    side = values.shape[0] // grid
    whole = values[: grid * side, : grid * side]
    return whole.reshape(grid, side, grid, side).mean((1, 3))


def examples_figure(study: StudyResults) -> CaptionedFigure | None:
    """Example pictures with every model's relevancy over patches and text."""
    examples = study.examples
    if examples is None or not len(examples.images):
        return None
    labels = labels_of(study.models)
    classes = study.dataset.class_names
    models = present(examples.models)
    images = examples.images
    frames = []
    with style.styled():
        figure = style.new_figure(2.25 * (1 + len(models)), 2.8 * len(images) + 0.55)
        grid = figure.subplots(2 * len(images), 1 + len(models), squeeze=False, height_ratios=(4.2, 1) * len(images))
        for picture, image in enumerate(images):
            label = int(examples.labels[picture])
            above, below = grid[2 * picture : 2 * picture + 2]
            show_picture(above[0], image)
            above[0].set_title(printable(classes[label]), fontsize=8)
            below[0].set_axis_off()
            for axes, words, (key, maps) in zip(above[1:], below[1:], models.items(), strict=True):
                title = f"{labels[key]} {_prediction(maps.logits[picture], classes, label)}"
                overlay = Overlay(
                    title, maps.vision[picture], study.clip.patches, maps.tokens[picture], maps.text[picture]
                )
                draw_overlay(axes, image, overlay)
                draw_text(words, overlay)
                frames.append(_numbers(overlay).assign(picture=picture, name=examples.names[picture], model=key))
        heat_scale(figure, grid)
    counts = counted(len(images), "picture")
    return captioned("examples", figure, joined(frames), dataset=study.dataset.name, counts=counts)


def _prediction(logits: np.ndarray, classes: Sequence[str], label: int) -> str:
    """A mark whether the prediction is right, the class, and its probability."""
    predicted = int(np.argmax(logits))
    probability = float(1 / np.exp(logits - logits.max()).sum())
    mark = "✓" if predicted == label else "✗"
    return f"{mark}\n{printable(classes[predicted])}, {100 * probability:.0f} %"


def _numbers(overlay: Overlay) -> pd.DataFrame:
    """A row for each patch, prompt and token of the text."""
    text = np.zeros(0) if overlay.text is None else overlay.text[: len(overlay.tokens)]
    rows: list[tuple[str, int, str, float]] = []
    for index, relevancy in enumerate(overlay.vision):
        rows.append(("patch" if index < overlay.patches else "prompt", index, "", relevancy))
    for index, (token, relevancy) in enumerate(zip(overlay.tokens, text, strict=True)):
        rows.append(("text", index, token, relevancy))
    return pd.DataFrame(rows, columns=["part", "index", "token", "relevancy"])
