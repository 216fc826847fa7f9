"""Changes of frozen weights: what LoRA, BitFit, LayerNorm tuning and the like learn.

A change is a part of a tower's weight tree (`params["vision"]` or `params["text"]`, layers stacked), holding only what
changes. A leaf of the same name and shape is added to the frozen one. Beside a `kernel` there may be a pair of low rank
instead (Hu et al. 2022): `down [L, P, inputs, r]` and `up [L, P, r, outputs / P]` add `down_p @ up_p` to the `P` parts
of the kernel's outputs, which are 3 for `qkv` (queries, keys and values each by themselves) and 1 elsewhere:

    {"layers": {"fc2": {"bias": [L, D]}, "qkv": {"down": [L, 3, D, r], "up": [L, 3, r, D]}}, "projection": [D, d]}

The low rank of a kernel is never multiplied out in training. `fold_changes` does it once, into the weights of a plain
CLIP.

In a step of training a pair may stand beside `key [L]`, one of `jax.random` per layer, and `rate [L]`: dropout on the
pair's input, which the kernel itself sees whole (`layers.product`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from clipbias.errors import ClipbiasError

Changes = Mapping[str, Any]  # a part of a tower's weight tree
LOW_RANK = ("down", "up")
DROPOUT = ("key", "rate")
BESIDE = (*LOW_RANK, *DROPOUT)  # what lies beside a kernel instead of being added to it


def changed(weights: Any, changes: Any) -> Any:
    """`weights` with `changes` added to the leaves they name, and pairs of low rank put beside their kernels."""
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
