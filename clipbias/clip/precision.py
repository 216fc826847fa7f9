"""How exactly CLIP is computed: the one place that knows the choices, and what a device takes by itself.

The device is that of this process, or one that is not there. Which attention is traced and what fits depend on it, and
nothing else.
"""

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
    """A kind of device."""

    platform: str  # "cpu", "gpu" or "tpu"
    capability: float = 0.0  # the compute capability of an NVIDIA GPU; 0 of anything else
    memory: int = 0  # bytes that programs may have on each device; 0 where that is unknown


# The device that is not there and that programs are traced for; `None` where they are for this process's own. Set by
# `training.ahead` alone.
AWAY: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


def target() -> Target:
    """The device that programs are traced for."""
    if (elsewhere := AWAY.get()) is not None:
        return elsewhere
    device = jax.local_devices()[0]
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):  # no GPU, or another maker's, which has none or names it otherwise
        capability = 0.0
    return Target(jax.default_backend(), capability)


Encode = TypeVar("Encode", bound=Callable[..., Any])

# In which CLIP can be computed, and JAX's name for how its products of float32 numbers are formed. "tensorfloat32" are
# the NVIDIA GPU's products of numbers rounded to 10 bits behind the point, "bfloat16_3x" the TPU's of numbers in two
# parts of 7, in three passes; "high" is JAX's name for either. In "bfloat16" that is for the few products that are not
# of half precision (`layers.product`).
PRECISIONS = {"float32": "highest", "tensorfloat32": "high", "bfloat16_3x": "high", "bfloat16": "high"}
DTYPES = tuple(PRECISIONS)
# In place of one of these: what the device takes by itself.
AUTO = "auto"
CHOICES = (AUTO, *DTYPES)

# Weights that are matrices of a product, or rows to choose from; the projection to features is small and stays exact.
LARGE = ("kernel", "patch_embedding", "token_embedding")

# Devices by JAX's names of platforms, and those that some choices are made for.
DEVICES = {"cpu": "CPU", "gpu": "GPU", "cuda": "GPU", "rocm": "GPU", "tpu": "TPU"}
MADE_FOR = {"tensorfloat32": "GPU", "bfloat16_3x": "TPU"}
# The fastest that trains what float32 trains (docs/performance.md).
DEFAULT_DTYPES = {"CPU": "float32", "GPU": "bfloat16", "TPU": "bfloat16"}


def resolve(dtype: str, platform: str | None = None) -> str:
    """Resolves "auto" to the platform's default dtype; by default that of the device that programs are traced for.

    The platform has JAX's name. Raises `ClipbiasError` if there is no such type, or not on such a device.
    """
    check_choice("dtype", dtype, CHOICES)
    device = DEVICES.get(platform or target().platform, "")
    if dtype == AUTO:
        return DEFAULT_DTYPES.get(device, "float32")
    if device != MADE_FOR.get(dtype, device):
        raise ClipbiasError(
            f"dtype is {dtype!r}, which only a {MADE_FOR[dtype]} has, and this is a {device or platform}; choose "
            f"{AUTO!r}, which takes {DEFAULT_DTYPES.get(device, 'float32')!r} here."
        )
    return dtype


def with_precision(encode: Encode) -> Encode:
    """Runs a function with products of float32 numbers that are as exact as its `dtype` asks.

    GPUs (TF32) and TPUs (one bfloat16 pass) round them unless asked not to. Gradients inherit the choice, since it is
    part of each product. The function is given the name of the type, for which a NumPy type may stand.
    """

    @functools.wraps(encode)
    def wrapped(*args: Any, dtype: DTypeLike = "float32", **options: Any) -> Any:
        name = dtype if isinstance(dtype, str) else jax.numpy.dtype(dtype).name
        check_choice("dtype", name, DTYPES)
        with jax.default_matmul_precision(PRECISIONS[name]):
            return encode(*args, dtype=name, **options)

    return cast(Encode, wrapped)


def cast_weights(weights: Any, dtype: str) -> Any:
    """Weights of a tower, or some of them, with the large ones in the type that products take in such a computation.

    They are nearly all of a model: held so once and for all they take no time in a step, and in half precision half the
    memory. What is held so already is as it was.
    """
    kind = jax.numpy.dtype("bfloat16" if dtype == "bfloat16" else "float32")

    def cast_leaf(path: tuple[Any, ...], leaf: Any) -> Any:
        return leaf.astype(kind) if path[-1].key in LARGE and leaf.dtype != kind else leaf

    return jax.tree_util.tree_map_with_path(cast_leaf, weights)
