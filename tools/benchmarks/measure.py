"""The machine's matrix product, peak memory, and the compiler's plan and arithmetic of a program."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from clipbias.clip.precision import PRECISIONS

SIDE = 2048  # of the square matrices whose product shows what a CPU can do


def square_product(dtype: str, side: int) -> tuple[Callable[[], jax.Array], int]:
    """A product of two square matrices in a compute type, and its multiplications and additions.

    Args:
      dtype: a compute type by name; in "bfloat16" both matrices are of half precision.
      side: rows on a CPU. An accelerator, which so small matrices would not fill, gets 8192.
    """
    side = side if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((side, side), "bfloat16" if dtype == "bfloat16" else "float32")
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=PRECISIONS[dtype]))
    return lambda: multiply(matrix), 2 * side**3


def planned(program: Any) -> dict[str, int]:
    """Bytes that a compiled program needs: besides its arguments, and with them, by the compiler's plan."""
    memory = program.memory_analysis()
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    whole = int(sum(sizes) - memory.alias_size_in_bytes)
    return {"program_bytes": int(memory.temp_size_in_bytes), "planned_bytes": whole}


def traced(function: Any, *arguments: Any, **options: Any) -> int:
    """Multiplications and additions of the matrix products in a jitted function, on all devices together.

    Those in loops count as often as they run. The compiler's own count (`cost_analysis`) takes the body of a loop once,
    and the layers are a loop.
    """
    return _products(
        (function if hasattr(function, "trace") else jax.jit(function)).trace(*arguments, **options).jaxpr.jaxpr
    )


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * terms * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(map(_products, jaxprs_in_params(equation.params)))
    return total
