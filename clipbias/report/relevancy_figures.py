"""Where the evidence comes from: relevancy of text tokens (Fig. 2) and of patches and vision prompts (Fig. 3)."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipbias.explain.results import GROUPS, TEXT_KINDS, VISION_KINDS
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.study_results import KIND_NAMES, Average, StudyResults, counted, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDES = ("zero_shot", "tuned")
COLOURS = {"zero_shot": style.ZERO_SHOT, "tuned": style.TUNED}
SIDE_NAMES = {"zero_shot": "zero-shot", "tuned": "tuned"}
_NORMALISED = {
    "sum": "divided by its sum, prompts included",
    "max": "divided by its largest value",
    "minmax": "scaled to 0 … 1",
}


def text_relevancy_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 2: relevancy by token index, the rest without SOS enlarged, and its sums by kind of token."""
    shown = _with_samples(study, "text")
    if not shown:
        return None
    with style.styled():
        figure = style.new_figure(7.2, 2.25 * len(shown) + 0.2)
        grid = figure.subplots(len(shown), 2, squeeze=False, width_ratios=(2.1, 1))
        for (left, right), model in zip(grid, shown, strict=True):
            draw_text_panel(left, study, model)
            _kinds(right, _averages(study, model, "text_kinds"), [KIND_NAMES[kind] for kind in TEXT_KINDS[:-1]])
            right.set_ylim(0, 1.25 * right.get_ylim()[1])  # room above the numbers
            right.legend(loc="upper right", ncols=2, fontsize=7, handlelength=1.4, borderaxespad=0.1)
            left.set_title(f"{label_of(model)} against zero-shot", loc="left")
        grid[-1][0].set_xlabel("token index")
        grid[0][1].set_title("by kind of token", loc="left")
    caption = (
        f"{_samples(study, shown)} Relevancy of the text tokens for the true class's logit at the EOS row (Chefer et"
        " al. 2021; Eq. 13–16), mean over the samples; bands and bars give one standard error. Tokens after the end of"
        f" a name count 0. {zero_shot_text(study, shown)} Prompts are learned tokens, words those of a text that stay"
        " frozen."
    )
    if any(_sos_outshines(_averages(study, model, "text")) for model in shown):
        caption += " The inset leaves out the SOS token, beside which the others are hard to see."
    title = "Relevancy of text tokens"
    return CaptionedFigure("fig2_text_relevancy", title, caption, figure, *_numbers(study, shown, "text"))


def vision_relevancy_figure(study: StudyResults) -> CaptionedFigure | None:
    """Fig. 3: relevancy by token index, the last tokens enlarged, its maps, and its sums by kind of token."""
    shown = _with_samples(study, "vision")
    if not shown:
        return None
    with style.styled():
        figure = style.new_figure(8.6, 2.25 * len(shown) + 0.2)
        grid = figure.subplots(len(shown), 4, squeeze=False, width_ratios=(2.4, 0.8, 0.8, 0.8))
        for (line, before, after, kinds), model in zip(grid, shown, strict=True):
            draw_vision_panel(line, study, model)
            _maps(study, model, before, after)
            _kinds(kinds, _averages(study, model, "vision_kinds"), list(VISION_KINDS))
            line.set_title(f"{label_of(model)} against zero-shot", loc="left")
            after.set_title(label_of(model), fontsize=8, fontweight="normal", color=style.TUNED)
        grid[-1][0].set_xlabel("token index: patches row by row, then prompts")
        grid[0][3].set_title("by kind", loc="left")
    caption = (
        f"{_samples(study, shown)} Relevancy of the {study.patches} patches and of the vision prompts for the true"
        " class's logit at the [cls] row (Chefer et al. 2021; Eq. 13–16), mean over the samples; bands and bars give"
        " one standard error. The maps show the same means where the patches lie, on one scale per row. With prompts in"
        " every layer, a prompt's value adds up what the prompts of that slot gave in all layers."
        f" {zero_shot_text(study, shown)}"
    )
    title = "Relevancy of patches and vision prompts"
    return CaptionedFigure("fig3_vision_relevancy", title, caption, figure, *_numbers(study, shown, "vision"))


