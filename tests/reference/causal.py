"""The causal test token by token in float64: frozen blocks with a run's attention, and with what another adds.

Letters as in `numpy_clip`; `n` input tokens: all but the *slots*, the positions that a method fills with learned
tokens. Of both runs, for every layer, head and input token as a query: `A` [n], attention among inputs, renormalised
to 1; and `m`, the mass on slots. What a run adds to each input token: before the first block; to attention's output,
what the tuned attention gives that the frozen one on the same tokens, with the same `A` and `m` and nothing of slots,
does not; and to the MLP's output, what the tuned MLP (and all behind it) gives that the frozen one on the same tokens
behind attention does not. A stream advances its own input tokens:

    x_i += W_o cat_h((1 − m_ih) Σ_j A_ij v_j(x)) + b_o + attention_i;  x_i += MLP(LN2(x_i)) + mlp_i

with the frozen weights. The readout is that of the run whose tokens it has.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.reference import methods, numpy_clip
from tests.reference.methods import Inputs, Reference
from tests.reference.numpy_clip import Tower
from tests.reference.weights import State


@dataclasses.dataclass
class Run:
    """One tower's forward pass and the weights that it was made with."""

    tower: str  # "vision" or "text"
    state: State
    sizes: Mapping
    forward: Tower
    inputs: np.ndarray  # [B, n] positions that are no slots

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


PLACES = ("start", "attention", "mlp")


@dataclasses.dataclass
class Added:
    """What stands for what a run adds, of every sample and input token."""

    start: np.ndarray  # [B, n, D]
    attention: np.ndarray  # [L, B, n, D]
    mlp: np.ndarray  # [L, B, n, D]


def nothing(reference: Run) -> Added:
    """What the reference itself has: in texts, what its words in the slots give."""
    of_slots = np.stack([parts(reference, l).added for l in range(len(reference.forward.blocks))])
    return Added(np.zeros_like(reference.start), of_slots, np.zeros_like(of_slots))


def added(reference: Run, tuned: Run) -> Added:
    """What the tuned run adds on its own tokens."""
    at_attention, at_mlp = [], []
    for l, seen in enumerate(tuned.forward.blocks):
        of_layer = parts(tuned, l)
        x, middle, after = (_at_inputs(tuned, tokens) for tokens in (seen.tokens, seen.middle, seen.after))
        given = zip(x, of_layer.attention, of_layer.mass, np.zeros_like(x), strict=True)
        at_attention.append(middle - np.stack([attend(reference, l, *sample) for sample in given]))
        at_mlp.append(after - np.stack([mlp(reference, l, sample) for sample in middle]))
    return Added(tuned.start - reference.start, np.stack(at_attention), np.stack(at_mlp))


def _at_inputs(run: Run, tokens: np.ndarray) -> np.ndarray:
    return np.stack([x[at] for x, at in zip(tokens, run.inputs, strict=True)])


def mean_by_kind(tuned: Run, values: Added) -> Added:
    """Means over samples and tokens of a kind, the one that is read out and all others, in every token's place."""
    groups: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for b, inputs in enumerate(tuned.inputs):
        for n, position in enumerate(inputs):
            read = int(tuned.forward.rows[b])
            if tuned.tower == "vision" or position <= read:
                groups[bool(position == read)].append((b, n))
    means = Added(*(np.zeros_like(getattr(values, part)) for part in PLACES))
    for part in PLACES:
        for b, inputs in enumerate(tuned.inputs):
            for n, position in enumerate(inputs):
                listed = [getattr(values, part)[..., c, m, :] for c, m in groups[position == tuned.forward.rows[b]]]
                getattr(means, part)[..., b, n, :] = sum(listed) / len(listed)
    return means


def mean_of_groups(values: Added, groups: Sequence[int], wanted: Sequence[int]) -> Added:
    """Means token by token over the samples of a group; of each wanted group, of all samples where it has none."""
    means: dict[str, list[np.ndarray]] = {part: [] for part in PLACES}
    for group in wanted:
        rows = [b for b, each in enumerate(groups) if each == group] or list(range(len(groups)))
        for part in PLACES:
            means[part].append(sum(getattr(values, part)[..., b, :, :] for b in rows) / len(rows))
    return Added(*(np.stack(means[part], axis=-3) for part in PLACES))


