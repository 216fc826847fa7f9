"""A checkpoint's tensors to this package's parameter tree, and back, by the table of its family."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from clipbias.clip.config import ClipConfig, other_network
from clipbias.clip.other_tables import TABLES, table_of_family
from clipbias.clip.params import Params, abstract_params, empty_params
from clipbias.clip.tables import NameTable, TensorName
from clipbias.clip.tensors import FLOATING, Tensor
from clipbias.errors import ClipbiasError
from clipbias.io import shorten

MOST_SHOWN = 40  # differences between weights and configuration in a message


def table_of(tensors: Mapping[str, Tensor], *, where: str) -> NameTable:
    """The table that has most of a checkpoint's names.

    Raises:
      ClipbiasError: most names belong to another network.
    """
    table = max(TABLES, key=lambda table: table.known(tensors))
    unknown = table.unknown(tensors)
    if 2 * len(unknown) > len(tensors):  # fewer are told one by one, beside those that are missing
        raise other_network(where, f"its tensor {_shown(unknown[0])} and {len(unknown) - 1} more")
    return table


def _fitting(table: NameTable | None, config: ClipConfig) -> NameTable:
    """The table, if it names the family of a configuration, else that with which the family is written."""
    if table is not None and config.family in table.families:
        return table
    return table_of_family(config.family)


def _pieces(config: ClipConfig, table: NameTable, tree: Params) -> Iterator[tuple[TensorName, str, np.ndarray]]:
    """Every tensor of a model with the view of the leaf that holds it: row, name in the file, view."""
    leaves = flatten_dict(tree, sep="/")
    for row in table.rows:
        whole = leaves[row.path]
        layers = range(getattr(config, row.path.partition("/")[0]).layers) if "{}" in row.name else [None]
        for layer in layers:
            leaf = whole if layer is None else whole[layer]
            width = leaf.shape[-1] // row.parts if row.parts > 1 else 0
            part = leaf[..., row.part * width : (row.part + row.span) * width] if row.parts > 1 else leaf
            yield row, row.name.format(layer), part


def from_tensors(
    config: ClipConfig, tensors: Mapping[str, Tensor], table: NameTable | None = None, *, where: str
) -> Params:
    """Builds the parameter tree (float32 NumPy) from a checkpoint's tensors, which are read one at a time.

    Args:
      config: geometry.
      tensors: every tensor in the checkpoint by name.
      table: whose names these are; `None` stands for those with which the family is written.
      where: the checkpoint, for messages.

    Raises:
      ClipbiasError: lists the missing, unexpected and mis-shaped tensors, and those of types that hold no weights; or
        names a tensor with numbers that are not finite.
    """
    table = _fitting(table, config)
    tensors = {table.plain(name): tensor for name, tensor in tensors.items()}
    if max(config.vision.layers, config.text.layers) > len(tensors):  # every layer has tensors of its own
        raise ClipbiasError(f"{where} holds {len(tensors)} tensors, fewer than its configuration asks for layers.")
    # Views without memory: what a wrong configuration asks for may not exist.
    tree = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract_params(config))
    expected = {name: row.layout.save(view).shape for row, name, view in _pieces(config, table, tree)}
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in tensors]
    zeros = [name for name, _ in table.zeros]
    problems += [f"not zero: {name}" for name in zeros if name in tensors and np.any(tensors[name].read())]
    for name, tensor in tensors.items():
        shape = expected.get(name)
        if shape is None:
            if name not in table.ignored and name not in zeros:
                problems.append(f"unexpected: {_shown(name)} {tensor.shape}")
        elif tensor.dtype not in FLOATING:
            problems.append(f"wrong type: {name} is {_shown(tensor.dtype)}, which is none of {', '.join(FLOATING)}")
        # Some trainers keep the scale, a single number, as a list of one.
        elif tensor.shape != shape and (tensor.shape, shape) != ((1,), ()):
            problems.append(f"wrong shape: {name} is {tensor.shape}, the configuration asks for {shape}")
    if problems:
        shown = problems[:MOST_SHOWN]
        if len(problems) > MOST_SHOWN:
            shown.append(f"and {len(problems) - MOST_SHOWN} more")
        raise ClipbiasError(
            f"{where} does not hold the model that its configuration describes ({len(problems)} differences):\n  "
            + "\n  ".join(shown)
        )
    tree = empty_params(config)
    damaged = []
    for row, name, view in _pieces(config, table, tree):
        values = np.asarray(tensors[name].read(), np.float32)
        if not np.isfinite(values).all():
            damaged.append(name)
        view[...] = row.layout.load(values.reshape(expected[name]))
    if damaged:
        more = f" and {len(damaged) - 1} other tensors" if len(damaged) > 1 else ""
        raise ClipbiasError(
            f"{where} holds NaN or infinite numbers in {damaged[0]}{more}; fetch it again, or take a checkpoint from "
            "before its training diverged."
        )
    return tree


def _shown(name: str) -> str:
    return shorten(name if name.isprintable() else ascii(name))


def to_tensors(config: ClipConfig, params: Params, table: NameTable | None = None) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by a family's names; `from_tensors` of them gives `params` back bit for bit."""
    tree = jax.tree.map(np.asarray, params)
    table = _fitting(table, config)
    pieces = _pieces(config, table, tree)
    tensors = {name: np.asarray(row.layout.save(view), order="C") for row, name, view in pieces}
    leaves = flatten_dict(tree, sep="/")
    return tensors | {name: np.zeros(leaves[path].shape[-1:], leaves[path].dtype) for name, path in table.zeros}
