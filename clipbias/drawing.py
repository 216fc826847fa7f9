"""Maps over pictures, in one call: `clipbias.plot`."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipbias.clip.preprocess import Preprocessing
from clipbias.data.given import listed, picture
from clipbias.data.transforms import test_image
from clipbias.errors import ClipbiasError
from clipbias.explain.picture_sections import first_text
from clipbias.explain.streaming import Relevancy
from clipbias.explain.tokens import token_labels
from clipbias.report import style
from clipbias.report.overlay import Overlay, draw_overlay, draw_text, show_picture
from clipbias.tuning import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Beyond these a page is not looked at any more.
MOST = 32
# Pixels of a picture whose model nobody names.
_SIZE = 448


def plot(
    images: Any,
    maps: Any,
    *,
    task: Task | None = None,
    targets: Sequence[int] | None = None,
    titles: Sequence[str] | None = None,
) -> "Figure":
    """Draws maps over their pictures: each picture, beside it the map, with the prompts' share, and the words below.

        maps = clipbias.relevancy(task, clip.params, learnables, clip.preprocess(paths), targets)
        clipbias.plot(paths, maps, task=task, targets=targets).savefig("maps.png")

    Args:
      images: `B` of them, as for `clip.preprocess`, or what it returned: float `[B, R, R, 3]`.
      maps: what `clipbias.relevancy` returned for them, or an array `[B, M + V]` of patches, row by row, then prompts;
        of a single picture also without its first axis.
      task: the task that they are of: names the classes and the words.
      targets: the class of each map, `[B]`; its name is the title, and with `Relevancy` its words are drawn.
      titles: `[B]`, above the maps, in place of the classes' names.

    Returns:
      A `matplotlib.figure.Figure`, which a notebook shows and `savefig` writes.

    Raises:
      ClipbiasError: there are not as many maps as pictures, more than 32, or the patches fill no square.
    """
    rows = np.asarray(maps.vision if isinstance(maps, Relevancy) else maps, np.float32)
    rows = rows[None] if rows.ndim == 1 else rows
    shown = _pictures(images, task)
    if rows.ndim != 2 or len(rows) != len(shown) or not 0 < len(rows) <= MOST:
        raise ClipbiasError(
            f"there are {len(shown)} pictures and maps of shape {list(rows.shape)}; give [B, M + V] for B pictures, at "
            f"most {MOST}."
        )
    for name, given in (("targets", targets), ("titles", titles)):
        if given is not None and len(given) != len(rows):
            raise ClipbiasError(f"there are {len(rows)} maps and {len(given)} {name}; give one for each.")
    patches = math.isqrt(rows.shape[1]) ** 2 if task is None else task.clip.config.vision.patches
    overlays = [
        Overlay(_title(number, task, targets, titles), row, patches, *_words(number, maps, task, targets))
        for number, row in enumerate(rows)
    ]
    heights = [part for overlay in overlays for part in (4, 1 if overlay.tokens else 0.05)]
    with style.styled():
        figure = style.new_figure(4.6, 0.55 * sum(heights) + 0.3)
        grid = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights)
        for number, (image, overlay) in enumerate(zip(shown, overlays, strict=True)):
            above, below = grid[2 * number], grid[2 * number + 1]
            show_picture(above[0], image)
            draw_overlay(above[1], image, overlay)
            below[0].set_axis_off()
            draw_text(below[1], overlay)
    return figure


def _pictures(images: Any, task: Task | None) -> list[np.ndarray]:
    """Pictures as the model sees them, uint8 `[R, R, 3]` each; of normalised ones the levels they come from."""
    if np.issubdtype(getattr(images, "dtype", np.uint8), np.floating):
        array = np.asarray(images, np.float32)
        if array.ndim not in (3, 4) or array.shape[-1] != 3:
            raise ClipbiasError(f"the images have shape {list(array.shape)}; give [B, R, R, 3] or pictures.")
        own = Preprocessing(array.shape[-2]) if task is None else task.clip.preprocessing
        levels = 255 * (array * np.asarray(own.std) + np.asarray(own.mean))
        return list(levels.round().clip(0, 255).astype(np.uint8).reshape(-1, *array.shape[-3:]))
    found = [picture(image, f"image {number}") for number, image in enumerate(listed(images)[0])]
    sizes = [min(_SIZE, *image.shape[:2]) if task is None else task.clip.config.vision.image_size for image in found]
    return [test_image(image, size) for image, size in zip(found, sizes, strict=True)]


def _title(number: int, task: Task | None, targets: Sequence[int] | None, titles: Sequence[str] | None) -> str:
    if titles is not None:
        return str(titles[number])
    return "" if task is None or targets is None else task.class_names[int(targets[number])]


def _words(number: int, maps: Any, task: Task | None, targets: Sequence[int] | None) -> tuple[Any, ...]:
    """The words of a map's text and their relevancy, or nothing."""
    if task is None or targets is None or not isinstance(maps, Relevancy):
        return ()
    return tuple(token_labels(task, int(targets[number]))), first_text(maps.text)[number]
