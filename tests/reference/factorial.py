"""What attention, scale and values do apart: every mixture of a reference run and a tuned one, token by token.

Letters as in `numpy_clip`; `n` input tokens: all but the *slots*, the positions that a method fills with learned
tokens. Of both runs, for every layer, head and input token as a query: `A` [n], attention among inputs, renormalised
to 1; `m`, the mass on slots; and `s = W_o cat_h(Σ_slots a v)` [D], without the output's bias. A mixture takes each of
them from one run and advances its own input tokens, without slots:

    x_i += W_o cat_h((1 − m_ih) Σ_j A_ij v_j(x)) + b_o + s_i;  x_i += MLP(LN2(x_i));  x_i += bias

`s` comes with everything else that is neither of the other two: weights, biases, the first block's tokens, the readout.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.reference import methods, numpy_clip
from tests.reference.methods import Inputs, Reference
from tests.reference.numpy_clip import Tower
from tests.reference.weights import State

WITH_SLOTS = ("attention", "scale", "values")
WITHOUT_SLOTS = ("attention", "values")
LAST_NORM = {"vision": "vision_model.post_layernorm", "text": "text_model.final_layer_norm"}
PROJECTION = {"vision": "visual_projection.weight", "text": "text_projection.weight"}


@dataclasses.dataclass
class Run:
    """One tower's forward pass and the weights that it was made with."""

    tower: str  # "vision" or "text"
    state: State
    sizes: Mapping
    forward: Tower
    inputs: np.ndarray  # [B, n] positions that are no slots
    bias: np.ndarray | None  # added after each block, of a shape that `numpy_clip.spread` takes

    @property
    def start(self) -> np.ndarray:
        """[B, n, D] input tokens at the first block."""
        return np.stack([x[at] for x, at in zip(self.forward.blocks[0].tokens, self.inputs, strict=True)])


@dataclasses.dataclass
class Parts:
    """What one run says of one layer."""

    attention: np.ndarray  # [B, H, n, n] among inputs, rows sum to 1
    mass: np.ndarray  # [B, H, n] on slots
    added: np.ndarray  # [B, n, D] what slots add


def parts(run: Run, layer: int) -> Parts:
    """`A`, `m` and `s` of a layer."""
    seen = run.forward.blocks[layer]
    output = run.state[f"{run.tower}_model.encoder.layers.{layer}.self_attn.out_proj.weight"]
    batch, heads, length, width = seen.value.shape
    count = run.inputs.shape[1]
    attention, mass = np.zeros((batch, heads, count, count)), np.zeros((batch, heads, count))
    added = np.zeros((batch, count, heads * width))
    for b in range(batch):
        inputs = run.inputs[b]
        slots = np.setdiff1d(np.arange(length), inputs)
        for i, query in enumerate(inputs):
            for h in range(heads):
                row = seen.attention[b, h, query]
                mass[b, h, i] = sum(row[slots])
                attention[b, h, i] = row[inputs] / sum(row[inputs])
                from_slots = sum((row[k] * seen.value[b, h, k] for k in slots), np.zeros(width))
                added[b, i] += output[:, h * width : (h + 1) * width] @ from_slots
    return Parts(attention, mass, added)


def streams(effects: Sequence[str]) -> list[str]:
    """Names of all corners, one letter for each effect."""
    return ["".join(letters) for letters in itertools.product("RP", repeat=len(effects))]


def features(reference: Run, tuned: Run, stream: str, effects: Sequence[str]) -> np.ndarray:
    """[B, d] features of one mixture, un-normalised; `stream` has a letter, "R" or "P", for each of `effects`."""
    takes = dict(zip(effects, stream, strict=True))
    runs = {"R": reference, "P": tuned}
    run = runs[takes["values"]]  # whose weights advance the tokens
    x = run.start
    for l in range(len(run.forward.blocks)):
        attention = parts(runs[takes["attention"]], l).attention
        mass = parts(runs[takes.get("scale", takes["values"])], l).mass
        added = parts(run, l).added
        x = np.stack([block(run, l, *sample) for sample in zip(x, attention, mass, added, strict=True)])
        if run.bias is not None:
            every = numpy_clip.spread(run.bias[l], run.forward.rows, run.forward.last.shape[1])
            x = x + np.stack([rows[at] for rows, at in zip(every, run.inputs, strict=True)])
    return readout(run, x)


