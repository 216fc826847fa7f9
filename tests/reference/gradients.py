"""Gradients of the reference by hand: reverse through each block, for the learnables and for the attention.

`finite_differences` checks them; `sgd` runs PyTorch's rule on them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tests.reference import methods, numpy_clip, optimizers
from tests.reference.methods import Forward, Inputs, Learnables, Reference
from tests.reference.numpy_clip import Block, Tower
from tests.reference.weights import State

Gradients = dict[str, np.ndarray]
# Told of every linear layer and LayerNorm: its name, its input and the gradient of its output. What it returns goes to
# the input, beside what the layer itself passes on.
Listener = Callable[[str, np.ndarray, np.ndarray], np.ndarray | float]


def no_listener(name: str, x: np.ndarray, gradient: np.ndarray) -> float:
    """Weights that nobody trains."""
    return 0.0


def linear_backward(state: State, name: str, gradient: np.ndarray) -> np.ndarray:
    """Through `x @ Wᵀ + b`, to x."""
    return gradient @ state[f"{name}.weight"]


def layer_norm_backward(state: State, name: str, epsilon: float, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Through LayerNorm, to its input x."""
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    normed = centred / deviation
    scaled = gradient * state[f"{name}.weight"]
    along = (scaled * normed).mean(-1, keepdims=True)
    return (scaled - scaled.mean(-1, keepdims=True) - normed * along) / deviation


