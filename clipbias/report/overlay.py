"""Maps over single pictures: heat map, the prompts' share, words; and the data of the page's explorer."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clipbias.analysis.pictures import EXPLORE
from clipbias.analysis.results import CHANGES, ModelFacts, StudyResults
from clipbias.constants import ZERO_SHOT
from clipbias.errors import ClipbiasError
from clipbias.report import style
from clipbias.report.drawings import Drawing
from clipbias.report.pages import data_uri
from clipbias.terminal import printable

HEAT = "inferno"
STRIP = 3  # pictures of a change on the first page
_FINE = 112  # pixels, the least of a map on the first page


@dataclasses.dataclass(frozen=True)
class Overlay:
    """Relevancy of one picture by one model."""

    title: str  # such as the model's name, or the class with its probability
    vision: np.ndarray  # relevancy of the M patches, row by row, then of the V prompts, `[M + V]`
    patches: int  # M
    words: tuple[str, ...] = ()  # readable tokens of the text, from SOS on without EOS
    text: np.ndarray | None = None  # relevancy of the tokens `[N]`, of which the first `len(words)` count


def overlay_figure(image: np.ndarray, overlays: Sequence[Overlay], *, title: str = "picture") -> style.Figure:
    """Draws the picture as the model saw it, uint8 `[R, R, 3]`, and its overlays, side by side.

    Raises `ClipbiasError` if the patches do not fill a square grid.
    """
    return overlay_grid((2.3 * (1 + len(overlays)), 2.75), (4, 1), [image], [title], [overlays])


def overlay_rows(pictures: Sequence[np.ndarray], overlays: Sequence[Overlay]) -> style.Figure:
    """Draws each picture with its overlay beside it, in rows."""
    # Without words the line below a map takes no room.
    heights = [part for overlay in overlays for part in (4, 1 if overlay.words else 0.05)]
    size = (4.6, 0.55 * sum(heights) + 0.3)
    return overlay_grid(size, heights, pictures, [""] * len(pictures), [[overlay] for overlay in overlays])


def overlay_grid(
    size: tuple[float, float],
    heights: Sequence[float],
    pictures: Sequence[np.ndarray],
    titles: Sequence[str],
    overlays: Sequence[Sequence[Overlay]],
    *,
    scale: bool = False,
) -> style.Figure:
    """Draws each picture and its overlays in a row with two lines of relative `heights`; `scale` adds a colour bar."""
    with style.styled():
        figure = style.new_figure(*size)
        grid = figure.subplots(2 * len(pictures), 1 + len(overlays[0]), squeeze=False, height_ratios=heights)
        for above, below, image, title, row in zip(grid[::2], grid[1::2], pictures, titles, overlays, strict=True):
            show_picture(above[0], image)
            above[0].set_title(title, fontsize=8)
            below[0].set_axis_off()
            for axes, words, overlay in zip(above[1:], below[1:], row, strict=True):
                draw_overlay(axes, image, overlay)
                draw_text(words, overlay)
        if scale:
            heat_scale(figure, grid)
    return figure


def heat_map(vision: np.ndarray, image_size: int, patches: int) -> np.ndarray:
    """Resizes the patches' part of relevancy `[M + V]` to image size, `[R, R]`, scaled to 0 … 1."""
    # Prompts have no place in the picture, and may be so many that the whole row fills a larger square.
    side = round(patches**0.5)
    if side * side != patches or patches > len(vision):
        raise ClipbiasError(f"{patches} patches of {len(vision)} relevancies do not fill a square grid.")
    small = Image.fromarray(np.asarray(vision[:patches], np.float32).reshape(side, side))
    values = np.asarray(small.resize((image_size, image_size), Image.Resampling.BILINEAR))
    # A flat map is cold all over: its range of 0 may not divide.
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)


def show_picture(axes: style.Axes, image: np.ndarray) -> None:
    """Draws the picture without axes."""
    axes.imshow(image, interpolation="nearest" if len(image) < 100 else "antialiased")
    axes.set_axis_off()


