"""What the processes of a job decide together between two steps: when to save, and when to stop.

All processes write a checkpoint at the same step. But their clocks differ, and a scheduler may send SIGTERM to one of
them a step before the others, or to one alone; and one may fail, which takes part in the others' steps until they know.
So each process tells the others what it wants, and all of them do what any of them wants. This goes through the
devices, beside the steps, so that no step waits for it; why one failed is told afterwards (`processes`).
"""

import time

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Agreement:
    """Whether any process wants something. All processes learn it at the same step.

    With several processes an answer is read one step after its question, so that no device waits for a host.
    """

    def __init__(self, mesh: Mesh, *, alone: bool | None = None) -> None:
        """`alone` says whether this is the only process; `None` asks JAX."""
        self._alone = jax.process_count() == 1 if alone is None else alone
        self._devices = mesh.devices.size
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(lambda wishes: wishes.any(0), out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._asked: jax.Array | None = None

    def __call__(self, *wishes: bool, now: bool = False) -> tuple[bool, ...]:
        """Whether any process has each wish; with several processes, whether any had it one step ago.

        All processes must call this equally often. Where the answer grants a wish, the wishes of this very call are
        dropped, since they would only repeat it.

        Args:
          wishes: what this process wants.
          now: wait for the answer to this call's wishes instead of taking the one before.
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


class Pace:
    """When to save, when to stop, when one failed: decided after every step, alike in all processes."""

    def __init__(self, mesh: Mesh, *, seconds: float, saves: bool) -> None:
        """`seconds` is the least time between two checkpoints; without `saves` there are none."""
        self._agree, self._seconds, self._saves = Agreement(mesh), seconds, saves
        self._saved_at = time.monotonic()

    def __call__(self, notice: bool, *, last: bool, failed: bool = False) -> tuple[bool, bool, bool]:
        """Whether to save now, whether to stop, and whether any process failed.

        Args:
          notice: this process was told to stop.
          last: this was the last step, after which there is nothing left to save.
          failed: what this process does in its steps is void.
        """
        due = self._saves and time.monotonic() - self._saved_at >= self._seconds
        due, stop, failed = self._agree(due and not last, notice, failed, now=last)
        return self._saves and (due or stop), stop, failed

    def saved(self) -> None:
        """Counts the time to the next checkpoint from now."""
        self._saved_at = time.monotonic()


def _read(replicated: jax.Array) -> tuple[bool, ...]:
    return tuple(np.asarray(replicated.addressable_data(0)).tolist())
