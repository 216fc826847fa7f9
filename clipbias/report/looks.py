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


# By the hundreds of a preset's place in tables: zero-shot, CoOp's family, VPT's, IVLP's, MaPLe's, heads, and weights.
_FAMILIES = (style.ZERO_SHOT, style.ORANGE, style.SKY, style.GREEN, style.PURPLE, style.GREY, style.RED)


def method_look(method: str) -> tuple[str, str, Any]:
    """Colour, marker and line of a method, at whatever learning rate.

    Families have a colour each, and their members differ in marker and line: no two built-in methods look the same.
    What is not built in is a black cross.
    """
    from clipbias.tuning import METHODS  # not at import: it brings JAX, which drawing does without

    name = base_name(method)
    if name == "zero_shot":
        return style.ZERO_SHOT, "", style.DASHED
    if name not in METHODS or METHODS[name][1].order // 100 >= len(_FAMILIES):
        return style.BLACK, "X", style.SOLID
    families = {each: preset.order // 100 for each, (_, preset) in METHODS.items()}
    place = [each for each, family in families.items() if family == families[name]].index(name)
    return _FAMILIES[families[name]], MARKERS[place % len(MARKERS)], style.LINES[place % len(style.LINES)]