def draw_text_panel(axes: "Axes", study: StudyResults, model: Mapping[str, Any]) -> None:
    """Both models' text rows by token index, with an inset from the second token on where SOS outshines the others."""
    averages = _averages(study, model, "text")
    length = max((np.flatnonzero(average.mean) for average in averages.values()), key=len).max(initial=0) + 1
    _lines(axes, averages, 0, length)
    axes.set_ylabel("relevancy")
    axes.set_xlim(-0.5, length - 0.5)
    detail = axes
    if length > 2 and _sos_outshines(averages):
        detail = axes.inset_axes((0.3, 0.3, 0.68, 0.58))
        _lines(detail, averages, 1, length)
        _inset_look(detail)
        detail.set_title("without SOS", fontsize=6.5, fontweight="normal", loc="left", pad=2)
    kinds = study.section("relevancy", model["key"], "tuned").get("index_kinds", ())
    places = [index for index, kind in enumerate(kinds) if kind == "prompt"]
    for index in places:
        detail.axvspan(index - 0.5, index + 0.5, color=style.TUNED, alpha=0.07, lw=0)
    if places:
        above = detail.get_xaxis_transform()
        detail.text(places[0] - 0.4, 0.97, "prompts", transform=above, va="top", fontsize=6.5, color=style.TUNED)


def _sos_outshines(averages: Mapping[str, Average]) -> bool:
    """Whether the first token's number is so much larger than all others that they need a scale of their own."""
    return any(average.mean[0] > 2 * average.mean[1:].max(initial=0) for average in averages.values())


def draw_vision_panel(axes: "Axes", study: StudyResults, model: Mapping[str, Any]) -> None:
    """Both models' vision rows by token index; with prompts, an inset of the last patches and the prompts."""
    averages = _averages(study, model, "vision")
    patches, prompts = study.patches, model["vision_prompts"]
    _lines(axes, averages, 0, patches + prompts, linewidth=0.9)
    axes.set_ylabel("relevancy")
    axes.set_xlim(-0.5, patches + prompts - 0.5)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + (1.4 if prompts else 0.25) * (high - low))  # room above for the legend and the inset
    axes.legend(loc="upper left", fontsize=7, handlelength=1.8, borderaxespad=0.1)
    if prompts:
        first = max(0, patches - 2 * prompts)
        inset = axes.inset_axes((0.4, 0.53, 0.44, 0.36))
        _lines(inset, averages, first, patches + prompts, marked=True)
        _inset_look(inset)
        inset.axvspan(patches - 0.5, patches + prompts - 0.5, color=style.TUNED, alpha=0.07, lw=0)
        inset.set_title("last patches and prompts", fontsize=6.5, fontweight="normal", loc="left", pad=2)
        axes.axvspan(patches - 0.5, patches + prompts - 0.5, color=style.TUNED, alpha=0.12, lw=0)
        axes.indicate_inset_zoom(inset, edgecolor=style.GREY, alpha=0.6, lw=0.6)


def _lines(
    axes: "Axes",
    averages: Mapping[str, Average],
    first: int,
    end: int,
    *,
    linewidth: float = 1.3,
    marked: bool = False,
) -> None:
    for side, average in averages.items():
        index = np.arange(first, min(end, len(average.mean)))
        mean, error = average.mean[index], average.standard_error[index]
        axes.fill_between(index, mean - error, mean + error, color=COLOURS[side], alpha=0.18, lw=0)
        axes.plot(
            index,
            mean,
            color=COLOURS[side],
            linewidth=linewidth,
            linestyle=(0, (4, 1.5)) if side == "zero_shot" else "-",
            marker="." if marked or len(index) <= 24 else "",
            label=SIDE_NAMES[side],
        )


