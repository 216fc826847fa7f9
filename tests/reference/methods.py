"""Every tuning method's rule, as its authors' code computes it, from its learnables to logits.

The learnables are dicts of arrays:

| method | learnables |
| --- | --- |
| zero_shot | none |
| coop | `text_context` [T, Dt], or [C, T, Dt] class-specific |
| vpt | `vision_prompts` [depth, V, Dv] |
| ivlp | `text_context` [T, Dt], `text_prompts` [depth - 1, T, Dt], `vision_prompts` [depth, V, Dv] |
| maple | `text_context`, `text_prompts`, `projection_kernel` [depth, Dt, Dv], `projection_bias` [depth, Dv] |
| taskres | `text_residual` [C, d] |
| bias | `vision_bias` [Lv, Dv], `text_bias` [Lt, Dt] |
| bias_by_kind | `vision_bias` [Lv, 2, Dv], `text_bias` [Lt, 2, Dt], the first for the token that is read out |
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.reference import numpy_clip, weights
from tests.reference.numpy_clip import Branch, Tower
from tests.reference.tokenizer import SimpleTokenizer
from tests.reference.weights import State

Learnables = Mapping[str, np.ndarray]

WORDED = "a photo of a {}."


@dataclasses.dataclass
class Reference:
    """A CLIP for this reference: float64 weights, the Hugging Face config and a tokenizer."""

    state: State
    config: Mapping
    tokenizer: SimpleTokenizer


@dataclasses.dataclass
class Inputs:
    """What a method feeds to the two towers."""

    tokens: np.ndarray  # [C, N]
    embeddings: np.ndarray  # [C, N, Dt] before position embeddings
    places: np.ndarray  # [C, T] where the context tokens stand
    text_prompts: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)  # {layer: [T, Dt] or [C, T, Dt]}
    text_bias: np.ndarray | None = None
    vision_prompts: np.ndarray | None = None  # [depth, V, Dv]
    vision_bias: np.ndarray | None = None
    text_residual: np.ndarray | float = 0.0  # already times alpha


def texts_of(class_names: Sequence[str], template: str) -> list[str]:
    """A template's texts."""
    return [template.format(name.replace("_", " ")) for name in class_names]


def fill(clip: Reference, texts: Sequence[str], context: np.ndarray | None = None) -> Inputs:
    """The inputs of texts, in which a context [T, Dt] stands for tokens 1 … T."""
    tokens = clip.tokenizer.tokenize(texts)
    embeddings = numpy_clip.token_embeddings(clip.state, tokens).copy()
    count = 0 if context is None else len(context)
    if context is not None:
        embeddings[:, 1 : 1 + count] = context
    return Inputs(tokens, embeddings, np.tile(1 + np.arange(count), (len(tokens), 1)))


def run_image(clip: Reference, images: np.ndarray, inputs: Inputs | None = None, **options: Any) -> Tower:
    """The vision tower with a method's inputs, or plain; `options` of `numpy_clip.run_blocks`."""
    if inputs is not None:
        options |= {"prompts": inputs.vision_prompts, "bias": inputs.vision_bias}
    return numpy_clip.encode_image(clip.state, clip.config, images, **options)


def run_text(clip: Reference, inputs: Inputs, **options: Any) -> Tower:
    """The text tower with a method's inputs."""
    options |= {"embeddings": inputs.embeddings, "prompts": inputs.text_prompts, "bias": inputs.text_bias}
    return numpy_clip.encode_text(clip.state, clip.config, inputs.tokens, **options)


def plain_text(clip: Reference, class_names: Sequence[str], template: str) -> np.ndarray:
    """Un-normalised text features [C, d] of a template under the frozen model."""
    return run_text(clip, fill(clip, texts_of(class_names, template))).features


