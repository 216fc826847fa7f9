"""How figures draw each method and each kind of method. None relies on its colour alone."""

from typing import Any

from clipbias.report import style
from clipbias.report.names import base_name

# In the order in which they are shown: title, colour and marker of a kind of method.
KINDS = {
    "training-free": ("Training-free", style.BLACK, "o"),
    "head": ("Heads", style.BLUE, "s"),
    "prompts": ("Prompts", style.GREEN, "^"),
    "weights": ("Weights", style.RED, "D"),
    "test-time": ("Test-time", style.PURPLE, "P"),
    None: ("Others", style.GREY, "X"),
}
MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">", "p", "h", "*")
# The method whose line is thicker and above the others, and whose name is bold.
STANDS_OUT = "bias"


def method_look(method: str) -> tuple[str, str, Any]:
    """Colour, marker and line of a method, at whatever learning rate.

    They follow from its place among the built-in ones: no two of these look the same. All others are black crosses.
    """
    from clipbias.tuning import METHODS  # not at import: it brings JAX, which drawing does without

    names = [STANDS_OUT, *(name for name in METHODS if name not in (STANDS_OUT, "zero_shot"))]
    if base_name(method) == "zero_shot":
        return style.ZERO_SHOT, "", style.DASHED
    if base_name(method) not in names:
        return style.BLACK, "X", style.SOLID
    place, colours = names.index(base_name(method)), (style.RED, *(c for c in style.COLOURS if c != style.RED))
    line = style.LINES[place // len(colours) % len(style.LINES)]
    return colours[place % len(colours)], MARKERS[place % len(MARKERS)], line