def show_heat(axes: style.Axes, image: np.ndarray, values: np.ndarray) -> None:
    """Draws a map in 0 … 1 over the grey picture, more opaque at higher values."""
    # Grey, so that only the map has colours.
    axes.imshow(np.asarray(image, np.float32).mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    axes.imshow(values, cmap=HEAT, alpha=_opacity(values), vmin=0, vmax=1)


def _opacity(values: np.ndarray) -> np.ndarray:
    # The coldest patches keep some colour, so that the map's extent is seen; the hottest still show the picture.
    return 0.25 + 0.5 * np.asarray(values, float)


def heat_scale(figure: style.Figure, grid: np.ndarray) -> None:
    """Draws the colour bar of `show_heat` below all panels."""
    from matplotlib.cm import ScalarMappable

    heat = ScalarMappable(cmap=HEAT)
    heat.set_clim(0, 1)
    bar = figure.colorbar(heat, ax=grid, location="bottom", shrink=0.4, aspect=40, ticks=(0, 0.5, 1))
    bar.set_label("each map from its least (0) to its greatest value (1)", fontsize=7)
    bar.ax.tick_params(labelsize=6.5, width=0.5, length=2)


def draw_overlay(axes: style.Axes, image: np.ndarray, overlay: Overlay) -> None:
    """Draws the heat map over a grey picture and, with prompts, a bar of their share of relevancy."""
    show_heat(axes, image, heat_map(overlay.vision, len(image), overlay.patches))
    axes.set_axis_off()
    axes.set_title(printable(overlay.title, keep="\n"), fontsize=8)
    if len(overlay.vision) > overlay.patches:
        # Prompts have no place in the picture.
        total = float(np.sum(overlay.vision))
        share = float(np.sum(overlay.vision[overlay.patches :])) / total if total > 0 else 0.0
        bar = axes.inset_axes((1.03, 0, 0.05, 1))
        bar.bar([0], [share], width=1, color=style.TUNED)
        bar.bar([0], [1 - share], width=1, bottom=[share], color="#D1D5DB")
        bar.set(xlim=(-0.5, 0.5), ylim=(0, 1), xticks=[], yticks=[])
        bar.grid(False)
        bar.set_xlabel(f"prompts\n{100 * share:.0f} %", fontsize=6, color=style.TUNED, labelpad=2)


def draw_text(axes: style.Axes, overlay: Overlay) -> None:
    """Draws the tokens in reading order, the darker the more relevant."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    if overlay.text is None or not overlay.words:
        return
    from matplotlib import colormaps

    values = np.asarray(overlay.text[: len(overlay.words)], float)
    # SOS usually holds most of the row: as the top of the scale it would leave all other tokens white.
    rest = values[1:] if len(values) > 1 else values
    scale = rest.max() if rest.size and rest.max() > 0 else 1.0
    colours = colormaps["Oranges"]
    place, figure = axes.get_subplotspec(), axes.get_figure(root=True)
    assert place is not None and figure is not None  # panels are made by `subplots`
    # Lengths of words are estimated: measuring each would draw the figure once per word.
    width = figure.get_size_inches()[0] * 72 / place.get_gridspec().ncols * 0.92  # of a line in points
    x, y = 0.0, 1.0
    for token, value in zip(overlay.words, values, strict=True):
        length = (len(token) * 4.1 + 7) / width
        if x > 0 and x + length > 1:
            x = 0.0
            y -= 0.36
        level = min(1.0, float(value) / scale)
        axes.text(
            x,
            y,
            printable(token),
            fontsize=6.5,
            va="top",
            color="white" if level > 0.65 else style.BLACK,
            bbox={"boxstyle": "round,pad=0.22", "facecolor": colours(0.05 + 0.85 * level), "edgecolor": "none"},
        )
        x += length


_LOSSLESS = 64  # pixels: smaller pictures are shown pixel by pixel, where JPEG would blur them
_SHOWN_APART = ("margin", "log_likelihood")  # numbers of images, which stand with the image


def explorer_data(study: StudyResults) -> dict[str, Any] | None:
    """Returns the data of the page's script in JSON's types, or `None` without images to explore."""
    from matplotlib import colormaps

    explore, explored = EXPLORE.of(study), EXPLORE.present(study)
    models = [model for model in study.models if model.key in explored]
    if explore is None or not len(explore.images) or not models:
        return None
    numbers = explore.images
    names = study.dataset.class_names
    # Predictions are those of the tables, so that the explorer cannot disagree with them.
    labels = study.predictions.labels[numbers]
    predicted = {model.key: study.predictions.models[model.key][numbers] for model in models}
    changes = {model.key: study.predictions.changes(model.key)[numbers] for model in models if model.key != ZERO_SHOT}
    images = [
        {
            "name": explore.names[row],
            "number": int(number),
            "picture": _picture(explore.pictures[row]),
            "label": int(labels[row]),
            # Rows of relevancy by class: the script looks them up by the class that is chosen.
            "pairs": np.flatnonzero(explore.pairs[:, 0] == row).tolist(),
            "models": {
                model.key: {
                    "predicted": int(predicted[model.key][row]),
                    "margin": float(explored[model.key].margin[row]),
                    "likelihood": float(explored[model.key].log_likelihood[row]),
                }
                for model in models
            },
            "changes": {key: int(of_images[row]) for key, of_images in changes.items()},
        }
        for row, number in enumerate(numbers)
    ]
    described = [
        {
            "key": model.key,
            "label": model.label,
            "tuned": model.key != ZERO_SHOT,
            "slots": model.vision_prompts,
            "depth": model.vision_depth,
            "tokens": explored[model.key].words,
            "arrays": {
                name: _packed(array)
                for name, array in vars(explored[model.key]).items()
                if isinstance(array, np.ndarray) and name not in _SHOWN_APART
            },
        }
        for model in models
    ]
    # Names of these classes alone: a dataset may have thousands.
    classes = np.unique(np.concatenate([explore.pairs[:, 1], *predicted.values()])).tolist()
    return {
        "grid": [study.clip.grid, study.clip.grid],
        "layers": study.clip.vision_layers,
        "colours": _packed(np.rint(255 * colormaps[HEAT](np.arange(256))[:, :3]).astype(np.uint8)),
        "changes": list(CHANGES),
        "classes": {number: names[number] for number in classes},
        "pairs": explore.pairs[:, 1].tolist(),
        "images": images,
        "models": described,
    }


class ChangedPicture(NamedTuple):
    """Picture whose prediction tuning changed, for the first page."""

    place: int  # among the explorer's images
    change: str  # `corrected` or `broken`
    shown: list[tuple[str, str, str]]  # line below, text alternative and data URI: the picture, then each model's map


def changed_pictures(study: StudyResults, model: ModelFacts) -> list[ChangedPicture]:
    """Returns the first explored pictures that a tuned model corrected, then those that it broke, three at most each.

    Maps are of zero-shot CLIP and of the model, for the true class. A model without maps has no pictures.
    """
    from matplotlib import colormaps

    explore, explored = EXPLORE.of(study), EXPLORE.present(study)
    if explore is None or not {ZERO_SHOT, model.key} <= set(explored):
        return []
    names = study.dataset.class_names
    changes = study.predictions.changes(model.key)[explore.images]
    pictures = []
    for place in (int(place) for kind in (0, 1) for place in np.flatnonzero(changes == kind)[:STRIP]):
        number, small = explore.images[place], explore.pictures[place]
        label = int(study.predictions.labels[number])
        change = "broken" if changes[place] else "corrected"
        shown = [(f"{names[label]}: {change}", f"{names[label]}, {CHANGES[changes[place]]}", _picture(small))]
        # The first pair of a picture is that of its true class.
        pair = int(np.flatnonzero(explore.pairs[:, 0] == place)[0])
        times = -(-_FINE // len(small))  # a map is finer than a picture of few pixels
        grey = small.mean(-1, keepdims=True).repeat(times, axis=0).repeat(times, axis=1)
        for each in (study.zero_shot, model):
            heat = heat_map(explored[each.key].relevancy[pair], len(grey), study.clip.grid**2)
            # As `show_heat` draws it: a figure for each small picture would take long, and have margins.
            alpha = _opacity(heat)[..., None]
            drawn = np.rint((1 - alpha) * grey + 255 * alpha * colormaps[HEAT](heat)[..., :3]).astype(np.uint8)
            predicted = int(study.predictions.models[each.key][number])
            line = f"{each.label}: {names[predicted]} {'✓' if predicted == label else '✗'}"
            shown.append((line, f"Where {each.label} looks for {names[label]}", _picture(drawn)))
        pictures.append(ChangedPicture(place, change, shown))
    return pictures


DRAWING_OF_EXPLORE = Drawing(EXPLORE, place=5, explorer=explorer_data, nothing="no image could be read")


def _picture(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    kind = "png" if len(pixels) <= _LOSSLESS else "jpeg"
    Image.fromarray(pixels).save(file, kind, quality=85)  # PNG ignores the quality
    return data_uri(file.getvalue(), f"image/{kind}")


def _packed(array: np.ndarray) -> dict[str, Any]:
    """Encodes an array for the script: bytes, or little-endian 32-bit floats, in base64."""
    # Little-endian whatever machine made the page, as the typed arrays of browsers are.
    plain = array if array.dtype == np.uint8 else np.asarray(array, "<f4")
    data = base64.b64encode(np.ascontiguousarray(plain).tobytes()).decode("ascii")
    return {"type": plain.dtype.name, "shape": list(plain.shape), "data": data}
