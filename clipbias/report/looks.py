"""How figures draw each method. No two built-in methods look the same, and none relies on its colour alone."""

from typing import Any

from clipbias.report.names import base_name, method_kind
from clipbias.report.style import (
    BLACK,
    BLUE,
    DASH_DOTTED,
    DASHED,
    DOTTED,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    SOLID,
    YELLOW,
)

# Colour, marker and line.
Look = tuple[str, str, Any]

LOOKS: dict[str, Look] = {
    "zero_shot": (BLUE, "", DASHED),
    "coop": (ORANGE, "s", SOLID),
    "coop_16": (ORANGE, "s", DOTTED),
    "upl": (ORANGE, "*", SOLID),
    "tpt": (ORANGE, "h", SOLID),
    "tpt_coop": (ORANGE, "h", DOTTED),
    "cocoop": (ORANGE, "o", (0, (3, 1, 1, 1, 1, 1))),
    "kgcoop": (ORANGE, "^", DASHED),
    "prograd": (ORANGE, "d", DASH_DOTTED),
    "tcp": (ORANGE, "P", SOLID),
    "plot": (YELLOW, "h", SOLID),
    "proda": (YELLOW, "8", SOLID),
    "vpt": (SKY, "^", SOLID),
    "vpt_shallow": (SKY, "^", DOTTED),
    "visual_prompting": (SKY, "s", SOLID),
    "ivlp": (GREEN, "D", SOLID),
    "ivlp_9": (GREEN, "D", DOTTED),
    "ivlp_2_2": (GREEN, "D", DASH_DOTTED),
    "ivlp_matched": (GREEN, "d", (0, (3, 1.5))),
    "ivlp_matched_2": (GREEN, "d", (0, (3, 1, 1, 1, 1, 1))),
    "promptsrc": (GREEN, "^", DASHED),
    "promptsrc_base_to_new": (GREEN, "^", DOTTED),
    "promptsrc_cross_dataset": (GREEN, "^", DASH_DOTTED),
    "plot_plus_plus": (YELLOW, "H", DASHED),
    "maple": (PURPLE, "v", SOLID),
    "mmrl": (PURPLE, "<", SOLID),
    "mmrl_base_to_new": (PURPLE, "<", DOTTED),
    "mmrl_cross_dataset": (PURPLE, "<", DASH_DOTTED),
    "taskres": (GREY, "P", SOLID),
    "linear_probe": (BLACK, "x", DOTTED),
    "clip_adapter": (SKY, "<", SOLID),
    "tip_adapter": (ORANGE, ">", DOTTED),
    "tip_adapter_f": (ORANGE, ">", SOLID),
    "gda": (PURPLE, "d", SOLID),
    "lp_plus_plus": (GREEN, "h", DOTTED),
    "clap": (YELLOW, "p", SOLID),
    "zs_lp": (YELLOW, "p", DOTTED),
    "prolip": (BLUE, "p", SOLID),
    "bias": (RED, "o", SOLID),
    "bias_by_kind": (RED, "P", (0, (4, 1.5))),
    "bias_by_kind_vision": (RED, "P", DOTTED),
    "layer_norm": (GREEN, "^", SOLID),
    "bitfit": (ORANGE, "v", SOLID),
    "clip_lora": (PURPLE, "D", SOLID),
    "two_stage": (GREEN, "s", SOLID),
    "mma": (SKY, "P", SOLID),
}

# Of a method that is not listed, such as a user's own, by its kind.
BY_KIND: dict[str | None, Look] = {
    "training-free": (BLACK, "X", SOLID),
    "head": (BLUE, "X", SOLID),
    "prompts": (GREEN, "X", SOLID),
    "weights": (RED, "X", SOLID),
    "test-time": (PURPLE, "X", SOLID),
    None: (BLACK, "X", SOLID),
}

# The method whose line is thicker and above the others, and whose name is bold.
STANDS_OUT = "bias"


def method_look(method: str) -> Look:
    """Colour, marker and line of a method, at whatever learning rate."""
    return LOOKS.get(base_name(method)) or BY_KIND[method_kind(method)]
