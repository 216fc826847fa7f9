"""Maps over pictures: `[cls]` attention beside likeness to the prompts (Fig. 6), and relevancy on examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.overlay import Overlay, draw_overlay, draw_text, heat_scale, show_heat, show_picture
from clipbias.report.study_results import StudyResults, counted, file_name, label_of
from clipbias.terminal import printable

_ROWS = {"zero_shot_cls": "original\n[cls]", "cls": "prompted\n[cls]", "prompts": "prompt\nsimilarity"}
_PICTURES = 4  # pictures per figure: one in four rotations
_SCALE = 0.55  # inches for what the colours mean


def similarity_figures(study: StudyResults) -> list[CaptionedFigure]:
    """Fig. 6: a figure per tuned model, and one of the two maps' rank correlation over the dataset."""
    images = study.array("similarity/images")
    if images is None:
        return []
    shown = [model for model in study.tuned if study.array(f"similarity/{model['key']}/cls") is not None]
    correlation = _correlation(study)
    return [*(_maps(study, model) for model in shown), *([correlation] if correlation else [])]


def _maps(study: StudyResults, model: Mapping[str, Any]) -> CaptionedFigure:
    key = model["key"]
    images, rotations, depths = (study.present(f"similarity/{name}") for name in ("images", "rotations", "layers"))
    names = [name for name in _ROWS if study.array(f"similarity/{key}/{name}") is not None]
    maps = {name: study.present(f"similarity/{key}/{name}") for name in names}
    shown = range(min(_PICTURES, len(images)))
    blocks_down, columns, side = (len(shown) + 1) // 2, 1 + len(depths), 0.82
    height = blocks_down * (len(names) * side + 0.3)
    with style.styled():
        figure = style.new_figure(2 * columns * side + 0.9, height + _SCALE)
        pictures, scale = figure.subfigures(2, 1, squeeze=False, height_ratios=(height, _SCALE)).ravel()
        blocks = pictures.subfigures(blocks_down, 2, squeeze=False, wspace=0.04, hspace=0.02).ravel()
        for block, picture in zip(blocks, shown, strict=False):
            grid = block.subplots(len(names), columns, squeeze=False)
            for line, name in zip(grid, names, strict=True):
                line[0].set_axis_off()
                for axes, values in zip(line[1:], maps[name][picture], strict=True):
                    show_heat(axes, images[picture], values)
                    axes.set(xticks=[], yticks=[])
                    axes.grid(False)
                line[1].set_ylabel(_ROWS[name], fontsize=6.5)
            show_picture(grid[0, 0], images[picture])
            titles = (f"input, {int(rotations[picture])}°", *(f"layer {depth + 1}" for depth in depths))
            for axes, title in zip(grid[0], titles, strict=True):
                axes.set_title(title, fontsize=7, fontweight="normal")
        heat_scale(scale)
    which = study.section("similarity", key).get("prompt", "mean")
    prompts = "averaged over the prompts" if which == "mean" else f"for prompt {which}"
    caption = (
        f"{label_of(model)} on {study.dataset}. [cls] maps: attention of [cls] to the patches, mean over heads, of the"
        " original and of the tuned model. Prompt similarity: 1 minus the Euclidean distance between prompt and patch"
        f" tokens at the block's input, {prompts}. All maps: bilinear to image size, each scaled to 0 … 1. Columns are"
        f" layers; inputs are rotated. Shown are {len(shown)} of {counted(len(images), 'picture')}. The CSV holds every"
        " map's value at the patches' centres."
    )
    rows = tuple(
        (picture, int(rotations[picture]), int(depth) + 1, name, row, column, value)
        for picture in range(len(images))
        for name in names
        for depth, values in zip(depths, maps[name][picture], strict=True)
        for (row, column), value in np.ndenumerate(_at_patches(values, study.grid))
    )
    title = f"[cls] attention and likeness to the prompts: {label_of(model)}"
    columns_of_numbers = ("picture", "rotation", "layer", "map", "row", "column", "value")
    return CaptionedFigure(f"fig6_similarity_{file_name(key)}", title, caption, figure, columns_of_numbers, rows)