def of_samples(values: Added, samples: np.ndarray) -> Added:
    """Those of other samples, in the places of these."""
    return Added(values.start[samples], values.attention[:, samples], values.mlp[:, samples])


def corner(reference: Run, tuned: Run, attention: str, tokens: str) -> np.ndarray:
    """[B, d] features with attention and tokens of either run, "R" or "P"."""
    level = added(reference, tuned) if tokens == "P" else nothing(reference)
    return features(reference, tuned, level, attention=attention, mass=tokens, readout=tokens)


def features(
    reference: Run, tuned: Run, level: Added, *, attention: str = "P", mass: str = "P", readout: str = "P"
) -> np.ndarray:
    """[B, d] features of frozen blocks with a level, un-normalised."""
    runs = {"R": reference, "P": tuned}
    x = reference.start + level.start
    for l in range(len(reference.forward.blocks)):
        given = parts(runs[attention], l).attention, parts(runs[mass], l).mass
        middle = [attend(reference, l, *sample) for sample in zip(x, *given, level.attention[l], strict=True)]
        x = np.stack([mlp(reference, l, sample) for sample in middle]) + level.mlp[l]
    return read_out(runs[readout], x)


def read_out(run: Run, x: np.ndarray) -> np.ndarray:
    """[B, d] of input tokens [B, n, D] after the last block."""
    rows = np.stack([x[b, list(run.inputs[b]).index(row)] for b, row in enumerate(run.forward.rows)])
    return numpy_clip.project(run.state, {f"{run.tower}_config": run.sizes}, run.tower, rows)


def attend(run: Run, layer: int, x: np.ndarray, attention: np.ndarray, mass: np.ndarray, added: np.ndarray):
    """One sample's tokens [n, D] behind attention, with `attention` [H, n, n], `mass` [H, n], `added` [n, D] given."""
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
    return x + numpy_clip.linear(run.state, f"{name}.self_attn.out_proj", heads) + added


def mlp(run: Run, layer: int, x: np.ndarray) -> np.ndarray:
    """One sample's tokens [n, D] behind the MLP, from those behind attention."""
    name = f"{run.tower}_model.encoder.layers.{layer}"
    normed = numpy_clip.layer_norm(run.state, f"{name}.layer_norm2", run.sizes["layer_norm_eps"], x)
    hidden = numpy_clip.linear(run.state, f"{name}.mlp.fc1", normed)
    return x + numpy_clip.linear(run.state, f"{name}.mlp.fc2", numpy_clip.activate(run.sizes["hidden_act"], hidden))


def vision_run(clip: Reference, images: np.ndarray, inputs: Inputs | None = None) -> Run:
    """The vision tower with a method's prompts and bias, or without: `[cls]` and patches are its input tokens."""
    forward = methods.run_image(clip, images, inputs)
    sizes = clip.config["vision_config"]
    count = 1 + (sizes["image_size"] // sizes["patch_size"]) ** 2
    positions = np.broadcast_to(np.arange(count), (len(forward.features), count))
    return Run("vision", clip.state, sizes, forward, positions)


def text_run(clip: Reference, inputs: Inputs) -> Run:
    """The text tower with what `inputs` put in; all but the context's places are its input tokens."""
    forward = methods.run_text(clip, inputs)
    length = inputs.tokens.shape[1]
    positions = np.array([np.setdiff1d(np.arange(length), places) for places in inputs.places])
    return Run("text", clip.state, clip.config["text_config"], forward, positions)


def reference_inputs(
    clip: Reference, method: str, class_names: Sequence[str], context: np.ndarray | None, **options: Any
) -> Inputs:
    """What the reference run's text tower reads: the context as it was before training, and nothing after that."""
    learnables = {} if context is None else {"text_context": context}
    # MaPLe's text is IVLP's; its vision prompts would want maps.
    return methods.prepare(clip, "ivlp" if method == "maple" else method, class_names, learnables, **options)
