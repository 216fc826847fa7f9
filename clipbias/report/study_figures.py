"""Figures of a study, a function each: panels and maps over pictures, with their captions."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clipbias.analysis.attention import DECOMPOSITION, TEXT_ATTENTION, VISION_ATTENTION
from clipbias.analysis.dataset_sections import GROUPS, RELEVANCY, VISION_TYPES, RelevancyGroups
from clipbias.analysis.faithfulness import FAITHFULNESS, MAPS
from clipbias.analysis.pictures import EXAMPLES, SIMILARITY
from clipbias.analysis.results import TEXT_TYPES, StudyResults
from clipbias.report import style
from clipbias.report.drawings import Drawing
from clipbias.report.names import TYPE_NAMES, dataset_name
from clipbias.report.overlay import Overlay, heat_scale, overlay_grid, show_heat, show_picture
from clipbias.report.pages import CaptionedFigure, captioned, file_name, words_of
from clipbias.report.panels import bars, joined, level, lines, panels, points, tidy
from clipbias.report.table import Table
from clipbias.sentences import counted
from clipbias.terminal import printable

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
_TYPE_LOOKS: dict[str, Any] = {
    name: {"color": style.COLOURS[place], "marker": "osD^vP"[place], "ms": 3.5, "label": TYPE_NAMES[name]}
    for place, name in enumerate(TEXT_TYPES)
}
_DASHED: dict[str, Any] = {"color": style.TUNED, "linestyle": style.DASHED}
_SERIES: dict[str, Any] = {
    "prompt_mass": {"color": style.TUNED, "label": "mean over queries"},
    "pooled_mass": {**_DASHED, "label": "query that is pooled"},
    "norm_share": {"color": style.TUNED, "marker": "o", "ms": 3, "label": "size"},
    "constancy": {"color": style.TUNED, "marker": "s", "ms": 3, "label": "constant token by token"},
    "bias_likeness": {**_DASHED, "marker": "s", "ms": 3, "label": "constant as one vector"},
}
_MASS, _SIZE, _CONSTANCY, _COSINE = "a  mass on prompts", "b  relative size", "c  constancy", "d  cosine to a bias"
_VARIANTS = {"clip": "", "without_prompt": " W/O Prompt", "with_prompt": " W Prompt"}
_QUANTITIES = {
    "distance": "distance (pixels)",
    "entropy": "entropy, all queries (nats)",
    "cls_entropy": "entropy, [cls] query (nats)",
}
_FIRST = {"positive": "most", "negative": "least"}
_BY_MODEL: dict[str, Any] = {"by": ("", "model"), "wrap": 4, "x_label": "layer", "share_y": True}


def counts_of(study: StudyResults, counts: Mapping[str, int]) -> str:
    """Writes labels and counts by key: `IVLP: 27 images; Bias tuning: 24 images`."""
    return "; ".join(f"{study.labels[key]}: {counted(count, 'image')}" for key, count in counts.items())


def decomposition_figure(study: StudyResults) -> CaptionedFigure | None:
    """Draws Fig. 1: in every layer the attention to prompts, and the size and constancy of their part of the output."""
    looks = dict(_SERIES)
    frames, counts = [], []
    for key, decomposition in DECOMPOSITION.present(study).items():
        for name, tower in decomposition.towers.items():
            row = f"{study.labels[key]}, {name}"
            counts.append(f"{row}: {counted(tower.count, 'image' if name == 'vision' else 'class')}")
            place = {"model": key, "tower": name, "row": row, "depth": tower.depth}
            frames.append(tidy(tower.prompt_mass, "layer", "head", **place, panel=_MASS, series="prompt_mass"))
            if tower.pooled_mass is not None:
                frames.append(tidy(tower.pooled_mass, "layer", "head", **place, panel=_MASS, series="pooled_mass"))
            frames += [
                tidy(tower.norm_share, "layer", **place, panel=_SIZE, series="norm_share"),
                tidy(tower.constancy, "layer", **place, panel=_CONSTANCY, series="constancy"),
                tidy(tower.bias_likeness, "layer", **place, panel=_CONSTANCY, series="bias_likeness"),
            ]
            # The first two colours are those of zero-shot and of the tuned model.
            for number, bias in enumerate(sorted(tower.bias_cosine)):
                series = f"bias_cosine/{bias}"
                label = f"cosine to {study.labels.get(bias, bias)}"
                looks[series] = {"color": style.COLOURS[2 + number], "marker": "D", "ms": 3, "label": label}
                frames.append(tidy(tower.bias_cosine[bias], "layer", **place, panel=_COSINE, series=series))
    frame = joined(frames)
    if frame.empty:
        return None

    def draw(axes: style.Axes, part: pd.DataFrame) -> None:
        lines(axes, part, x="layer", hue="series", looks=looks, dots=True)
        panel = part["panel"].iloc[0]
        last = part["layer"].max()
        depth = part["depth"].iloc[0]
        # Shares that are corrected for chance may fall below 0.
        low = min(0.0, float(part["value"].min()))
        if panel == _COSINE:
            low = -1.0
            level(axes, 0)
        elif panel == _CONSTANCY:
            if depth < last:
                # Beyond the prompts' depth a slot holds what the layer before made of it, which differs from image to
                # image.
                axes.axvspan(depth + 0.5, last + 0.5, color=style.GREY, alpha=0.12, lw=0)
        else:
            level(axes, 0.5)
        axes.set_ylim(1.03 * low, 1.03)

    figure = panels(frame, draw, by=("row", "panel"), x_label="layer", share_x=False, share_y=False)
    return captioned("fig1_decomposition", figure, frame.drop(columns="row"), counts="; ".join(counts))


DRAWING_OF_DECOMPOSITION = Drawing(
    DECOMPOSITION, place=50, figures=(decomposition_figure,), nothing="no model has prompts"
)


def text_attention_figure(study: StudyResults) -> CaptionedFigure | None:
    """Draws Fig. 4: the EOS row's attention by token type."""
    results = TEXT_ATTENTION.present(study)
    frame = joined(tidy(result.shares, "layer", "head", "type", model=key) for key, result in results.items())
    if frame.empty:
        return None
    # `tidy` numbers types from 1.
    frame["type"] = frame["type"].map(lambda number: TEXT_TYPES[number - 1])
    # Types that a text does not have, such as prompts of zero-shot, would be lines at 0.
    used = frame[frame.groupby(["model", "type"])["value"].transform("max") > 0]

    def draw(axes: style.Axes, part: pd.DataFrame) -> None:
        lines(axes, part, x="layer", hue="type", looks=_TYPE_LOOKS)
        axes.set_ylim(-0.02, 1.02)

    figure = panels(used, draw, names=study.labels, y_label="share of attention", **_BY_MODEL)
    return captioned(
        "fig4_text_attention",
        figure,
        frame,
        counts=counted(max(result.count for result in results.values()), "class"),
        texts="; ".join(f"{study.labels[key]} “{result.text}”" for key, result in results.items()),
    )