def _at_patches(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Means of the pixels around the patches' centres: with an even patch width the centre is between pixels."""
    height, width = (size // count for size, count in zip(values.shape, grid, strict=True))
    rows = np.arange(grid[0]) * height + (height - 1) // 2
    columns = np.arange(grid[1]) * width + (width - 1) // 2
    down, right = (height - 1) % 2, (width - 1) % 2
    corners = [values[np.ix_(rows + a, columns + b)] for a in (0, down) for b in (0, right)]
    return np.mean(corners, axis=0)


def _correlation(study: StudyResults) -> CaptionedFigure | None:
    found = study.averages({model["key"]: f"similarity/{model['key']}/rank_correlation" for model in study.tuned})
    shown = [model for model in study.tuned if model["key"] in found]
    if not shown:
        return None
    with style.styled():
        figure = style.new_figure(3.2 * len(shown) + 0.4, 2.4)
        for axes, model in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            mean, error = found[model["key"]]
            axes.axhline(0, color=style.GREY, linewidth=0.8)
            style.layer_line(axes, mean, error=error, marker="o")
            axes.set(ylim=(-1, 1), xlabel="layer", ylabel="rank correlation")
            axes.set_title(label_of(model), loc="left")
            for height, word in ((0.04, "opposed"), (0.92, "alike")):
                axes.text(0.02, height, word, transform=axes.transAxes, color=style.GREY, fontsize=7)
    counts = "; ".join(
        f"{label_of(model)}: {counted(study.count('similarity', model['key']), 'image')}" for model in shown
    )
    caption = (
        "Spearman's rank correlation, over the patches of an image, between the tuned model's [cls] attention and the"
        f" patches' similarity to the prompts; mean over images ({counts}), bars give one standard error. The paper"
        " says that the two are opposed, which would be a value near −1."
    )
    rows = tuple((key, *numbers) for key, average in found.items() for numbers in average.rows())
    title = "Whether [cls] attention and likeness to the prompts are opposed"
    columns = ("model", "layer", "mean", "standard_error")
    return CaptionedFigure("fig6_rank_correlation", title, caption, figure, columns, rows)


def examples_figure(study: StudyResults) -> CaptionedFigure | None:
    """Example pictures with every model's relevancy over patches and text."""
    images = study.array("examples/images")
    if images is None or not len(images):
        return None
    labels, names = study.present("examples/labels"), study.section("examples").get("names", [])
    classes = study.scalars["dataset"]["class_names"]
    models = [model for model in study.models if study.array(f"examples/{model['key']}/vision") is not None]
    rows: list[tuple[Any, ...]] = []
    with style.styled():
        height = 2.8 * len(images)
        figure = style.new_figure(2.25 * (1 + len(models)), height + _SCALE)
        pictures, scale = figure.subfigures(2, 1, squeeze=False, height_ratios=(height, _SCALE)).ravel()
        grid = pictures.subplots(2 * len(images), 1 + len(models), squeeze=False, height_ratios=(4.2, 1) * len(images))
        heat_scale(scale)
        for picture, image in enumerate(images):
            above, below = grid[2 * picture], grid[2 * picture + 1]
            show_picture(above[0], image)
            above[0].set_title(printable(classes[labels[picture]]), fontsize=8)
            below[0].set_axis_off()
            for axes, words, model in zip(above[1:], below[1:], models, strict=True):
                overlay = _overlay(study, model, picture, classes, int(labels[picture]))
                draw_overlay(axes, image, overlay)
                draw_text(words, overlay)
                rows += _example_rows(study, model, picture, names, overlay)
    caption = (
        "Relevancy (Eq. 13–16) for the true class's logit. Heat maps: patches, bilinear to image size, each scaled to"
        " 0 … 1 over the grey picture; the bar beside a map is the vision prompts' share of the whole row. Below: the"
        " text's tokens up to EOS, the darker the more relevant, on the scale of the largest after SOS. Titles give the"
        f" model and what it predicts.{_several(study, models)} {study.dataset}, {counted(len(images), 'picture')}."
    )
    columns = ("picture", "name", "model", "part", "index", "token", "relevancy")
    return CaptionedFigure("examples", "Relevancy on example pictures", caption, figure, columns, tuple(rows))


def _several(study: StudyResults, models: list[Mapping[str, Any]]) -> str:
    texts = {label_of(model): study.section("examples", model["key"]).get("texts", 1) for model in models}
    counts = ", ".join(f"{label} {count}" for label, count in texts.items() if count > 1)
    return f" Of the several texts of a class the first is shown ({counts})." if counts else ""


def _overlay(study: StudyResults, model: Mapping[str, Any], picture: int, classes: list[str], label: int) -> Overlay:
    key = model["key"]
    logits = study.present(f"examples/{key}/logits")[picture]
    predicted = int(np.argmax(logits))
    probability = float(1 / np.exp(logits - logits.max()).sum())
    mark = "✓" if predicted == label else "✗"
    return Overlay(
        f"{label_of(model)} {mark}\n{printable(classes[predicted])}, {100 * probability:.0f} %",
        study.present(f"examples/{key}/vision")[picture],
        study.patches,
        tuple(study.section("examples", key)["tokens"][picture]),
        study.present(f"examples/{key}/text")[picture],
    )


def _example_rows(
    study: StudyResults, model: Mapping[str, Any], picture: int, names: list[str], overlay: Overlay
) -> list[tuple[Any, ...]]:
    start = (picture, names[picture] if picture < len(names) else "", model["key"])
    rows: list[tuple[Any, ...]] = [
        (*start, "patch" if index < study.patches else "prompt", index, "", value)
        for index, value in enumerate(overlay.vision)
    ]
    words = [] if overlay.text is None else zip(overlay.tokens, overlay.text, strict=False)
    return rows + [(*start, "text", index, token, value) for index, (token, value) in enumerate(words)]
