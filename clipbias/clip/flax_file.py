"""Flax's msgpack files (`flax_model.msgpack` of `FlaxCLIPModel`): nested maps of names down to arrays."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize
from flax.traverse_util import unflatten_dict

from clipbias.clip.tensors import LONGEST_NAME, Tensor
from clipbias.errors import ClipbiasError
from clipbias.io import atomic_path, check_file, reason, shorten

FLAX_WEIGHTS = "flax_model.msgpack"


def read_flax(path: Path) -> dict[str, Tensor]:
    """The arrays of a Flax msgpack file by the path of their keys, joined by "/".

    Raises:
      ClipbiasError: the file is damaged, cut short, or holds something else than maps of texts down to arrays.
    """
    check_file(path)
    try:
        tree = msgpack_restore(path.read_bytes())
        if not isinstance(tree, dict):
            raise ValueError("it holds no map of names")
        return _flatten(tree, "")
    except Exception as error:  # whatever msgpack, Flax and NumPy raise on what is none of theirs
        words = shorten(" ".join(reason(error).split()), 200)
        raise ClipbiasError(f"{path} is damaged or no Flax model ({words}); fetch it again.") from error


def _flatten(tree: Mapping[object, object], prefix: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str) or len(name) > LONGEST_NAME:
            raise ValueError(f"a key in {shorten(prefix) or 'its map'!r} is no name")
        if isinstance(value, dict):
            tensors |= _flatten(value, f"{name}/")
        elif isinstance(value, np.ndarray | np.generic):
            tensors[name] = Tensor(value.shape, value.dtype.name, functools.partial(np.asarray, value))
        else:
            raise ValueError(f"{shorten(name)!r} is no array")
    return tensors


def write_flax(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by the paths of their names, as Flax does. Raises `ClipbiasError` where it cannot."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(msgpack_serialize(unflatten_dict(dict(tensors), sep="/")))
