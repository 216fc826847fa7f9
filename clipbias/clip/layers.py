"""The parts of a transformer block as plain functions over a dictionary of weights; `block` has their order.

Letters: `B` sequences, `N` tokens, `D` width, `H` heads, `K = D / H`. A layer's weights are

    norm1, norm2: {scale [D], bias [D]}
    qkv: {kernel [D, 3D], bias [3D]}, out: {kernel [D, D], bias [D]}
    fc1: {kernel [D, mlp_width], bias}, fc2: {kernel [mlp_width, D], bias [D]}

and a tower stacks them on a leading axis `L`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from clipbias.clip.config import TowerConfig, VisionConfig
from clipbias.clip.precision import DATA, target
from clipbias.errors import ClipbiasError

# Products in half precision that train what float32 trains.

HALF = jnp.bfloat16


def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`; of a kernel in half precision in float32, with `x` in two parts."""
    return in_two_parts(x, kernel) if kernel.dtype == HALF else x @ kernel.astype(x.dtype)


@jax.custom_jvp
def in_two_parts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel` in float32, of float32 `x [..., inputs]` and a kernel in half precision.

    A frozen kernel is rounded to bfloat16 once, the same for the tuned model as for the frozen one. What is multiplied
    with it is not: with 7 bits behind the point, the error of a token would change with each number that it crosses to
    the next, and hide what a method learns of a thousandth. So tokens are multiplied in two parts, the rounded ones and
    what rounding left, together about 16 bits. That is the forward pass; gradients only steer, and take one part.
    """
    high = jax.lax.reduce_precision(x, 8, 7)  # compilers may leave out a conversion there and back
    return _in_one(high, kernel) + _in_one(x - high, kernel)


def _in_one(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x.astype(HALF), kernel, preferred_element_type=jnp.float32)


@functools.partial(in_two_parts.defjvp, symbolic_zeros=True)
def _change(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array | SymbolicZero, jax.Array | SymbolicZero]
) -> tuple[jax.Array, jax.Array]:
    x, kernel = primals
    of_x, of_kernel = tangents
    parts = []
    if not isinstance(of_x, SymbolicZero):
        # The backward pass takes the transpose, which rounds the gradient that comes in and the one that goes out.
        parts.append(jnp.matmul(of_x.astype(HALF), kernel).astype(jnp.float32))
    if not isinstance(of_kernel, SymbolicZero):  # no frozen kernel's
        parts.append(_in_one(x, of_kernel))
    return in_two_parts(x, kernel), functools.reduce(jnp.add, parts)


def activate(x: jax.Array, name: str) -> jax.Array:
    """QuickGELU `x · sigmoid(1.702 x)`, the exact GELU, or its approximation by a hyperbolic tangent."""
    if name == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=name == "gelu_tanh")


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def activate_keeping_half(x: jax.Array, name: str, kept_as: str) -> jax.Array:
    """`activate`, whose slope is that of `x` in half precision, which is what a backward pass keeps under that name."""
    return activate(x, name)


@activate_keeping_half.defjvp
def _slope(
    name: str, kept_as: str, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,) = primals
    half = checkpoint_name(x.astype(HALF), kept_as).astype(x.dtype)
    return activate(x, name), jax.jvp(lambda y: activate(y, name), (half,), tangents)[1]


Weights = Mapping[str, Any]
RematPolicy = Callable[..., Any]  # of `jax.checkpoint_policies`

# Names of what a block computes on its way (`block.run_block`).
INPUT = "input"
QKV = "queries, keys and values"
ATTENDED = "attended tokens"
HIDDEN = "hidden units"
# What a backward pass needs of a block besides its input and what is cheap to compute again: outputs of the products
# with weights. Attention is computed again, as cheap as storing and loading all its pairs. Weights are frozen, so the
# inputs of most products are not needed.
KEPT = (QKV, ATTENDED, HIDDEN)
keep_products = jax.checkpoint_policies.save_only_these_names(*KEPT)
# Half of that, for a tenth more time.
keep_half = jax.checkpoint_policies.save_only_these_names(*KEPT[:2])
# The blocks' inputs alone, for a third more time.
keep_tokens = jax.checkpoint_policies.nothing_saveable


def no_gradient(*_: Any, **_parameters: Any) -> bool:
    """Of programs that nobody differentiates: no block runs ahead of a loop for its gradient. They compile faster."""
    return False


def layer_norm(x: jax.Array, weights: Weights, epsilon: float) -> jax.Array:
    """LayerNorm over the last axis; statistics in float32 whatever the compute type."""
    # XLA's CPU compiler splits sums over threads by their first axis.
    x32 = x.astype(jnp.float32).reshape(x.shape[1:] if x.ndim > 2 and x.shape[0] == 1 else x.shape)
    mean = x32.mean(-1, keepdims=True)
    variance = jnp.square(x32 - mean).mean(-1, keepdims=True)
    normalised = ((x32 - mean) * jax.lax.rsqrt(variance + epsilon)).reshape(x.shape)
    return (normalised * weights["scale"] + weights["bias"]).astype(x.dtype)


def product(x: jax.Array, weights: Weights) -> jax.Array:
    """`multiply(x, kernel)`, and where a method changes the kernel by low rank, `x @ down @ up` besides.

    `down [P, inputs, r]` and `up [P, r, outputs / P]` change `P` parts of the outputs that lie side by side (queries,
    keys and values), or `[B, P, ...]` where each of the `B` rows of `x [B, N, inputs]` has its own copy. With a `key`
    beside them, `kept` says which inputs each part sees in this step, divided by their share.
    """
    y = multiply(x, weights["kernel"])
    if "down" in weights:
        down, up = (weights[name].astype(x.dtype) for name in ("down", "up"))
        seen = x[..., None, :, :]
        if "key" in weights:
            seen = jnp.where(kept(weights, x.shape), seen / (1 - weights["rate"]).astype(x.dtype), 0)
        parts = seen @ down @ up  # [..., P, N, outputs / P]
        y = y + jnp.moveaxis(parts, -3, -2).reshape(y.shape)
    return y


def kept(weights: Weights, shape: Sequence[int]) -> jax.Array:
    """Which inputs of this shape, `[..., N, inputs]`, dropout keeps: `[..., P, N, inputs]`, drawn for each part.

    Two inputs share a random word, which takes half the time; the rate is exact to a 65,536th.
    """
    *rows, tokens, inputs = shape
    words = jax.random.bits(weights["key"], (*rows, weights["down"].shape[-3], tokens, -(-inputs // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*words.shape[:-1], -1)[..., :inputs]
    return halves >= jnp.round(weights["rate"] * 2**16).astype(jnp.uint16)


def dense(x: jax.Array, weights: Weights) -> jax.Array:
    """`x @ kernel + bias`, see `product`."""
    y = product(x, weights)
    return y + weights["bias"].astype(y.dtype)


def network(x: jax.Array, weights: Weights) -> jax.Array:
    """Dense layers `down`, `middle` (if it is there) and `up`, with ReLUs between them, of the last axis of `x`."""
    x = dense(x, weights["down"])
    if "middle" in weights:
        x = dense(jax.nn.relu(x), weights["middle"])
    return dense(jax.nn.relu(x), weights["up"])


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """`[..., D]` to `[..., H, K]`."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def attention_probabilities(q: jax.Array, k: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`softmax(q kᵀ / √K)` in float32: `q [B, N, H, K]` and `k [B, N', H, K]` to `[B, H, N, N']`.

    The mask, broadcastable to that, is True where a query may see a key; `None` lets it see all.
    """
    scores = jnp.einsum("BNHK,BMHK->BHNM", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1)


def exponentials(*scores: jax.Array) -> list[jax.Array]:
    """`exp(s - max)` of scores `[..., N, M]` whose last axes share one softmax, in float32 and not yet normalised.

    Dividing the sum over values by the sum of these, instead of these themselves, spares the backward pass a reduction
    over all scores (Dao et al. 2022, section 3.1).
    """
    scores = tuple(part.astype(jnp.float32) for part in scores)
    highest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, (part.max(-1, keepdims=True) for part in scores)))
    return [jnp.exp(part - highest) for part in scores]


def fused_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, visible: jax.Array | None = None
) -> jax.Array:
    """Attention whose probabilities nobody asks for, `[B, N, H, K]`; keys that are not `visible [B, N]` are masked."""
    # Heads before tokens, so that the six products of both passes read their operands as they lie.
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    scores = jnp.einsum("BHNK,BHMK->BHNM", q * q.shape[-1] ** -0.5, k)
    if causal:
        scores = jnp.where(jnp.tri(q.shape[2], k.shape[2], dtype=bool), scores, -jnp.inf)
    if visible is not None:
        scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
    (weights,) = exponentials(scores)
    total = weights.sum(-1, keepdims=True)
    values = jnp.einsum("BHNM,BHMK->BHNK", weights.astype(v.dtype), v)
    return (values / total).astype(values.dtype).swapaxes(1, 2)


def read_out_exactly(
    q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: Literal["cudnn", "xla"] = "cudnn"
) -> jax.Array:
    """`cudnn_attention` in half precision, with the first row, which is the one that is read out, by itself in float32.

    Errors of the other rows' attention are averaged there, but an error of its own would go into the feature.
    """
    row = checkpoint_name(q[:, :1], QKV)
    q, k, v = (checkpoint_name(x.astype(HALF), QKV) for x in (q, k, v))
    others = cudnn_attention(q, k, v, implementation=implementation)[:, 1:]
    with jax.default_matmul_precision("highest"):
        probabilities = attention_probabilities(row, k.astype(jnp.float32), None)
        row = jnp.einsum("BHNM,BMHK->BNHK", probabilities, v.astype(jnp.float32))
    return jnp.concatenate([row, others.astype(jnp.float32)], axis=1)


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: Literal["cudnn", "xla"]) -> jax.Array:
    """`fused_attention` by cuDNN's kernel, which each device of the mesh in use runs on its own images.

    The kernel takes runs that `vmap` puts side by side and their images as one axis. The partitioner would not see how
    that is split, and would gather all queries, keys and values in every layer.
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        count = q.shape[1]
        if not count % 2:
            return jax.nn.dot_product_attention(q, k, v, implementation=implementation)
        # The kernel's gradient takes even numbers of tokens alone. An odd number, as 1 + 196 is, gets one more token
        # that no other sees and whose own result is dropped.
        q, k, v = (jnp.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]) for x in (q, k, v))
        # Of the runs that `vmap` puts side by side each has its own, as the kernel's batching asks.
        lengths = count + 0 * jnp.isfinite(q[:, 0, 0, 0])
        padded = jax.nn.dot_product_attention(
            q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
        )
        return padded[:, :count]

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or DATA not in mesh.auto_axes or q.shape[0] % mesh.shape[DATA]:
        return attend(q, k, v)
    split = PartitionSpec(DATA)
    return jax.shard_map(attend, in_specs=split, out_specs=split, check_vma=False)(q, k, v)


def cudnn_takes(dtype: jnp.dtype, head_width: int) -> bool:
    """Whether cuDNN has a kernel: half precision, heads of a width that it knows, an NVIDIA GPU from Ampere on."""
    known = dtype in (jnp.bfloat16, jnp.float16) and head_width <= 128 and head_width % 8 == 0
    return known and target().capability >= 8


def mlp_hidden(x: jax.Array, weights: Weights, config: TowerConfig) -> jax.Array:
    """`fc1(LN2(x))`: `[..., mlp_width]`."""
    return dense(layer_norm(x, weights["norm2"], config.layer_norm_epsilon), weights["fc1"])


def mlp_output(hidden: jax.Array, weights: Weights, config: TowerConfig) -> jax.Array:
    """`fc2(activate(hidden))`: `[..., D]`."""
    if weights["fc2"]["kernel"].dtype == HALF:
        return dense(activate_keeping_half(hidden, config.activation, HIDDEN), weights["fc2"])
    return dense(activate(hidden, config.activation), weights["fc2"])


def mlp(x: jax.Array, weights: Weights, config: TowerConfig) -> jax.Array:
    """The block's second half without its residual: `fc2(activate(fc1(LN2(x))))`."""
    return mlp_output(mlp_hidden(x, weights, config), weights, config)


def outputs(qkv: Weights, first: int, end: int) -> Weights:
    """Queries (0), keys (1) and values (2) of a `qkv` product, from part `first` up to `end`."""
    width = qkv["kernel"].shape[-1] // 3
    part = {name: qkv[name][..., first * width : end * width] for name in ("kernel", "bias")}
    part |= {name: qkv[name][..., first:end, :, :] for name in ("down", "up") if name in qkv}
    if "key" in qkv:  # each product draws for itself
        part |= {"key": jax.random.fold_in(qkv["key"], first), "rate": qkv["rate"]}
    return part


# Rotary positions of Perception Encoder (Bolya et al. 2025): a head's first half turns by columns, the second by rows.

BASE = 10_000.0  # of the wave lengths


def angles(config: VisionConfig, tokens: int) -> np.ndarray:
    """The angle of every pair of channels, `[N, K / 2]`. `[cls]`, and prompts behind the patches, do not turn."""
    pairs = config.width // config.heads // 4
    frequencies = BASE ** (-np.arange(pairs) / pairs)
    places = np.arange(config.patches)
    columns, rows = 1 + places % config.grid, 1 + places // config.grid
    of_patches = np.concatenate([np.outer(columns, frequencies), np.outer(rows, frequencies)], axis=1)
    behind = tokens - config.tokens
    return np.pad(of_patches, [(config.first_patch, behind), (0, 0)])


def rotate(heads: jax.Array, config: VisionConfig) -> jax.Array:
    """Queries or keys `[..., N, H, K]` turned by the positions of their tokens: each pair `a + ib` by `exp(iφ)`."""
    table = angles(config, heads.shape[-3])[:, None]
    cosine, sine = (jnp.asarray(part, jnp.float32) for part in (np.cos(table), np.sin(table)))
    pairs = heads.astype(jnp.float32).reshape(*heads.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([a * cosine - b * sine, b * cosine + a * sine], axis=-1)
    return turned.reshape(heads.shape).astype(heads.dtype)


# Changes of frozen weights: what LoRA, BitFit, LayerNorm tuning and the like learn.

Changes = Mapping[str, Any]  # a part of a tower's weight tree
LOW_RANK = ("down", "up")
DROPOUT = ("key", "rate")
BESIDE = (*LOW_RANK, *DROPOUT)  # what lies beside a kernel instead of being added to it


def changed(weights: Any, changes: Any) -> Any:
    """`weights` with `changes` added to the leaves they name, and pairs of low rank put beside their kernels.

    A change is a part of a tower's weight tree (`params["vision"]` or `params["text"]`, layers stacked), holding only
    what changes. A leaf of the same name and shape is added to the frozen one. Beside a `kernel` there may be a pair of
    low rank instead (Hu et al. 2022): `down [L, P, inputs, r]` and `up [L, P, r, outputs / P]` add `down_p @ up_p` to
    the `P` parts of the kernel's outputs, which are 3 for `qkv` (queries, keys and values each by themselves) and 1
    elsewhere:

        {"layers": {"fc2": {"bias": [L, D]}, "qkv": {"down": [L, 3, D, r], "up": [L, 3, r, D]}}, "projection": [D, d]}

    The low rank of a kernel is never multiplied out in training. `fold_changes` does it once, into the weights of a
    plain CLIP. In a step of training a pair may stand beside `key [L]`, one of `jax.random` per layer, and `rate [L]`:
    dropout on the pair's input, which the kernel itself sees whole (`product`).
    """
    if not isinstance(changes, Mapping):
        return weights + changes
    merged = {name: changed(weights[name], change) for name, change in changes.items() if name not in BESIDE}
    return {**weights, **merged, **{name: changes[name] for name in BESIDE if name in changes}}


def drops(changes: Changes | None) -> bool:
    """Whether inputs of a pair of low rank are dropped at random."""
    return any(path[-1] in DROPOUT for path in flatten_dict(changes or {}))


def check_changes(changes: Changes | None, weights: Changes, name: str) -> None:
    """Refuses changes that name no weight of the tower, or have another shape than it."""
    shapes = {path: np.shape(leaf) for path, leaf in flatten_dict(weights).items()}
    leaves = flatten_dict(changes or {})
    for path, leaf in leaves.items():
        where = "/".join(path)
        shape = np.shape(leaf)
        if path[-1] in BESIDE:
            _check_low_rank(leaves, path[:-1], shapes.get((*path[:-1], "kernel")), name)
        elif path not in shapes:
            raise ClipbiasError(f"{name} changes {where!r}, which is no weight of this tower.")
        elif shape != shapes[path]:
            raise ClipbiasError(
                f"{name} changes {where!r} by an array of shape {shape}; the weight's is {shapes[path]}."
            )


def _check_low_rank(
    leaves: Mapping[tuple[str, ...], jax.Array], path: tuple[str, ...], kernel: tuple[int, ...] | None, name: str
) -> None:
    where = "/".join(path)
    down, up = (np.shape(leaves.get((*path, part), 0.0)) for part in LOW_RANK)  # a missing one has no axes
    if kernel is None or len(kernel) != 3:
        raise ClipbiasError(f"{name} changes {where!r} by low rank, which is no stack of kernels of this tower.")
    layers, inputs, outputs = kernel
    parts = 3 if path[-1] == "qkv" else 1
    rank = down[-1] if down else 0
    expected = (layers, parts, inputs, rank), (layers, parts, rank, outputs // parts)
    if rank == 0 or (down, up) != expected:
        raise ClipbiasError(
            f"{name} changes {where!r} by down {down} and up {up}; expected [{layers}, {parts}, {inputs}, rank] and "
            f"[{layers}, {parts}, rank, {outputs // parts}]."
        )
    for name_of, leaf in ((part, leaves.get((*path, part))) for part in DROPOUT):
        if leaf is not None and np.shape(leaf) != (layers,):
            raise ClipbiasError(f"{name} has {where}/{name_of} of shape {np.shape(leaf)}; expected ({layers},).")


def fold_changes(weights: Changes, changes: Changes) -> Changes:
    """One tower's weights with the changes in them, float32 NumPy where something changed, low rank multiplied out."""
    flat = flatten_dict(weights)
    leaves = flatten_dict(changes)
    added = {path: np.asarray(leaf, np.float32) for path, leaf in leaves.items() if path[-1] not in BESIDE}
    for path in {path[:-1] for path in leaves if path[-1] in LOW_RANK}:
        down, up = (np.asarray(leaves[(*path, part)], np.float32) for part in LOW_RANK)
        parts = np.moveaxis(down @ up, 1, 2)  # [L, inputs, P, outputs / P]
        kernel = (*path, "kernel")
        added[kernel] = added.get(kernel, 0) + parts.reshape(*parts.shape[:2], -1)
    folded = {path: np.asarray(flat[path], np.float32) + change for path, change in added.items()}
    return unflatten_dict({**flat, **folded})


def outside_layers(weights: Changes, changes: Changes | None) -> Changes:
    """One tower's weights with the changes of all but its blocks, whose changes act block by block."""
    return changed(weights, {name: change for name, change in (changes or {}).items() if name != "layers"})


def of_layers(changes: Changes | None) -> Changes | None:
    """The changes of a tower's stacked blocks, or `None` where there are none."""
    layers = (changes or {}).get("layers")
    return layers if jax.tree.leaves(layers) else None