DRAWING_OF_TEXT_ATTENTION = Drawing(
    TEXT_ATTENTION, place=70, figures=(text_attention_figure,), nothing="no model has a text"
)


def vision_attention_figure(study: StudyResults) -> CaptionedFigure | None:
    """Draws Fig. 5: attention distance and entropies, a row for each model and variant."""
    results = VISION_ATTENTION.present(study)
    frame = joined(
        tidy(
            number,
            *("layer", "head"),
            row=study.labels[key] + _VARIANTS[variant],
            model=key,
            variant=variant,
            quantity=quantity,
        )
        for key, result in results.items()
        for variant, of_variant in result.variants.items()
        for quantity, number in of_variant.items()
    )
    if frame.empty:
        return None
    zero_shot = study.zero_shot.key
    original = frame[frame["model"] == zero_shot]
    clip = study.clip

    def draw(axes: style.Axes, part: pd.DataFrame) -> None:
        quantity = part["quantity"].iloc[0]
        tuned = part["model"].iloc[0] != zero_shot
        name = "tuned" if tuned else "zero-shot"
        look = {"color": style.TUNED if tuned else style.UNTUNED, "label": f"{name}, mean over heads"}
        lines(axes, part, x="layer", looks={"": look}, dots=True)
        if tuned:
            # In every panel, so that a change is seen without a look at another row.
            mean = original[original["quantity"] == quantity].groupby("layer")["value"].mean()
            axes.plot(mean.index, mean, color=style.UNTUNED, linestyle=style.DASHED, lw=1, label="zero-shot's again")
        if quantity != "distance":
            # Uniform attention to all tokens has the largest entropy.
            level(axes, math.log(clip.tokens))

    by = ("row", "quantity")
    figure = panels(frame, draw, by=by, names=_QUANTITIES, x_label="layer", size=(2.6, 1.6), share_y="col", bottom=0)
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


