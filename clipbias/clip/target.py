"""The device that programs are traced for: that of this process, or one that is not there.

Which attention is traced and what fits depend on it, and nothing else.
"""

import contextvars
import dataclasses

import jax

# The axis of a mesh of devices along which the images of a batch are split.
DATA = "data"


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      capability: the compute capability of an NVIDIA GPU; 0 of anything else.
      memory: bytes that programs may have on each device; 0 where that is unknown.
    """

    platform: str
    capability: float = 0.0
    memory: int = 0


# Set by `training.ahead` alone.
AWAY: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


def away() -> Target | None:
    """The device that is not there and that programs are traced for; `None` where they are for this process's own."""
    return AWAY.get()


def target() -> Target:
    """The device that programs are traced for."""
    if (elsewhere := away()) is not None:
        return elsewhere
    device = jax.local_devices()[0]
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):  # no GPU, or another maker's, which has none or names it otherwise
        capability = 0.0
    return Target(jax.default_backend(), capability)
