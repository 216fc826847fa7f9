"""Operations on learnables: constants, runs on a leading axis, and leaves by path."""

import itertools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import traverse_util

from clipbias.clip.params import Params
from clipbias.errors import ClipbiasError
from clipbias.tuning.method import CONSTANTS, Learnables

# Separates the names in a path, also in files.
SEPARATOR = "/"

# A leaf, on a device or on the host.
Array = jax.Array | np.ndarray


def check_order(params: Params, learnables: Learnables) -> None:
    """Raises `ClipbiasError` if a caller swapped the two."""
    if "logit_scale" in learnables:
        raise ClipbiasError(
            "params and learnables are swapped: the order is the frozen weights (clip.params), then the learnables."
        )


def without_constants(learnables: Learnables) -> Learnables:
    """The learnables that training steps change."""
    return {name: value for name, value in learnables.items() if name != CONSTANTS}


def with_constants(learnables: Learnables, others: Learnables) -> Learnables:
    """`learnables` with the constants of `others`."""
    return {**learnables, CONSTANTS: others[CONSTANTS]} if CONSTANTS in others else learnables


def select_run(learnables: Learnables, index: int) -> Learnables:
    """The learnables of one run, from a leading axis `R` of runs."""
    return jax.tree.map(lambda leaf: leaf[index], learnables)


def stack_runs(runs: Sequence[Learnables]) -> Learnables:
    """The learnables of several runs on a leading axis `R`, on the host."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *runs)


def flatten(tree: Learnables) -> dict[str, Array]:
    """Leaves of nested dictionaries by path, as in adapter files: `{"a": {"b": x}}` to `{"a/b": x}`."""
    return traverse_util.flatten_dict(dict(tree), sep=SEPARATOR)


def unflatten(tensors: Mapping[str, Array]) -> Params:
    """The inverse of `flatten`. Raises `ValueError` if one array's path lies inside that of another."""
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