DRAWING_OF_VISION_ATTENTION = Drawing(
    VISION_ATTENTION, place=80, figures=(vision_attention_figure,), nothing="no model sees an image"
)


def correlation_figure(study: StudyResults) -> CaptionedFigure | None:
    """Draws the rank correlation of `[cls]` attention and similarity to the prompts by layer."""
    results = SIMILARITY.present(study)
    frame = joined(tidy(result.rank_correlation, "layer", model=key) for key, result in results.items())
    if frame.empty:
        return None

    def draw(axes: style.Axes, part: pd.DataFrame) -> None:
        level(axes, 0)
        lines(axes, part, x="layer", looks={"": {"color": style.TUNED, "marker": "o"}})
        axes.set_ylim(-1, 1)

    figure = panels(frame, draw, names=study.labels, y_label="rank correlation", legend=False, **_BY_MODEL)
    counts = counts_of(study, {key: result.count for key, result in results.items()})
    return captioned("fig6_rank_correlation", figure, frame, counts=counts)


def faithfulness_figure(study: StudyResults) -> CaptionedFigure | None:
    """Draws accuracy while patches are removed in the order of each map: lower is better left, higher right."""
    faithfulness = FAITHFULNESS.of(study)
    if faithfulness is None:
        return None
    removed = 100 * faithfulness.fractions
    results = FAITHFULNESS.present(study)
    frames = []
    for key, result in results.items():
        for direction, first in _FIRST.items():
            for target in ("predicted", "true"):
                place = {"model": key, "direction": direction, "target": target}
                place["panel"] = f"{first} relevant first,\nmap of {target} class"
                for name in MAPS:
                    curve = result.maps[name][direction][target].accuracy
                    # `tidy` counts steps; the axis is the share of removed patches.
                    frames.append(tidy(100 * np.asarray(curve), "removed", map=name, **place).assign(removed=removed))
    frame = joined(frames)
    if frame.empty:
        return None

    draw = functools.partial(lines, x="removed", hue="map", looks=_MAP_LOOKS)
    axis: dict[str, Any] = {"x_label": "patches removed (%)", "y_label": "accuracy (%)", "bottom": 0}
    figure = panels(frame, draw, by=("model", "panel"), names=study.labels, **axis)
    counts = counts_of(study, {key: result.count for key, result in results.items()})
    numbers = frame.drop(columns=["panel", "low", "high"])
    return captioned("faithfulness", figure, numbers, dataset=study.dataset.name, counts=counts)


def area_table(study: StudyResults) -> Table | None:
    """Makes the table of areas under the curves of the perturbation test, in percent."""
    targets = ("predicted", "true")
    rows = []
    for key, result in FAITHFULNESS.present(study).items():
        for name in MAPS:
            areas = [result.maps[name][direction][target].area for direction in _FIRST for target in targets]
            rows.append((study.labels[key], MAP_NAMES[name], *(f"{100 * area:.1f}" for area in areas)))
    heads = [f"{first.capitalize()} first, {target}" for first in _FIRST.values() for target in targets]
    return Table(*words_of("areas_table"), ("Model", "Map", *heads), rows, words={1}) if rows else None


DRAWING_OF_FAITHFULNESS = Drawing(
    section=FAITHFULNESS,
    place=100,
    figures=(faithfulness_figure,),
    tables=(area_table,),
    nothing="no image could be read",
)


SIDES: dict[str, Any] = {
    "zero_shot": {"color": style.UNTUNED, "linestyle": (0, (4, 1.5)), "label": "zero-shot"},
    "tuned": {"color": style.TUNED, "label": "tuned"},
}
_BARS: dict[str, Any] = {
    "zero_shot": {"color": style.UNTUNED, "hatch": "////", "edgecolor": "white"},
    "tuned": {"color": style.TUNED},
}
_TYPES = {"text": TEXT_TYPES[:-1], "vision": VISION_TYPES}
_THINGS = {"text": "text tokens", "vision": "patches and vision prompts"}
_GROUPS = {"corrected": ("corrected", "o"), "both_right": ("both right", "s"), "all": ("all", "^")}
_FIGURES = {"text": "fig2_text", "vision": "fig3_vision"}
# Panels from left to right, with their titles and relative widths.
_LAYOUTS = {
    "text": {"tokens": ("by token, without SOS", 1.3), "types": ("by token type", 1.0)},
    "vision": {
        "tokens": ("patches by index", 1.6),
        "prompts": ("prompts", 0.6),
        "types": ("by type", 1.1),
        "zero_shot": ("zero-shot's map", 0.8),
        "tuned": ("tuned model's", 0.8),
    },
}


