"""Refusals of an `Adaptation`'s parts that do not fit a tower, each in one sentence."""

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip.adaptation import Adaptation
from clipbias.clip.config import ClipConfig, TextConfig, TowerConfig
from clipbias.clip.layers import Weights
from clipbias.errors import ClipbiasError


def check_prompts(prompts: jax.Array | None, geometry: TowerConfig, name: str, *, extra: int = 0) -> jax.Array | None:
    """Refuses prompts that do not fit the tower; an empty set of prompts counts as none."""
    if prompts is None or 0 in prompts.shape:
        return None
    if prompts.ndim != 3 or prompts.shape[-1] != geometry.width or prompts.shape[0] + extra > geometry.layers:
        raise ClipbiasError(
            f"{name} has shape {prompts.shape}; expected [depth, tokens, {geometry.width}] with depth at most "
            f"{geometry.layers - extra}."
        )
    return prompts


def check_bias(
    bias: jax.Array | None, geometry: TowerConfig, name: str, tokens: int, *, kinds: int = 2
) -> jax.Array | None:
    """Refuses a bias that has neither one row per layer, nor one per kind, nor one for each of so many `tokens`.

    Of a single kind it is returned as one row per layer.
    """
    if bias is None:
        return None
    vector = (geometry.layers, geometry.width)
    by_kind = (geometry.layers, kinds, geometry.width)
    by_token = (geometry.layers, tokens, geometry.width)
    if bias.shape not in (vector, by_kind, by_token):
        raise ClipbiasError(
            f"{name} has shape {bias.shape}; expected {vector}, {by_kind} by kind or {by_token} by token."
        )
    return bias[:, 0] if bias.shape == by_kind and kinds == 1 else bias


def check_inserted(adaptation: Adaptation, name: str, config: ClipConfig) -> jax.Array | None:
    """Tokens of a tower's blocks, `[n, T, D]`. Refuses those that do not fit, or not beside the other parts."""
    width = getattr(config, name).width
    most = config.common_blocks
    tokens = getattr(adaptation, f"{name}_tokens")
    bias = getattr(adaptation, f"{name}_bias")
    if tokens is None:
        return None
    if tokens.ndim != 3 or not 1 <= tokens.shape[0] <= most or tokens.shape[-1] != width:
        raise ClipbiasError(
            f"{name}_tokens have shape {tokens.shape}; expected [n, tokens, {width}] with n from 1 to {most}."
        )
    others = (f"{name}_prompts", "text_class_prompts") if name == "text" else (f"{name}_prompts",)
    if any(getattr(adaptation, part) is not None for part in others) or (bias is not None and bias.ndim > 2):
        raise ClipbiasError(
            f"{name}_tokens stand beside prompts of later blocks or a bias that differs between tokens; give one alone."
        )
    return tokens.astype(jnp.float32)


def check_adapters(adapters: Weights | None, config: ClipConfig, name: str) -> Weights | None:
    """Refuses networks that do not fit beside a tower's blocks."""
    if adapters is None:
        return None
    width = getattr(config, name).width
    most = config.common_blocks
    count = np.shape(adapters["down"]["kernel"])[0]
    inputs = width
    for part in [part for part in ("down", "middle", "up") if part != "middle" or part in adapters]:
        kernel = np.shape(adapters[part]["kernel"])
        bias = np.shape(adapters[part]["bias"])
        outputs = width if part == "up" else kernel[-1]
        if kernel != (count, inputs, outputs) or bias != (count, outputs) or count > most:
            raise ClipbiasError(
                f"{name}_adapters have {part!r} of shapes {kernel} and {bias}; expected {(count, inputs, outputs)} and "
                f"{(count, outputs)}, of at most {most} blocks."
            )
        inputs = outputs
    return adapters


def class_block(adaptation: Adaptation, geometry: TextConfig) -> int:
    """The block at whose input `text_class_prompts` are put in."""
    return min(adaptation.text_class_block, geometry.layers - 1)


def check_text_parts(adaptation: Adaptation, config: ClipConfig, texts: int, tokens: int) -> None:
    """Refuses text parts of an adaptation that do not fit the tower or the number of texts."""
    geometry = config.text
    context = adaptation.text_context
    check_prompts(adaptation.text_prompts, geometry, "text_prompts", extra=1)
    check_bias(adaptation.text_bias, geometry, "text_bias", geometry.context_length)
    check_adapters(adaptation.text_adapters, config, "text")
    if tokens > geometry.context_length:
        raise ClipbiasError(f"the texts have {tokens} tokens; this model reads at most {geometry.context_length}.")
    prompts = adaptation.text_class_prompts
    block = class_block(adaptation, geometry)
    if prompts is not None:
        if prompts.ndim != 3 or prompts.shape[0] != texts or prompts.shape[-1] != geometry.width:
            raise ClipbiasError(
                f"text_class_prompts have shape {prompts.shape}; expected [{texts}, T, {geometry.width}], of each text."
            )
        if block < 1 or adaptation.text_prompts is not None:
            raise ClipbiasError(
                f"text_class_prompts are put in at block {block}; it must be 1 at least, in a tower of two blocks or "
                "more, without text_prompts beside them."
            )
    if context is None:
        return
    if context.shape[-1] != geometry.width or context.ndim not in (2, 3):
        raise ClipbiasError(
            f"text_context has shape {context.shape}; expected [T, {geometry.width}] or [C, T, {geometry.width}]."
        )
    if context.ndim == 3 and texts % context.shape[0]:
        raise ClipbiasError(f"text_context holds {context.shape[0]} contexts; {texts} texts cannot share them evenly.")
