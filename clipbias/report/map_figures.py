"""Maps over pictures: `[cls]` attention beside likeness to the prompts (Fig. 6), and relevancy on examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, captioned
from clipbias.report.overlay import Overlay, draw_overlay, draw_text, heat_scale, show_heat, show_picture
from clipbias.report.panels import tidy
from clipbias.report.study_figures import correlation_figure, joined
from clipbias.report.study_results import StudyResults, counted, file_name, label_of
from clipbias.terminal import printable

_ROWS = {"zero_shot_cls": "original\n[cls]", "cls": "prompted\n[cls]", "prompts": "prompt\nsimilarity"}
_PICTURES, _ACROSS = 4, 2  # pictures per figure: one in four rotations; and so many side by side
_SIDE = 0.82  # inches of a map


def similarity_figures(study: StudyResults) -> list[CaptionedFigure]:
    """Fig. 6: a figure per tuned model, and one of the two maps' rank correlation over the dataset."""
    if study.array("similarity/images") is None:
        return []
    shown = [model for model in study.tuned if study.array(f"similarity/{model['key']}/cls") is not None]
    correlation = correlation_figure(study)
    return [*(_maps(study, model) for model in shown), *([correlation] if correlation else [])]


def _maps(study: StudyResults, model: Mapping[str, Any]) -> CaptionedFigure:
    key = model["key"]
    images, rotations, depths = (study.present(f"similarity/{name}") for name in ("images", "rotations", "layers"))
    maps = {name: values for name in _ROWS if (values := study.array(f"similarity/{key}/{name}")) is not None}
    shown, columns = min(_PICTURES, len(images)), 1 + len(depths)
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
            titles = (f"input, {int(rotations[picture])}°", *(f"layer {depth + 1}" for depth in depths))
            for axes, title in zip(block[0], titles, strict=True):
                axes.set_title(title, fontsize=7, fontweight="normal")
        heat_scale(figure, grid)
    prompt = study.section("similarity", key).get("prompt")
    numbers = joined(
        tidy(_by_patch(values[picture, place], study.grid), None, ("row", "column"), picture=picture, map=name).assign(
            rotation=int(rotations[picture]), layer=int(depth) + 1
        )
        for name, values in maps.items()
        for picture in range(len(images))
        for place, depth in enumerate(depths)
    )
    return captioned(
        "fig6_similarity",
        figure,
        numbers.drop(columns=["low", "high"]),
        name=f"fig6_similarity_{file_name(key)}",
        label=label_of(model),
        dataset=study.dataset,
        prompts="mean over the prompts" if prompt is None else f"of prompt {prompt}",
        shown=shown,
        counts=counted(len(images), "picture"),
    )


def _by_patch(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Means over the pixels of each patch."""
    height, width = (size // count for size, count in zip(values.shape, grid, strict=True))
    whole = values[: grid[0] * height, : grid[1] * width]
    return whole.reshape(grid[0], height, grid[1], width).mean((1, 3))


def examples_figure(study: StudyResults) -> CaptionedFigure | None:
    """Example pictures with every model's relevancy over patches and text."""
    images = study.array("examples/images")
    if images is None or not len(images):
        return None
    labels, names = study.present("examples/labels"), study.section("examples").get("names", [])
    classes = study.scalars["dataset"]["class_names"]
    models = [model for model in study.models if study.array(f"examples/{model['key']}/vision") is not None]
    frames = []
    with style.styled():
        figure = style.new_figure(2.25 * (1 + len(models)), 2.8 * len(images) + 0.55)
        grid = figure.subplots(2 * len(images), 1 + len(models), squeeze=False, height_ratios=(4.2, 1) * len(images))
        for picture, image in enumerate(images):
            above, below = grid[2 * picture], grid[2 * picture + 1]
            show_picture(above[0], image)
            above[0].set_title(printable(classes[labels[picture]]), fontsize=8)
            below[0].set_axis_off()
            for axes, words, model in zip(above[1:], below[1:], models, strict=True):
                overlay = _overlay(study, model, picture, classes, int(labels[picture]))
                draw_overlay(axes, image, overlay)
                draw_text(words, overlay)
                name = names[picture] if picture < len(names) else ""
                frames.append(_numbers(overlay).assign(picture=picture, name=name, model=model["key"]))
        heat_scale(figure, grid)
    counts = counted(len(images), "picture")
    return captioned("examples", figure, joined(frames), dataset=study.dataset, counts=counts)


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


def _numbers(overlay: Overlay) -> pd.DataFrame:
    """A row for each patch, prompt and token of the text."""
    prompts = len(overlay.vision) - overlay.patches
    parts = ["patch"] * overlay.patches + ["prompt"] * prompts + ["text"] * len(overlay.tokens)
    text = () if overlay.text is None else overlay.text[: len(overlay.tokens)]
    index = [*range(len(overlay.vision)), *range(len(overlay.tokens))]
    tokens = [""] * len(overlay.vision) + list(overlay.tokens)
    return pd.DataFrame({"part": parts, "index": index, "token": tokens, "relevancy": [*overlay.vision, *text]})
