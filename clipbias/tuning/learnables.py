"""Trees of learned arrays: their constants, the runs that lie side by side in them, and their leaves by path."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from clipbias.clip.params import Params
from clipbias.errors import ClipbiasError
from clipbias.tuning.method import CONSTANTS, Learnables

# Between the names of a path, in files as well.
SEPARATOR = "/"


def check_order(params: Params, learnables: Learnables) -> None:
    """Raises `ClipbiasError` where a caller swapped the two."""
    if "logit_scale" in learnables:
        raise ClipbiasError(
            "params and learnables are swapped: the order is the frozen weights (clip.params), then the learnables."
        )


def without_constants(learnables: Learnables) -> Learnables:
    """What steps change."""
    return {name: value for name, value in learnables.items() if name != CONSTANTS}


def with_constants(learnables: Learnables, others: Learnables) -> Learnables:
    """`learnables` with the constants of `others`."""
    return {**learnables, CONSTANTS: others[CONSTANTS]} if CONSTANTS in others else learnables


def select_run(learnables: Learnables, index: int) -> Learnables:
    """Those of one of several runs, which lie on a leading axis `R`."""
    return jax.tree.map(lambda leaf: leaf[index], learnables)


def stack_runs(runs: Sequence[Learnables]) -> Learnables:
    """Learnables of several runs on a leading axis `R`, on the host."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *runs)


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of nested dictionaries by their path, as in the file: `{"a": {"b": x}}` to `{"a/b": x}`."""
    return traverse_util.flatten_dict(dict(tree), sep=SEPARATOR)


def unflatten(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`. Raises `ValueError` where an array lies inside another one."""
    for name in tensors:
        parents = name.split(SEPARATOR)[:-1]
        if any(parent in tensors for parent in itertools.accumulate(parents, "{}/{}".format)):
            raise ValueError(f"{name!r} lies inside another array")
    return traverse_util.unflatten_dict(dict(tensors), sep=SEPARATOR)


def parameter_count(learnables: Learnables) -> dict[str, int]:
    """Number of learnable parameters: `total`, `vision`, `text`, and `shared` between the towers; no constants."""
    counts = dict.fromkeys(("vision", "text", "shared"), 0)
    for key, value in without_constants(learnables).items():
        tower = next((name for name in ("vision", "text") if key.startswith(name)), "shared")
        counts[tower] += sum(leaf.size for leaf in jax.tree.leaves(value))
    return {"total": sum(counts.values()), **counts}
