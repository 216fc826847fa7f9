"""Maps over pictures: `[cls]` attention beside likeness to the prompts (Fig. 6), and relevancy on examples."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from clipbias.explain.results import Similarity, SimilarityMaps, StudyResults, present
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, captioned, file_name
from clipbias.report.overlay import Overlay, draw_overlay, draw_text, heat_scale, show_heat, show_picture
from clipbias.report.panels import tidy
from clipbias.report.study_figures import correlation_figure, joined, labels_of
from clipbias.sentences import counted
from clipbias.terminal import printable

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