def relevancy_frame(
    study: StudyResults, key: str, result: RelevancyGroups, part: str, group: str = "corrected"
) -> pd.DataFrame:
    """Makes rows of both models by token, and their sums by token type; empty without samples.

    `panel` is "tokens" (text: up to the last token with relevancy), "prompts" (vision), or "types".
    """
    averaged = result.groups.get(group)
    if averaged is None:
        return pd.DataFrame()
    frames = []
    for side in SIDES:
        place = {"model": key, "group": group, "side": side}
        tokens = tidy(getattr(getattr(averaged, part), side), "index", **place)
        # `tidy` counts from 1, tokens from 0.
        tokens["index"] -= 1
        if part == "text":
            known = getattr(result, side).index_types[: len(tokens)]
            tokens["type"] = pd.Series(list(known)).reindex(tokens.index, fill_value="")
            # Texts differ in length: the padding behind the longest one is not drawn.
            tokens = tokens[: 1 + int(np.flatnonzero(tokens["value"]).max(initial=0))].assign(panel="tokens")
        else:
            # Patches come first; zero-shot has nothing behind them.
            prompts = tokens["index"] >= study.clip.patches
            tokens["type"] = prompts.map(VISION_TYPES.__getitem__)
            tokens["panel"] = np.where(prompts, "prompts", "tokens")
        types = tidy(getattr(getattr(averaged, f"{part}_types"), side), "index", **place)
        types = types.assign(type=[TYPE_NAMES.get(name, name) for name in _TYPES[part]][: len(types)], panel="types")
        frames += [tokens, types.assign(index=-1)]
    return joined(frames)


def relevancy_figure(study: StudyResults, part: str) -> CaptionedFigure | None:
    """Draws Fig. 2 ("text") or 3 ("vision"): relevancy by token, its sums by token type, and patches as maps."""
    results = RELEVANCY.present(study)
    frame = joined(relevancy_frame(study, key, result, part) for key, result in results.items())
    if frame.empty:
        return None
    tokens = frame["panel"] == "tokens"
    maps = joined(frame[tokens & (frame["side"] == side)].assign(panel=side) for side in SIDES if part == "vision")

    def draw(axes: style.Axes, shown: pd.DataFrame) -> None:
        of_model, panel = frame[frame["model"] == shown["model"].iloc[0]], shown["panel"].iloc[0]
        if panel not in SIDES:
            _draw(axes, shown)
            if part == "vision" and panel != "types":  # prompts on the scale of the patches
                axes.set_ylim(0, 1.05 * np.nanmax(of_model.loc[of_model["panel"] != "types", ["value", "high"]]))
            return
        pixels = shown["value"].to_numpy().reshape(study.clip.grid, study.clip.grid)
        # One scale for both models' maps, so that colours can be compared.
        top = of_model.loc[of_model["panel"] == "tokens", "value"].max()
        axes.imshow(pixels, cmap="viridis", vmin=0, vmax=top)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)

    layout = _LAYOUTS[part]
    laid_out = joined([frame, maps])
    # Panels come in the order in which they appear.
    laid_out = laid_out.sort_values("panel", key=lambda panel: panel.map(list(layout).index), kind="stable")
    figure = panels(
        laid_out,
        draw,
        by=("model", "panel"),
        size=(3.2, 1.8) if part == "text" else (1.85, 2.0),
        widths=[layout[name][1] for name in dict.fromkeys(laid_out["panel"])],
        names=study.labels | {name: title for name, (title, _) in layout.items()},
        y_label="relevancy",
        share_x=False,
        share_y=False,
    )
    counts = counts_of(study, {key: result.corrected_count for key, result in results.items()})
    texts = zero_shot_text(results.values())
    return captioned(f"{_FIGURES[part]}_relevancy", figure, frame, what=_THINGS[part], counts=counts, text=texts)


text_relevancy_figure = functools.partial(relevancy_figure, part="text")
vision_relevancy_figure = functools.partial(relevancy_figure, part="vision")


