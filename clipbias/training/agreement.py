"""What all processes of a job decide together: when to save, and when to stop.

A checkpoint is written by all processes at the same step, but their clocks differ, and a scheduler may send SIGTERM to
one of them a step before the others, or to one alone. So each tells the others what it would do, and all act on what
any of them wants.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Agreement:
    """Whether any process wants something, known to all of them at the same step.

    With several processes the answer to a step's question is read one step later, so that no device waits for a host.
    """

    def __init__(self, mesh: Mesh, *, alone: bool | None = None) -> None:
        """`alone` says that no other process takes part; `None` asks JAX."""
        self._alone = jax.process_count() == 1 if alone is None else alone
        self._devices = mesh.devices.size
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(lambda wishes: wishes.any(0), out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._asked: jax.Array | None = None

    def __call__(self, *wishes: bool, now: bool = False) -> tuple[bool, ...]:
        """For each of this process's wishes whether any process has it, or with several processes had it a step ago.

        To be called equally often by all processes. Where an answer holds a wish, this call's own wishes are dropped:
        they would repeat it.

        Args:
          wishes: what this process wants.
          now: waits for the answer to this call's wishes.
        """
        if self._alone:
            return wishes
        asked, self._asked = self._asked, None
        if asked is not None and not now and any(answer := _read(asked)):
            return answer
        row = np.asarray(wishes, bool)[None]  # every device carries the wishes of its process
        shape = (self._devices, len(wishes))
        asked = self._any(jax.make_array_from_callback(shape, self._split, lambda _: row))
        if now:
            return _read(asked)
        self._asked = asked
        return (False,) * len(wishes)


def _read(replicated: jax.Array) -> tuple[bool, ...]:
    return tuple(np.asarray(replicated.addressable_data(0)).tolist())
