"""Relevancy over a picture and over its text: the picture beside its heat map, the prompts' share, the words."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.report import style
from clipbias.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEAT = "inferno"


@dataclasses.dataclass(frozen=True)
class Overlay:
    """What one model says about one picture.

    Attributes:
      title: for example the model's name, or the class with its probability.
      vision: relevancy of the M patches, row by row, then of the V prompts, [M + V].
      patches: M.
      tokens: the text's tokens as words, from SOS up to but without EOS.
      text: relevancy of the tokens, [N]; only the first `len(tokens)` count. None for no text.
    """

    title: str
    vision: np.ndarray
    patches: int
    tokens: tuple[str, ...] = ()
    text: np.ndarray | None = None


def overlay_figure(image: np.ndarray, overlays: Sequence[Overlay], *, title: str = "picture") -> "Figure":
    """Draws the picture and, per overlay, its heat map with the prompts' share as a bar and the coloured text below.

    Args:
      image: the picture as the model saw it, [R, R, 3] uint8.
      overlays: one or more, drawn side by side.
      title: above the picture.

    Raises:
      ClipbiasError: the patches do not fill a square grid.
    """
    columns = 1 + len(overlays)
    with style.styled():
        figure = style.new_figure(2.3 * columns, 2.75)
        grid = figure.subplots(2, columns, squeeze=False, height_ratios=(4, 1))
        show_picture(grid[0, 0], image)
        grid[0, 0].set_title(title, fontsize=8)
        grid[1, 0].set_axis_off()
        for (above, below), overlay in zip(grid[:, 1:].T, overlays, strict=True):
            draw_overlay(above, image, overlay)
            draw_text(below, overlay)
    return figure


def overlay_rows(images: Sequence[np.ndarray], overlays: Sequence[Overlay]) -> "Figure":
    """Draws each picture with its own heat map beside it and the coloured text below, one below the other.

    Args:
      images: the pictures as the model saw them, [R, R, 3] uint8.
      overlays: one of each picture.

    Raises:
      ClipbiasError: the patches do not fill a square grid.
    """
    heights = [part for overlay in overlays for part in (4, 1 if overlay.tokens else 0.05)]
    with style.styled():
        figure = style.new_figure(4.6, 0.55 * sum(heights) + 0.3)
        grid = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights)
        for above, (blank, below), image, overlay in zip(grid[::2], grid[1::2], images, overlays, strict=True):
            show_picture(above[0], image)
            draw_overlay(above[1], image, overlay)
            blank.set_axis_off()
            draw_text(below, overlay)
    return figure


def save_overlay(path: Path, image: np.ndarray, overlays: Sequence[Overlay], *, title: str = "picture") -> None:
    """Writes `overlay_figure` as PNG, atomically."""
    style.save_png(overlay_figure(image, overlays, title=title), path, dpi=160)


def heat_map(vision: np.ndarray, image_size: int, patches: int) -> np.ndarray:
    """The patches' relevancy at image size, [R, R], bilinear with half-pixel centres, scaled to 0 … 1.

    Args:
      vision: relevancy of patches and prompts, [M + V].
      image_size: R.
      patches: M.
    """
    side = round(patches**0.5)
    if side * side != patches or patches > len(vision):
        raise ClipbiasError(f"{patches} patches of a row of {len(vision)} relevancies do not fill a square grid.")
    values = np.asarray(vision[:patches], np.float32).reshape(side, side)
    values = upsample(values, image_size)
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)


def upsample(values: np.ndarray, size: int) -> np.ndarray:
    """[g, g] to [size, size]: bilinear, half-pixel centres, edges held."""
    centres = (np.arange(size) + 0.5) * len(values) / size - 0.5
    low = np.clip(np.floor(centres).astype(int), 0, len(values) - 1)
    high = np.minimum(low + 1, len(values) - 1)
    weight = np.clip(centres - low, 0, 1).astype(np.float32)
    across = values[:, low] * (1 - weight) + values[:, high] * weight
    return across[low] * (1 - weight[:, None]) + across[high] * weight[:, None]


def prompt_share(vision: np.ndarray, patches: int) -> float:
    """The prompts' part of the row's sum, 0 where the row is all zero."""
    total = float(np.sum(vision))
    return float(np.sum(vision[patches:])) / total if total > 0 else 0.0


def show_picture(axes: "Axes", image: np.ndarray) -> None:
    """The picture without axes."""
    axes.imshow(image, interpolation="nearest" if len(image) < 100 else "antialiased")
    axes.set_axis_off()


def show_heat(axes: "Axes", image: np.ndarray, values: np.ndarray) -> None:
    """A map in 0 … 1 over the grey picture: the hotter, the less of the picture shines through."""
    axes.imshow(np.asarray(image, np.float32).mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    axes.imshow(values, cmap=HEAT, alpha=0.25 + 0.5 * np.asarray(values, float), vmin=0, vmax=1)


def heat_scale(figure: "Figure", grid: np.ndarray) -> None:
    """Says what the colours of `show_heat` mean: a bar from 0 to 1 below all panels."""
    from matplotlib.cm import ScalarMappable

    heat = ScalarMappable(cmap=HEAT)
    heat.set_clim(0, 1)
    bar = figure.colorbar(heat, ax=grid, location="bottom", shrink=0.4, aspect=40, ticks=(0, 0.5, 1))
    bar.set_label("each map from its least (0) to its greatest value (1)", fontsize=7)
    bar.ax.tick_params(labelsize=6.5, width=0.5, length=2)


def draw_overlay(axes: "Axes", image: np.ndarray, overlay: Overlay) -> None:
    """The heat map over a grey picture; beside it, where there are prompts, a bar with their share of relevancy."""
    show_heat(axes, image, heat_map(overlay.vision, len(image), overlay.patches))
    axes.set_axis_off()
    axes.set_title(printable(overlay.title, keep="\n"), fontsize=8)
    if len(overlay.vision) > overlay.patches:
        _share_bar(axes, prompt_share(overlay.vision, overlay.patches))


def _share_bar(axes: "Axes", share: float) -> None:
    bar = axes.inset_axes((1.03, 0, 0.05, 1))
    bar.bar([0], [share], width=1, color=style.TUNED)
    bar.bar([0], [1 - share], width=1, bottom=[share], color="#D1D5DB")
    bar.set(xlim=(-0.5, 0.5), ylim=(0, 1), xticks=[], yticks=[])
    bar.grid(False)
    bar.set_xlabel(f"prompts\n{100 * share:.0f} %", fontsize=6, color=style.TUNED, labelpad=2)


def draw_text(axes: "Axes", overlay: Overlay) -> None:
    """The tokens in reading order, each on a ground as dark as its share of the largest relevancy after SOS.

    SOS usually holds most of the row; it is drawn, and its share is written, but it does not set the scale.
    """
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    if overlay.text is None or not overlay.tokens:
        return
    from matplotlib import colormaps

    values = np.asarray(overlay.text[: len(overlay.tokens)], float)
    rest = values[1:] if len(values) > 1 else values
    scale = rest.max() if rest.size and rest.max() > 0 else 1.0
    colours = colormaps["Oranges"]
    for x, y, token, value in _laid_out(axes, overlay.tokens, values):
        level = min(1.0, value / scale)
        axes.text(
            x,
            y,
            printable(token),
            fontsize=6.5,
            va="top",
            color="white" if level > 0.65 else style.BLACK,
            bbox={"boxstyle": "round,pad=0.22", "facecolor": colours(0.05 + 0.85 * level), "edgecolor": "none"},
        )


def _laid_out(axes: "Axes", tokens: Sequence[str], values: np.ndarray) -> "list[tuple[float, float, str, float]]":
    """Places words from left to right in lines, in axes units, by the width of their letters."""
    place = axes.get_subplotspec()
    assert place is not None  # panels are made by `subplots`
    width = style.size_inches(axes)[0] * 72 / place.get_gridspec().ncols * 0.92
    x = 0.0
    y = 1.0
    placed = []
    for token, value in zip(tokens, values, strict=True):
        length = (len(token) * 4.1 + 7) / width
        if x > 0 and x + length > 1:
            x = 0.0
            y -= 0.36
        placed.append((x, y, token, float(value)))
        x += length
    return placed