def _draw(axes: style.Axes, part: pd.DataFrame) -> None:
    if part["panel"].iloc[0] == "types":
        bars(axes, part, category="type", hue="side", looks=_BARS)
        return
    # SOS has most of the relevancy: beside it the other tokens are hard to see. Its number is among the sums by type.
    shown = part[part["type"] != "sos"]
    lines(axes, shown, x="index", hue="side", looks=SIDES)
    # Shaded, since prompts of texts stand among words.
    for index in shown.loc[shown["type"].isin(("prompt", "prompts")) & (shown["side"] == "tuned"), "index"]:
        axes.axvspan(index - 0.5, index + 0.5, color=style.TUNED, alpha=0.08, lw=0)
    axes.set_ylim(bottom=0)


def zero_shot_text(results: Iterable[RelevancyGroups]) -> str:
    """Returns the text of zero-shot's rows."""
    return " or ".join(f"“{text}”" for text in sorted({result.zero_shot.text for result in results}))


def relevancy_groups_figure(study: StudyResults) -> CaptionedFigure | None:
    """Draws relevancy by token type, and its change over patches, over corrected images, the control, and all."""
    results = {key: result for key, result in RELEVANCY.present(study).items() if result.groups}
    frames, counts = [], []
    for key, result in results.items():
        of_groups = []
        for group, averaged in result.groups.items():
            # Groups have different numbers of images, so the caption says how many.
            of_groups.append(f"{_GROUPS[group][0]} {counted(averaged.count, 'image')}")
            for part in _TYPES:
                frame = relevancy_frame(study, key, result, part, group)
                frames.append(frame[frame["panel"] == "types"].assign(panel=_THINGS[part]))
            place = {"model": key, "group": group, "side": "", "panel": "change of patches"}
            frames += [
                tidy(averaged.order, "index", type="rank correlation", **place),
                tidy(averaged.variation, "index", type="total variation", **place),
            ]
        counts.append(f"{study.labels[key]}: {', '.join(of_groups)}")
    frame = joined(frames)
    if frame.empty:
        return None
    frame["series"] = frame["group"] + " " + frame["side"]
    sides = {"zero_shot": style.UNTUNED, "tuned": style.TUNED, "": style.BLACK}
    # Without labels: the legend names groups and models, not all their pairs.
    looks: dict[str, Any] = {
        f"{group} {side}": {"color": colour, "marker": _GROUPS[group][1], "ms": 3.5, "label": None}
        for group in GROUPS
        for side, colour in sides.items()
    }
    # Groups differ in their marker and models in their colour: the legend explains both apart.
    legend: dict[str, Any] = {
        name: {"color": style.GREY, "marker": marker, "linestyle": ""} for name, marker in _GROUPS.values()
    }
    legend |= {SIDES[side]["label"]: {"color": sides[side], "linewidth": 3} for side in SIDES}

    draw = functools.partial(points, category="type", hue="series", looks=looks, step=0.13)
    by = ("model", "panel")
    figure = panels(
        frame, draw, by=by, legend=legend, names=study.labels, size=(2.7, 2.2), share_x=False, share_y=False
    )
    numbers = frame.drop(columns=["series", "index"])
    text = zero_shot_text(results.values())
    return captioned("relevancy_groups", figure, numbers, counts="; ".join(counts), text=text)


DRAWING_OF_RELEVANCY = Drawing(
    section=RELEVANCY,
    place=60,
    figures=(text_relevancy_figure, vision_relevancy_figure, relevancy_groups_figure),
    nothing="there is no image that zero-shot gets wrong and a tuned model right",
)