def readout(run: Run, x: np.ndarray) -> np.ndarray:
    """[B, d] of input tokens [B, n, D] after the last block."""
    rows = np.stack([x[b, list(run.inputs[b]).index(row)] for b, row in enumerate(run.forward.rows)])
    normed = numpy_clip.layer_norm(run.state, LAST_NORM[run.tower], run.sizes["layer_norm_eps"], rows)
    return normed @ run.state[PROJECTION[run.tower]].T


def block(run: Run, layer: int, x: np.ndarray, attention: np.ndarray, mass: np.ndarray, added: np.ndarray):
    """One sample's tokens [n, D] after a block, with `attention` [H, n, n], `mass` [H, n] and `added` [n, D] given."""
    name = f"{run.tower}_model.encoder.layers.{layer}"
    epsilon = run.sizes["layer_norm_eps"]
    values = numpy_clip.linear(
        run.state, f"{name}.self_attn.v_proj", numpy_clip.layer_norm(run.state, f"{name}.layer_norm1", epsilon, x)
    )
    width = values.shape[-1] // len(attention)
    heads = np.zeros_like(values)
    for h in range(len(attention)):
        columns = slice(h * width, (h + 1) * width)
        for i in range(len(x)):
            heads[i, columns] = (1 - mass[h, i]) * (attention[h, i] @ values[:, columns])
    x = x + numpy_clip.linear(run.state, f"{name}.self_attn.out_proj", heads) + added
    hidden = numpy_clip.linear(
        run.state, f"{name}.mlp.fc1", numpy_clip.layer_norm(run.state, f"{name}.layer_norm2", epsilon, x)
    )
    return x + numpy_clip.linear(run.state, f"{name}.mlp.fc2", numpy_clip.activate(run.sizes["hidden_act"], hidden))


def vision_run(clip: Reference, images: np.ndarray, inputs: Inputs | None = None) -> Run:
    """The vision tower with a method's prompts and bias, or without: `[cls]` and patches are its input tokens."""
    prompts, bias = (None, None) if inputs is None else (inputs.vision_prompts, inputs.vision_bias)
    forward = numpy_clip.encode_image(clip.state, clip.config, images, prompts=prompts, bias=bias)
    sizes = clip.config["vision_config"]
    count = 1 + (sizes["image_size"] // sizes["patch_size"]) ** 2
    positions = np.broadcast_to(np.arange(count), (len(forward.features), count))
    return Run("vision", clip.state, sizes, forward, positions, bias)


def text_run(clip: Reference, inputs: Inputs) -> Run:
    """The text tower with what `inputs` put in; all but the context's places are its input tokens."""
    forward = numpy_clip.encode_text(
        clip.state,
        clip.config,
        inputs.tokens,
        embeddings=inputs.embeddings,
        prompts=inputs.text_prompts,
        bias=inputs.text_bias,
    )
    length = inputs.tokens.shape[1]
    positions = np.array([np.setdiff1d(np.arange(length), places) for places in inputs.places])
    return Run("text", clip.state, clip.config["text_config"], forward, positions, inputs.text_bias)


def reference_inputs(
    clip: Reference, method: str, class_names: Sequence[str], context: np.ndarray | None, **options: Any
) -> Inputs:
    """What the reference run's text tower reads: the context as it was before training, and nothing after that."""
    learnables = {} if context is None else {"text_context": context}
    # MaPLe's text is IVLP's; its vision prompts would want maps.
    return methods.prepare(clip, "ivlp" if method == "maple" else method, class_names, learnables, **options)


def shapley(outcome: Mapping[str, np.ndarray], effects: Sequence[str]) -> dict[str, np.ndarray]:
    """The mean, over all orders in which effects go from R to P, of what each changes when its turn comes."""
    totals = {effect: np.zeros_like(np.asarray(outcome["R" * len(effects)], np.float64)) for effect in effects}
    for order in itertools.permutations(range(len(effects))):
        letters = ["R"] * len(effects)
        for turn in order:
            before = outcome["".join(letters)]
            letters[turn] = "P"
            totals[effects[turn]] += np.asarray(outcome["".join(letters)], np.float64) - before
    return {effect: total / math.factorial(len(effects)) for effect, total in totals.items()}


def log_likelihood(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[B] log-likelihood of the true class, of [B, C] logits."""
    highest = logits.max(-1, keepdims=True)
    return logits[np.arange(len(labels)), labels] - highest[:, 0] - np.log(np.exp(logits - highest).sum(-1))
