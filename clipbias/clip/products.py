"""Products in half precision that train what float32 trains.

A frozen kernel is rounded to bfloat16 once, the same for the tuned model as for the frozen one. What is multiplied with
it is not: with 7 bits behind the point, the error of a token would change with each number that it crosses to the next,
and hide what a method learns of a thousandth. So tokens are multiplied in two parts, the rounded ones and what rounding
left, together about 16 bits. That is the forward pass; gradients only steer, and take one part.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

HALF = jnp.bfloat16


def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`; of a kernel in half precision in float32, with `x` in two parts."""
    return in_two_parts(x, kernel) if kernel.dtype == HALF else x @ kernel.astype(x.dtype)


@jax.custom_jvp
def in_two_parts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel` in float32, of float32 `x [..., inputs]` and a kernel in half precision."""
    high = jax.lax.reduce_precision(x, 8, 7)  # compilers may leave out a conversion there and back
    return _in_one(high, kernel) + _in_one(x - high, kernel)


def _in_one(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x.astype(HALF), kernel, preferred_element_type=jnp.float32)


@functools.partial(in_two_parts.defjvp, symbolic_zeros=True)
def _change(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array | SymbolicZero, jax.Array | SymbolicZero]
) -> tuple[jax.Array, jax.Array]:
    x, kernel = primals
    of_x, of_kernel = tangents
    parts = []
    if not isinstance(of_x, SymbolicZero):
        # The backward pass takes the transpose, which rounds the gradient that comes in and the one that goes out.
        parts.append(jnp.matmul(of_x.astype(HALF), kernel).astype(jnp.float32))
    if not isinstance(of_kernel, SymbolicZero):  # no frozen kernel's
        parts.append(_in_one(x, of_kernel))
    return in_two_parts(x, kernel), functools.reduce(jnp.add, parts)


def activate(x: jax.Array, name: str) -> jax.Array:
    """QuickGELU `x · sigmoid(1.702 x)`, the exact GELU, or its approximation by a hyperbolic tangent."""
    if name == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=name == "gelu_tanh")


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def activate_keeping_half(x: jax.Array, name: str, kept_as: str) -> jax.Array:
    """`activate`, whose slope is that of `x` in half precision, which is what a backward pass keeps under that name."""
    return activate(x, name)


@activate_keeping_half.defjvp
def _slope(
    name: str, kept_as: str, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,) = primals
    half = checkpoint_name(x.astype(HALF), kept_as).astype(x.dtype)
    return activate(x, name), jax.jvp(lambda y: activate(y, name), (half,), tangents)[1]
