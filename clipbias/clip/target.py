"""The device that programs are traced for: that of this process, or one that is not there.

Which attention is traced, what fits and how long it takes depend on it, and nothing else.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping

import jax

# The axis of a mesh of devices along which the images of a batch are split.
DATA = "data"

# As of cuDNN 9.12: a version with all that is used here.
_CUDNN_VERSION = 91200


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      capability: the compute capability of an NVIDIA GPU; 0 of anything else.
      memory: bytes that programs may have on each device; 0 where that is unknown.
      rates: multiplications and additions per second, at most, by the compute type of a product.
    """

    platform: str
    capability: float = 0.0
    memory: int = 0
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)


_AWAY: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


def away() -> Target | None:
    """The device that is not there and that programs are traced for; `None` where they are for this process's own."""
    return _AWAY.get()


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


@contextlib.contextmanager
def traced_for(elsewhere: Target) -> Iterator[None]:
    """Has programs traced as they would be on a device that is not there; they can be compiled but not run.

    JAX keeps what it traced by shapes and types alone: what is traced for two devices in one process must differ in
    these, or be forgotten in between (`jax.clear_caches`).
    """
    from jax._src.cudnn import fused_attention_stablehlo as checks  # what JAX asks before it traces cuDNN's attention

    token = _AWAY.set(elsewhere)
    answers = {
        "check_cudnn_version": lambda: _CUDNN_VERSION,
        "check_compute_capability": lambda least: elsewhere.capability >= float(least),
        "is_cuda_compute_capability_equal": lambda asked: elsewhere.capability == float(asked),
    }
    own = {name: getattr(checks, name) for name in answers}
    try:
        for name, answer in answers.items() if elsewhere.capability else ():
            setattr(checks, name, answer)
        yield
    finally:
        for name, check in own.items():
            setattr(checks, name, check)
        _AWAY.reset(token)
