"""Colours, sizes and ways to save that all figures share.

The colours are Okabe and Ito's, told apart by colour-blind readers too; no figure relies on colour alone.
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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#6B7280"
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)  # for things without an order

# As in the paper: the original model blue, the tuned one red, which looks orange here.
ZERO_SHOT = BLUE
TUNED = RED

LINES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))
SOLID, DASHED = LINES[:2]


@functools.cache
def look() -> Any:
    """The settings of matplotlib that all figures have, in `templates/figures.mplstyle`."""
    import matplotlib

    path = importlib.resources.files("clipbias.report") / "templates/figures.mplstyle"
    return matplotlib.rc_params_from_file(str(path), use_default_template=False)


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Everything drawn inside has the project's look; the caller's own matplotlib settings are left alone."""
    import matplotlib

    with matplotlib.rc_context(look()), warnings.catch_warnings():
        # A letter that the font has not is drawn as a box; the page beside the figure has the name in full.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        yield


def new_figure(width: float, height: float) -> "Figure":
    """A figure in inches, on no screen and known to no global list; a notebook shows it all the same."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.__dict__["_repr_png_"] = functools.partial(png_bytes, figure, dpi=130)  # notebooks look for it
    return figure


def _drawn(figure: "Figure", kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()  # a writer that runs out of room would leave its file open
    with styled():
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def png_bytes(figure: "Figure", *, dpi: int = 200) -> bytes:
    """The figure as PNG."""
    return _drawn(figure, "png", dpi=dpi)


def svg_text(figure: "Figure") -> str:
    """The figure as SVG, its letters drawn as outlines so that it looks the same everywhere."""
    return _drawn(figure, "svg", metadata={"Date": None}).decode("utf-8")


def save_png(figure: "Figure", path: str | Path, *, dpi: int = 200) -> None:
    """Writes the figure as PNG, atomically. Raises `ClipbiasError` where it cannot."""
    data = png_bytes(figure, dpi=dpi)  # before a file is opened
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def save_figure(figure: "Figure", stem: Path) -> tuple[Path, Path]:
    """Writes `stem`.pdf and `stem`.png and returns the two paths. Raises `ClipbiasError` where it cannot."""
    pdf, png = (stem.with_name(f"{stem.name}.{kind}") for kind in ("pdf", "png"))
    with styled():
        figure.draw_without_rendering()
    figure.set_layout_engine(None)  # the layout just found stays, instead of being found again for each file
    data = _drawn(figure, "pdf", metadata={"CreationDate": None})
    with atomic_path(pdf) as temporary:
        temporary.write_bytes(data)
    save_png(figure, png)
    return pdf, png


def log_scale(axes: "Axes") -> None:
    """A logarithmic x axis whose ticks are plain numbers; matplotlib's own are formulas, which are not read here."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.xaxis.get_view_interval()
    # Within a decade or two, 1, 2 and 5 of each.
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,), numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


# In the order in which they are shown: title, colour and marker of a kind of method.
KINDS = {
    "training-free": ("Training-free", BLACK, "o"),
    "head": ("Heads", BLUE, "s"),
    "prompts": ("Prompts", GREEN, "^"),
    "weights": ("Weights", RED, "D"),
    "test-time": ("Test-time", PURPLE, "P"),
    None: ("Others", GREY, "X"),
}
MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">", "p", "h", "*")
# The method whose line is thicker and above the others, and whose name is bold.
STANDS_OUT = "bias"


# By the hundreds of a preset's place in tables: zero-shot, CoOp's family, VPT's, IVLP's, MaPLe's, heads, and weights.
_FAMILIES = (ZERO_SHOT, ORANGE, SKY, GREEN, PURPLE, GREY, RED)


def method_look(method: str) -> tuple[str, str, Any]:
    """Colour, marker and line of a method, at whatever learning rate.

    Families have a colour each, and their members differ in marker and line: no two built-in methods look the same.
    What is not built in is a black cross.
    """
    from clipbias.tuning import METHODS  # not at import: it brings JAX, which drawing does without

    name = base_name(method)
    if name == "zero_shot":
        return ZERO_SHOT, "", DASHED
    if name not in METHODS or METHODS[name][1].order // 100 >= len(_FAMILIES):
        return BLACK, "X", SOLID
    families = {each: preset.order // 100 for each, (_, preset) in METHODS.items()}
    place = [each for each, family in families.items() if family == families[name]].index(name)
    return _FAMILIES[families[name]], MARKERS[place % len(MARKERS)], LINES[place % len(LINES)]