def prepare(
    clip: Reference,
    method: str,
    class_names: Sequence[str],
    learnables: Learnables,
    *,
    template: str = WORDED,
    position: str = "end",
    worded: bool = True,
    alpha: float = 0.5,
) -> Inputs:
    """The inputs of both towers.

    Args:
      template: the prompt of zero_shot and taskres; the other methods write "a photo of a {}." everywhere.
      position: where coop puts the class name: "end", "middle" or "front".
      worded: coop's context began as the words "a photo of a", else its text holds placeholder words X.
      alpha: taskres's scale of the residual.
    """
    learnables = {name: np.asarray(value, np.float64) for name, value in learnables.items()}
    context = learnables.get("text_context", np.zeros((0, 0)))
    count = context.shape[-2]
    if method not in ("zero_shot", "taskres"):
        # With fewer than four prompts the text keeps all four words; the prompts stand in for the first ones.
        placeholders = count and (not worded if method == "coop" else count > 4)
        template = " ".join(["X"] * count) + " {}." if placeholders else WORDED
    inputs = fill(clip, texts_of(class_names, template))
    inputs.places = np.zeros((len(class_names), count), int)
    for c, name in enumerate(class_names if count else ()):
        class_context = context[c] if context.ndim == 3 else context
        start, rest = inputs.embeddings[c, :1], inputs.embeddings[c, 1 + count :]
        length = len(clip.tokenizer.encode(name.replace("_", " ")))
        before = {"end": 0, "front": length, "middle": length}[position]
        first = {"end": count, "front": 0, "middle": count // 2}[position]
        inputs.places[c, :first] = 1 + np.arange(first)
        inputs.places[c, first:] = 1 + before + np.arange(first, count)
        parts = [start, class_context[:first], rest[:before], class_context[first:], rest[before:]]
        inputs.embeddings[c] = np.concatenate(parts)
    inputs.text_prompts = {l + 1: row for l, row in enumerate(learnables.get("text_prompts", ())) if count}
    inputs.text_bias, inputs.vision_bias = learnables.get("text_bias"), learnables.get("vision_bias")
    inputs.vision_prompts = learnables.get("vision_prompts")
    if method == "maple":  # linear maps of the text prompts, layer by layer
        rows = [learnables["text_context"], *learnables["text_prompts"]]
        maps = zip(rows, learnables["projection_kernel"], learnables["projection_bias"], strict=True)
        inputs.vision_prompts = np.stack([row @ kernel + bias for row, kernel, bias in maps])
    if method == "taskres":
        inputs.text_residual = alpha * learnables["text_residual"]
    return inputs


@dataclasses.dataclass
class Forward:
    """One forward pass of a method: both towers, the class features and the logits."""

    vision: Tower
    text: Tower
    text_features: np.ndarray  # [C, d] un-normalised, residual included
    logits: np.ndarray  # [B, C]


def forward(
    clip: Reference,
    inputs: Inputs,
    images: np.ndarray,
    *,
    vision_taps: Sequence[np.ndarray] | None = None,
    text_taps: Sequence[np.ndarray] | None = None,
    branch: Branch = numpy_clip.no_branch,
) -> Forward:
    """Logits of `images` [B, R, R, 3] over the classes.

    `taps` are added to the attention probabilities, `branch` to the linear layers of both towers.
    """
    vision = run_image(clip, images, inputs, taps=vision_taps, branch=branch)
    text = run_text(clip, inputs, taps=text_taps, branch=branch)
    text_features = text.features + inputs.text_residual
    return Forward(vision, text, text_features, numpy_clip.logits(clip.state, vision.features, text_features))


def task_logits(
    clip: Reference, method: str, class_names: Sequence[str], learnables: Learnables, images: np.ndarray, **options: Any
) -> np.ndarray:
    """[B, C] logits of a method."""
    return forward(clip, prepare(clip, method, class_names, learnables, **options), images).logits


def entropy_of(scores: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """The loss of a method whose only term is the mean cross-entropy, and its logits [B, C]."""
    return {"cross_entropy": numpy_clip.cross_entropy(scores, labels)}, scores


def losses(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    method: str,
    **options: Any,
) -> tuple[dict[str, float], np.ndarray]:
    """`entropy_of` a method of this module."""
    return entropy_of(task_logits(clip, method, class_names, learnables, images, **options), labels)


def random_learnables(
    config: Mapping,
    method: str,
    classes: int,
    *,
    text: int = 4,
    vision: int = 4,
    text_depth: int | None = None,
    vision_depth: int | None = None,
    class_specific: bool = False,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Learnables of a method (float32), large enough that no term is lost in rounding.

    A depth of None is the whole tower; `text` or `vision` of 0 leaves that tower's prompts out (ivlp).
    """
    text_width, vision_width = (config[f"{tower}_config"]["hidden_size"] for tower in ("text", "vision"))
    text_layers, vision_layers = (config[f"{tower}_config"]["num_hidden_layers"] for tower in ("text", "vision"))
    text_depth, vision_depth = text_depth or text_layers, vision_depth or vision_layers
    shapes: dict[str, tuple[int, ...]] = {}
    if method in ("coop", "ivlp", "maple") and text:
        shapes["text_context"] = (classes, text, text_width) if class_specific else (text, text_width)
    if method in ("ivlp", "maple") and text:
        shapes["text_prompts"] = (text_depth - 1, text, text_width)
    if method in ("vpt", "ivlp") and vision:
        shapes["vision_prompts"] = (vision_depth, vision, vision_width)
    if method == "maple":
        shapes["projection_kernel"] = (text_depth, text_width, vision_width)
        shapes["projection_bias"] = (text_depth, vision_width)
    if method == "taskres":
        shapes["text_residual"] = (classes, config["projection_dim"])
    if method in ("bias", "bias_by_kind"):
        kinds = (2,) if method == "bias_by_kind" else ()
        shapes["vision_bias"] = (vision_layers, *kinds, vision_width)
        shapes["text_bias"] = (text_layers, *kinds, text_width)
    return {
        name: np.float32(0.3) * weights.deterministic_uniform(1000 + seed, stream, shape)
        for stream, (name, shape) in enumerate(shapes.items())
    }
