"""Compute dtypes, their matmul precision, and the default dtype of each device."""

import contextvars
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from jax.typing import DTypeLike

from clipbias.checks import check_choice
from clipbias.errors import ClipbiasError

# The axis of a mesh of devices along which the images of a batch are split.
DATA = "data"


@dataclasses.dataclass(frozen=True)
class Target:
    """A device that programs are traced for: it decides the kind of attention and the memory plan."""

    platform: str  # "cpu", "gpu" or "tpu"
    capability: float = 0.0  # compute capability of an NVIDIA GPU; 0 for other devices
    memory: int = 0  # bytes per device that programs may use; 0 if unknown


# A device that this machine lacks and programs are compiled for; `None` for this process's own. Only `training.ahead`
# sets it, as a context variable, so that threads that train meanwhile see their own device.
AWAY: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


def target() -> Target:
    """Returns the device that programs are traced for."""
    if (elsewhere := AWAY.get()) is not None:
        return elsewhere
    device = jax.local_devices()[0]
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):  # no GPU, or a GPU of another maker
        capability = 0.0
    return Target(jax.default_backend(), capability)


Encode = TypeVar("Encode", bound=Callable[..., Any])

# Compute dtypes and their matmul precision. "tensorfloat32": products of NVIDIA GPUs, of numbers rounded to 10 bits
# behind the point. "bfloat16_3x": products of TPUs, of numbers in two parts of 7 bits, in three passes. JAX's name for
# either is "high". In "bfloat16" it applies to the few products of float32 numbers (`layers.product`).
PRECISIONS = {"float32": "highest", "tensorfloat32": "high", "bfloat16_3x": "high", "bfloat16": "high"}
DTYPES = tuple(PRECISIONS)
# Stands for the default dtype of the device.
AUTO = "auto"
DTYPE_CHOICES = (AUTO, *DTYPES)

# Weights that half precision narrows: nearly all of a model. Projections to features are small and stay exact.
LARGE = ("kernel", "patch_embedding", "token_embedding")

# Devices by JAX's names of platforms, and the device that a dtype needs.
DEVICES = {"cpu": "CPU", "gpu": "GPU", "cuda": "GPU", "rocm": "GPU", "tpu": "TPU"}
MADE_FOR = {"tensorfloat32": "GPU", "bfloat16_3x": "TPU"}
# The fastest dtype with the accuracy of float32 (docs/performance.md).
DEFAULT_DTYPES = {"CPU": "float32", "GPU": "bfloat16", "TPU": "bfloat16"}


def resolve(dtype: str, platform: str | None = None) -> str:
    """Resolves "auto" to a platform's dtype (default: the target's). Raises `ClipbiasError` for types that it lacks."""
    check_choice("dtype", dtype, DTYPE_CHOICES)
    # Without a platform: the device that is traced for, which may be another machine's (`AWAY`).
    device = DEVICES.get(platform or target().platform, "")
    if dtype == AUTO:
        return DEFAULT_DTYPES.get(device, "float32")
    if device != MADE_FOR.get(dtype, device):
        raise ClipbiasError(
            f"dtype {dtype!r} needs a {MADE_FOR[dtype]}, and this device is a {device or platform}; choose "
            f"{AUTO!r}, which is {DEFAULT_DTYPES.get(device, 'float32')!r} here."
        )
    return dtype


def with_precision(encode: Encode) -> Encode:
    """Decorates an encoder: its float32 products get the precision of its `dtype`, a name or a NumPy type."""

    @functools.wraps(encode)
    def wrapped(*args: Any, dtype: DTypeLike = "float32", **options: Any) -> Any:
        name = dtype if isinstance(dtype, str) else jax.numpy.dtype(dtype).name
        check_choice("dtype", name, DTYPES)
        # By default GPUs (TF32) and TPUs (one bfloat16 pass) round float32 products. The precision becomes a part of
        # each traced product, so that gradients inherit it.
        with jax.default_matmul_precision(PRECISIONS[name]):
            return encode(*args, dtype=name, **options)

    return cast(Encode, wrapped)


def cast_weights(weights: Any, dtype: str) -> Any:
    """Casts the `LARGE` ones among a tower's weights to the type of its products; other weights stay as they are."""
    # Cast once before training, they cost no time in a step, and half the memory in half precision; inside the step
    # this is then the identity.
    held_as = jax.numpy.dtype("bfloat16" if dtype == "bfloat16" else "float32")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(held_as) if path[-1].key in LARGE and leaf.dtype != held_as else leaf, weights
    )