def activate_backward(kind: str, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Through QuickGELU: `σ(1.702 x) (1 + 1.702 x (1 - σ(1.702 x)))`."""
    if kind != "quick_gelu":
        raise NotImplementedError(f"no gradient of {kind} in the reference; use quick_gelu.")
    sigmoid = 1 / (1 + np.exp(-1.702 * x))
    return gradient * sigmoid * (1 + 1.702 * x * (1 - sigmoid))


def block_backward(
    state: State,
    name: str,
    sizes: Mapping,
    saved: Block,
    gradient: np.ndarray,
    listener: Listener = no_listener,
) -> tuple[np.ndarray, np.ndarray]:
    """From d/d(output) to d/d(input) [B, N, D] and d/d(attention) [B, H, N, N], a free variable."""
    heads, epsilon = sizes["num_attention_heads"], sizes["layer_norm_eps"]

    def through(part: str, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        return linear_backward(state, f"{name}.{part}", gradient) + listener(f"{name}.{part}", x, gradient)

    def through_norm(part: str, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        listener(f"{name}.{part}", x, gradient)
        return layer_norm_backward(state, f"{name}.{part}", epsilon, x, gradient)

    hidden = through("mlp.fc2", numpy_clip.activate(sizes["hidden_act"], saved.hidden), gradient)
    hidden = activate_backward(sizes["hidden_act"], saved.hidden, hidden)
    normed = numpy_clip.layer_norm(state, f"{name}.layer_norm2", epsilon, saved.middle)
    middle = gradient + through_norm("layer_norm2", saved.middle, through("mlp.fc1", normed, hidden))

    mixed = through("self_attn.out_proj", numpy_clip.merge_heads(saved.tapped @ saved.value), middle)
    mixed = numpy_clip.split_heads(mixed, heads)
    attention = mixed @ saved.value.swapaxes(-1, -2)
    value = saved.tapped.swapaxes(-1, -2) @ mixed
    inner = (attention * saved.attention).sum(-1, keepdims=True)
    scores = saved.attention * (attention - inner) / np.sqrt(saved.query.shape[-1])
    query, key = scores @ saved.key, scores.swapaxes(-1, -2) @ saved.query
    normed = numpy_clip.layer_norm(state, f"{name}.layer_norm1", epsilon, saved.tokens)
    total = np.zeros_like(middle)
    for part, head_gradient in (("q", query), ("k", key), ("v", value)):
        total = total + through(f"self_attn.{part}_proj", normed, numpy_clip.merge_heads(head_gradient))
    return middle + through_norm("layer_norm1", saved.tokens, total), attention


def tower_backward(
    clip: Reference,
    tower: str,
    saved: Tower,
    features: np.ndarray,
    prompts: Sequence[int],
    slots: slice,
    listener: Listener = no_listener,
    kind: Sequence[int] = (-1,),
) -> tuple[np.ndarray, dict[int, np.ndarray], np.ndarray, list[np.ndarray]]:
    """Through a whole tower, from the gradient of its features [B, d].

    Returns the gradients of the embedded tokens [B, N, D], of the prompts put in at each layer {l: [T, D]},
    of the biases after each layer, and of the attention of each layer ([B, H, N, N] each).

    Args:
      kind: the shape of each layer's bias (`numpy_clip.spread`).
    """
    sizes = clip.config[f"{tower}_config"]
    epsilon = sizes["layer_norm_eps"]
    name, final, projection = {
        "vision": ("vision_model", "post_layernorm", "visual_projection"),
        "text": ("text_model", "final_layer_norm", "text_projection"),
    }[tower]
    x = np.zeros_like(saved.last)
    pooled = features @ clip.state[f"{projection}.weight"]
    read = saved.last[np.arange(len(x)), saved.rows]
    listener(f"{name}.{final}", read, pooled)
    x[np.arange(len(x)), saved.rows] = layer_norm_backward(clip.state, f"{name}.{final}", epsilon, read, pooled)
    prompt_gradients: dict[int, np.ndarray] = {}
    biases: list[np.ndarray] = []
    attention: list[np.ndarray] = []
    for l in reversed(range(sizes["num_hidden_layers"])):
        biases.insert(0, spread_backward(kind, saved.rows, x))
        layer = f"{name}.encoder.layers.{l}"
        x, probabilities = block_backward(clip.state, layer, sizes, saved.blocks[l], x, listener)
        attention.insert(0, probabilities)
        if l in prompts:
            prompt_gradients[l] = x[:, slots].sum(0)
            # What was replaced has no influence any more.
            x[:, slots] = 0.0
    if tower == "vision":
        listener(f"{name}.pre_layrnorm", saved.embedded, x)
        x = layer_norm_backward(clip.state, f"{name}.pre_layrnorm", epsilon, saved.embedded, x)
    return x, prompt_gradients, np.stack(biases), attention


def spread_backward(kind: Sequence[int], rows: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """From what is added to each token [B, N, D] to a bias of shape `kind`, through `numpy_clip.spread`."""
    if len(kind) == 1:
        return gradient.sum((0, 1))
    if kind[0] == 2:
        read = gradient[np.arange(len(rows)), rows].sum(0)
        return np.stack([read, gradient.sum((0, 1)) - read])
    found, count = np.zeros(kind), min(kind[0], gradient.shape[1])
    found[:count] = gradient[:, :count].sum(0)
    return found


def unit_backward(x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Through `x / ‖x‖` over the last axis."""
    length = np.sqrt((x**2).sum(-1, keepdims=True))
    direction = x / length
    return (gradient - direction * (gradient * direction).sum(-1, keepdims=True)) / length


def cross_entropy_backward(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of the mean cross-entropy, to the logits [B, C]."""
    gradient = numpy_clip.softmax(scores)
    gradient[np.arange(len(labels)), labels] -= 1
    return gradient / len(labels)


def pull_back(
    clip: Reference, inputs: Inputs, saved: Forward, scores: np.ndarray, listener: Listener = no_listener
) -> tuple[Gradients, list, list]:
    """From the gradient of the logits [B, C] to those of the inputs, of vision and of text attention."""
    return pull_back_features(clip, inputs, saved, *logits_backward(clip, saved, scores), listener)


def logits_backward(clip: Reference, saved: Forward, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Through `exp(logit_scale) · cos` to both un-normalised features, [B, d] and [C, d]."""
    scaled = np.exp(clip.state["logit_scale"]) * scores
    images, texts = numpy_clip.unit(saved.vision.features), numpy_clip.unit(saved.text_features)
    image_gradient = unit_backward(saved.vision.features, scaled @ texts)
    return image_gradient, unit_backward(saved.text_features, scaled.T @ images)


def pull_back_features(
    clip: Reference,
    inputs: Inputs,
    saved: Forward,
    image_gradient: np.ndarray,
    text_gradient: np.ndarray,
    listener: Listener = no_listener,
) -> tuple[Gradients, list, list]:
    """From the gradients of the un-normalised features, [B, d] and [C, d], to the same as `pull_back`."""
    depth, count = (0, 0) if inputs.vision_prompts is None else inputs.vision_prompts.shape[:2]
    slots = slice(saved.vision.embedded.shape[1] - count, None)
    deep = range(1, depth) if count else ()
    x, by_layer, vision_bias, vision_attention = tower_backward(
        clip, "vision", saved.vision, image_gradient, deep, slots, listener, _kind(inputs.vision_bias)
    )
    gradients = {"vision_bias": vision_bias, "text_residual": text_gradient}
    if count:
        gradients["vision_prompts"] = np.stack([x[:, slots].sum(0), *(by_layer[l] for l in deep)])

    context = inputs.places.shape[1]
    text_slots = slice(1, 1 + context)
    x, by_layer, gradients["text_bias"], text_attention = tower_backward(
        *(clip, "text", saved.text, text_gradient, list(inputs.text_prompts), text_slots, listener),
        kind=_kind(inputs.text_bias),
    )
    if context:
        gradients["text_context"] = np.stack([x[c, places] for c, places in enumerate(inputs.places)])
        gradients["text_prompts"] = np.array([by_layer[l] for l in sorted(by_layer)])
    return gradients, vision_attention, text_attention


def _kind(bias: np.ndarray | None) -> tuple[int, ...]:
    return (-1,) if bias is None else bias.shape[1:]


def loss_and_gradients(
    clip: Reference,
    method: str,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    **options: Any,
) -> tuple[float, Gradients]:
    """Mean cross-entropy and its gradient with respect to every learnable."""
    learnables = {name: np.asarray(value, np.float64) for name, value in learnables.items()}
    inputs = methods.prepare(clip, method, class_names, learnables, **options)
    saved = methods.forward(clip, inputs, images)
    gradients, _, _ = pull_back(clip, inputs, saved, cross_entropy_backward(saved.logits, labels))
    loss = numpy_clip.cross_entropy(saved.logits, labels)
    if method == "taskres":
        gradients["text_residual"] = options.get("alpha", 0.5) * gradients["text_residual"]
    if method == "maple":
        gradients["text_context"] = gradients["text_context"].sum(0)
        gradients = _through_the_maps(learnables, gradients)
    return loss, of_learnables(gradients, learnables)


def of_learnables(gradients: Gradients, learnables: Learnables) -> Gradients:
    """The inputs' gradients that belong to learnables; a context shared by the classes has the sum of theirs."""
    found = {name: gradients[name] for name in learnables}
    if "text_context" in found and found["text_context"].ndim > learnables["text_context"].ndim:
        found["text_context"] = found["text_context"].sum(0)
    return {name: gradient.reshape(learnables[name].shape) for name, gradient in found.items()}


def _through_the_maps(learnables: Learnables, gradients: Gradients) -> Gradients:
    """MaPLe: each layer's vision prompt gradient goes on to its map and to that layer's text prompts."""
    rows = [learnables["text_context"], *learnables["text_prompts"]]
    text = [gradients["text_context"], *gradients["text_prompts"]]
    kernels, biases = [], []
    for l, (row, kernel) in enumerate(zip(rows, learnables["projection_kernel"], strict=True)):
        prompt = gradients["vision_prompts"][l]
        kernels.append(row.T @ prompt)
        biases.append(prompt.sum(0))
        text[l] = text[l] + prompt @ kernel.T
    return {
        "text_context": text[0],
        "text_prompts": np.array(text[1:]),
        "projection_kernel": np.stack(kernels),
        "projection_bias": np.stack(biases),
    }


def finite_differences(function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of a scalar function at `x`, one element after the other."""
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        values = []
        for sign in (1, -1):
            moved = np.array(x, np.float64)
            moved[index] += sign * step
            values.append(function(moved))
        gradient[index] = (values[0] - values[1]) / (2 * step)
    return gradient


def sgd(
    gradient: Callable[[Gradients], Gradients],
    learnables: Learnables,
    learning_rates: Sequence[float],
    *,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> Gradients:
    """PyTorch's SGD, one step per learning rate: `g += wd p; v = 0.9 v + g; p -= lr v`."""
    optimizer = optimizers.SGD(momentum=momentum, weight_decay=weight_decay)
    return optimizers.run(optimizer, gradient, learnables, learning_rates)
