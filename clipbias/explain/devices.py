"""How the arrays of a study get on and off the devices."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Devices:
    """How arrays get on and off the devices. The default is this process's first device.

    Attributes:
      place: host rows `[B, …]` (this process's share) to a device array, split over devices.
      replicate: a tree to every device.
      fetch: device arrays to whole NumPy arrays.
      shard: which part of each batch this process has, and how many parts there are.
      first: whether this process speaks for all.
      multiple: batches are a multiple of this.
    """

    place: Callable[[np.ndarray], jax.Array] = jnp.asarray
    replicate: Callable[[Any], Any] = lambda tree: jax.tree.map(jnp.asarray, tree)
    fetch: Callable[[Any], Any] = jax.device_get
    shard: tuple[int, int] = (0, 1)
    first: bool = True
    multiple: int = 1
