"""Colours, sizes and file formats of all figures.

The colours are Okabe and Ito's, which colour-blind readers can tell apart; no figure relies on colour alone.
"""

import contextlib
import functools
import importlib.resources
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipbias.io import atomic_path
from clipbias.report.names import base_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
else:  # only what draws loads matplotlib; runs are listed without it
    Axes = Figure = Any

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#6B7280"
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)  # for things without an order

# As in the paper: the original model blue, the tuned one red, which looks orange here.
UNTUNED = BLUE
TUNED = RED

LINES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))
SOLID, DASHED = LINES[:2]


@functools.cache
def look() -> Any:
    """Returns matplotlib's settings for all figures, from `templates/figures.mplstyle`."""
    import matplotlib

    path = importlib.resources.files("clipbias.report") / "templates/figures.mplstyle"
    return matplotlib.rc_params_from_file(str(path), use_default_template=False)


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Gives everything drawn inside the project's look, and leaves the caller's matplotlib settings alone."""
    import matplotlib

    with matplotlib.rc_context(look()), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box; the page beside the figure has the name in full.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        yield


def new_figure(width: float, height: float) -> Figure:
    """Makes a figure of a size in inches, which a notebook shows."""
    # Without pyplot: its global list of figures would keep every figure in memory, and need a screen's backend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.__dict__["_repr_png_"] = functools.partial(png_bytes, figure, dpi=130)  # for notebooks
    return figure


def _drawn(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()  # on a full disk, matplotlib would leave its file open
    with styled():
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def png_bytes(figure: Figure, *, dpi: int = 200) -> bytes:
    return _drawn(figure, "png", dpi=dpi)


def svg_text(figure: Figure) -> str:
    """Draws the figure as SVG, with letters as outlines, so that it looks the same everywhere."""
    # Without a date the same figure is the same file.
    return _drawn(figure, "svg", metadata={"Date": None}).decode("utf-8")


def save_png(figure: Figure, path: str | Path, *, dpi: int = 200) -> None:
    """Writes the figure as PNG, atomically. Raises `ClipbiasError` if it cannot."""
    data = png_bytes(figure, dpi=dpi)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def save_figure(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Writes `stem`.pdf and `stem`.png and returns the two paths. Raises `ClipbiasError` if it cannot."""
    pdf, png = (stem.with_name(f"{stem.name}.{kind}") for kind in ("pdf", "png"))
    with styled():
        figure.draw_without_rendering()
    figure.set_layout_engine(None)  # keeps this layout for both files
    data = _drawn(figure, "pdf", metadata={"CreationDate": None})
    with atomic_path(pdf) as temporary:
        temporary.write_bytes(data)
    save_png(figure, png)
    return pdf, png


def log_scale(axes: Axes) -> None:
    """Makes the x axis logarithmic, with plain numbers at its ticks instead of matplotlib's formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.xaxis.get_view_interval()
    # Within a decade or two, 1, 2 and 5 of each.
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,), numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


# Title, colour and marker of each kind of method, in the order of tables.
KINDS = {
    "training-free": ("Training-free", BLACK, "o"),
    "head": ("Heads", BLUE, "s"),
    "prompts": ("Prompts", GREEN, "^"),
    "weights": ("Weights", RED, "D"),
    "test-time": ("Test-time", PURPLE, "P"),
    None: ("Others", GREY, "X"),
}
MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">", "p", "h", "*")
# Method with a thicker line above the others and a bold name.
STANDS_OUT = "bias"


# By the hundreds of a preset's order: zero-shot, the families of CoOp, VPT, IVLP and MaPLe, heads, weights.
_FAMILIES = (UNTUNED, ORANGE, SKY, GREEN, PURPLE, GREY, RED)


def method_look(method: str) -> tuple[str, str, Any]:
    """Returns colour (one per family), marker and line of a method; methods that are not built in are black crosses."""
    from clipbias.tuning import METHODS  # not at import: it loads JAX, which drawing does not need

    name = base_name(method)
    if name == "zero_shot":
        return UNTUNED, "", DASHED
    if name not in METHODS or METHODS[name][1].order // 100 >= len(_FAMILIES):
        return BLACK, "X", SOLID
    # Places are within a family: methods of one colour differ in marker and line.
    families = {each: preset.order // 100 for each, (_, preset) in METHODS.items()}
    place = [each for each, family in families.items() if family == families[name]].index(name)
    return _FAMILIES[families[name]], MARKERS[place % len(MARKERS)], LINES[place % len(LINES)]
