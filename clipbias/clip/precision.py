"""Float32 means float32: matrix units that round by default are told not to."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

Encode = TypeVar("Encode", bound=Callable[..., Any])
# In which CLIP can be computed.
DTYPES = ("float32", "bfloat16")


def with_precision(encode: Encode) -> Encode:
    """Runs a function with full float32 products when its `dtype` is float32.

    GPUs (TF32) and TPUs (bfloat16 passes) round float32 products unless asked not to. Gradients inherit the choice,
    since it is part of each product. In half precision the device's default holds.
    """

    @functools.wraps(encode)
    def wrapped(*args: Any, dtype: jnp.dtype = jnp.float32, **options: Any) -> Any:
        if jnp.dtype(dtype) != jnp.float32:
            return encode(*args, dtype=dtype, **options)
        with jax.default_matmul_precision("highest"):
            return encode(*args, dtype=dtype, **options)

    return cast(Encode, wrapped)