def _inset_look(inset: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    inset.set_facecolor("white")
    inset.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    inset.tick_params(labelsize=6, length=2)
    for spine in inset.spines.values():
        spine.set(visible=True, color=style.GREY, linewidth=0.5)


def _kinds(axes: "Axes", averages: Mapping[str, Average], names: Sequence[str]) -> None:
    """Paired bars, one pair per kind of token, the numbers above them."""
    width = 0.38
    top = max(float(average.mean.max()) for average in averages.values())
    for offset, (side, average) in zip((-width / 2, width / 2), averages.items(), strict=True):
        positions = np.arange(len(names)) + offset
        axes.bar(
            positions,
            average.mean,
            width,
            yerr=np.nan_to_num(average.standard_error),
            color=COLOURS[side],
            edgecolor="white",
            hatch="" if side == "tuned" else "////",
            label=SIDE_NAMES[side],
            error_kw={"elinewidth": 0.8, "capsize": 1.5},
        )
        above = average.mean + np.nan_to_num(average.standard_error) + 0.03 * top
        for x, y, value in zip(positions, above, average.mean, strict=True):
            axes.text(x, y, f"{value:.2f}", ha="center", va="bottom", fontsize=5.5, rotation=90)
    axes.set_xticks(range(len(names)), names, fontsize=6.5)
    axes.set_ylim(0, 1.28 * top)
    axes.grid(axis="x", visible=False)


def _maps(study: StudyResults, model: Mapping[str, Any], before: "Axes", after: "Axes") -> None:
    maps = [average.mean[: study.patches].reshape(study.grid) for average in _averages(study, model, "vision").values()]
    top = max(float(values.max()) for values in maps)
    for axes, values in zip((before, after), maps, strict=True):
        axes.imshow(values, cmap="viridis", vmin=0, vmax=top)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
    before.set_title("zero-shot", fontsize=8, fontweight="normal", color=style.ZERO_SHOT)


def _averages(study: StudyResults, model: Mapping[str, Any], part: str, group: str = "corrected") -> dict[str, Average]:
    return study.averages({side: f"relevancy/{model['key']}/{group}/{part}/{side}" for side in SIDES})


def _with_samples(study: StudyResults, part: str) -> list[Mapping[str, Any]]:
    return [model for model in study.tuned if len(_averages(study, model, part)) == len(SIDES)]


def _samples(study: StudyResults, shown: Sequence[Mapping[str, Any]]) -> str:
    """Which images, how many, and how their rows were normalised."""
    counts = [
        f"{label_of(model)}: {counted(study.count('relevancy', model['key'], 'corrected'), 'image')}" for model in shown
    ]
    chosen = {study.section("relevancy", model["key"]).get("normalisation") for model in shown}
    how = " or ".join(_NORMALISED.get(name, name) for name in sorted(map(str, chosen)))
    asked = [model for model in study.tuned if not study.section("relevancy", model["key"]).get("missing")]
    left_out = [label_of(model) for model in asked if model not in shown]
    without = f" No such image for {', '.join(left_out)}." if left_out else ""
    return (
        "Samples: test images that zero-shot CLIP gets wrong and the tuned model right"
        f" ({'; '.join(counts)}).{without} Each sample's row is {how}."
    )


def zero_shot_text(study: StudyResults, models: Sequence[Mapping[str, Any]]) -> str:
    """A sentence: which text zero-shot's rows were computed with."""
    texts = {study.section("relevancy", model["key"], "zero_shot").get("text") for model in models}
    return f"Zero-shot's text is {' or '.join(f'“{text}”' for text in sorted(map(str, texts)))}."


def _numbers(
    study: StudyResults, shown: Sequence[Mapping[str, Any]], part: str
) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    """Columns and rows of every group of images: every token, then the sums by kind of token."""
    rows: list[tuple[Any, ...]] = []
    names = TEXT_KINDS if part == "text" else VISION_KINDS
    for model, group in itertools.product(shown, GROUPS):
        start = (model["key"], group)
        for side, average in _averages(study, model, part, group).items():
            kinds = _kinds_of(study, model, side, part, len(average.mean))
            tokens = enumerate(zip(kinds, *average, strict=True))
            rows += [(*start, side, "token", index, *numbers) for index, numbers in tokens]
        for side, average in _averages(study, model, f"{part}_kinds", group).items():
            rows += [(*start, side, "kind", "", *numbers) for numbers in zip(names, *average, strict=False)]
    return ("model", "group", "side", "level", "index", "kind", "mean", "standard_error"), tuple(rows)


def _kinds_of(study: StudyResults, model: Mapping[str, Any], side: str, part: str, length: int) -> list[str]:
    """The kind of each index where it is the same for all samples; in text it may depend on the name."""
    if part == "vision":
        return [VISION_KINDS[index >= study.patches] for index in range(length)]
    return list(study.section("relevancy", model["key"], side)["index_kinds"])