def dataset_figures(studies: Sequence[StudyResults], key: str, label: str) -> list[CaptionedFigure]:
    """Draws Fig. 2 and 3 of one model over several datasets, a panel for each."""
    made = []
    for part, figure_name in _FIGURES.items():
        frames, texts = [], []
        for study in studies:
            result = RELEVANCY.present(study).get(key)
            if result is not None and result.corrected_count:
                # Corrected images may be few, and their number differs by dataset.
                title = f"{dataset_name(study.dataset.name)} (n = {result.corrected_count})"
                frame = relevancy_frame(study, key, result, part)
                frames.append(frame.assign(dataset=study.dataset.name, title=title))
                texts.append(zero_shot_text([result]))
        frame = joined(frames)
        if frame.empty:
            continue
        figure = panels(
            # Patches and prompts share a panel here; `_draw` shades the prompts.
            frame[frame["panel"] != "types"].assign(panel="tokens"),
            _draw,
            by=("", "title"),
            wrap=3,
            share_x=False,
            share_y=False,
            size=(3.0, 2.0),
            x_label="token index",
            y_label="relevancy",
        )
        made.append(
            captioned(
                "dataset_relevancy",
                figure,
                frame.drop(columns="title"),
                name=f"{figure_name}_relevancy_{file_name(key)}",
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
    """Draws Fig. 6: maps of each tuned model, and their rank correlation over the dataset."""
    figures = [_similarity_figure(study, key) for key in SIMILARITY.present(study)]
    correlation = correlation_figure(study)
    return figures if correlation is None else [*figures, correlation]


DRAWING_OF_SIMILARITY = Drawing(
    SIMILARITY, place=90, figures=(similarity_figures,), nothing="no model has vision prompts"
)


def _similarity_figure(study: StudyResults, key: str) -> CaptionedFigure:
    similarity = SIMILARITY.of(study)
    assert similarity is not None
    images, rotations, depths = similarity.pictures, similarity.rotations, similarity.layers
    assert images is not None and rotations is not None and depths is not None, "a model has maps"
    maps = {name: getattr(SIMILARITY.present(study)[key], name) for name in _ROWS}
    # Not by `panels`: cells hold pictures instead of numbers, and blocks of cells stand side by side.
    shown = min(_PICTURES, len(images))
    # The picture itself stands before its maps.
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
                place = line[1].transAxes
                line[1].text(-0.08, 0.5, _ROWS[name], fontsize=6.5, ha="right", va="center", transform=place)
            titles = [f"input, {int(rotations[picture])}°"] + [f"layer {depth + 1}" for depth in depths]
            for axes, title in zip(block[0], titles, strict=True):
                axes.set_title(title, fontsize=7, fontweight="normal")
        heat_scale(figure, grid)
    size = study.clip.grid
    frames = []
    for name, values in maps.items():
        for picture, place in np.ndindex(len(images), len(depths)):
            pixels = values[picture, place]
            # Maps are at pixel resolution: a patch's number is the mean over its pixels.
            side = len(pixels) // size
            means = pixels[: size * side, : size * side].reshape(size, side, size, side).mean((1, 3))
            where = {"rotation": int(rotations[picture]), "layer": int(depths[place]) + 1}
            frames.append(tidy(means, "row", "column", picture=picture, map=name).assign(**where))
    return captioned(
        "fig6_similarity",
        figure,
        joined(frames).drop(columns=["low", "high"]),
        name=f"fig6_similarity_{file_name(key)}",
        label=study.labels[key],
        dataset=study.dataset.name,
        shown=shown,
        counts=counted(len(images), "picture"),
    )


def examples_figure(study: StudyResults) -> CaptionedFigure | None:
    """Draws example pictures with every model's relevancy over patches and text."""
    examples = EXAMPLES.of(study)
    if examples is None or not len(examples.pictures):
        return None
    labels = study.labels
    classes = study.dataset.class_names
    models = EXAMPLES.present(study)
    overlays: list[list[Overlay]] = []
    frames = []
    for picture, label in enumerate(map(int, examples.labels)):
        overlays.append([])
        for key, maps in models.items():
            logits, vision, tokens = maps.logits[picture], maps.vision[picture], maps.words[picture]
            predicted = int(np.argmax(logits))
            title = f"{labels[key]} {'✓' if predicted == label else '✗'}\n{printable(classes[predicted])}, "
            title += f"{100 * float(1 / np.exp(logits - logits.max()).sum()):.0f} %"
            overlays[-1].append(Overlay(title, vision, study.clip.patches, tokens, maps.text[picture]))
            parts = ["patch" if i < study.clip.patches else "prompt" for i in range(len(vision))]
            rows = [(part, i, "", value) for i, (part, value) in enumerate(zip(parts, vision, strict=True))]
            rows += [("text", i, token, maps.text[picture][i]) for i, token in enumerate(tokens)]
            of_model = pd.DataFrame(rows, columns=["part", "index", "token", "relevancy"])
            frames.append(of_model.assign(picture=picture, name=examples.names[picture], model=key))
    count = len(examples.pictures)
    size = (2.25 * (1 + len(models)), 2.8 * count + 0.55)
    titles = [printable(classes[int(label)]) for label in examples.labels]
    figure = overlay_grid(size, (4.2, 1) * count, list(examples.pictures), titles, overlays, scale=True)
    return captioned("examples", figure, joined(frames), dataset=study.dataset.name, counts=counted(count, "picture"))


DRAWING_OF_EXAMPLES = Drawing(EXAMPLES, place=110, figures=(examples_figure,), nothing="no image could be read")
