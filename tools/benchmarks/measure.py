"""Time, memory and the machine's own speed, measured in turn so that what else runs on the machine hits all alike."""

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import psutil

from clipbias.clip.precision import PRECISIONS

SIDE = 2048  # of the square matrices whose product tells what a CPU can do


def in_turn(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each way over `repeats` rounds, after one call each that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            jax.block_until_ready(way())
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def with_machine(ways: Mapping[str, Callable[[], Any]], repeats: int, dtype: str) -> tuple[dict[str, float], float]:
    """`in_turn` with the machine's own matrix product among the ways: the medians, and its FLOP per second.

    The product is of the compute type `dtype`, so that a share of its rate is one of what the device does in that type.
    """
    multiply, count = square_product(dtype, SIDE)
    seconds = in_turn({**ways, "matmul": multiply}, repeats)
    return seconds, count / seconds.pop("matmul")


def square_product(dtype: str, side: int) -> tuple[Callable[[], jax.Array], int]:
    """A product of two square matrices, as a compute type forms it, and its multiplications and additions.

    Args:
      dtype: a compute type by name; in "bfloat16" both matrices are of half precision.
      side: rows on a CPU. An accelerator, which so small ones would not fill, gets 8192.
    """
    side = side if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((side, side), "bfloat16" if dtype == "bfloat16" else "float32")
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=PRECISIONS[dtype]))
    return lambda: multiply(matrix), 2 * side**3


def peak_bytes() -> int:
    """Most memory so far: of the accelerator where it tells, else of this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def room() -> int:
    """Bytes that a program may fill: of the accelerator where it tells, else what this machine has free."""
    stats = jax.local_devices()[0].memory_stats()
    return int(stats["bytes_limit"]) if stats and "bytes_limit" in stats else psutil.virtual_memory().available


def program_bytes(compiled: Any) -> int:
    """What a compiled program needs besides its arguments, as the compiler plans it."""
    return int(compiled.memory_analysis().temp_size_in_bytes)


def planned_bytes(compiled: Any) -> int:
    """What a compiled program needs of each device, its arguments included, as the compiler plans it."""
    memory = compiled.memory_analysis()
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return int(sum(sizes) - memory.alias_size_in_bytes)


def rates(name: str, seconds: float, needed: int, machine: float) -> dict[str, Any]:
    """The numbers of one measured way."""
    achieved = needed / seconds
    return {
        "name": name,
        "seconds": seconds,
        "flop": needed,
        "flop_per_second": achieved,
        "matmul_flop_per_second": machine,
        "share_of_matmul": achieved / machine,
        "device": jax.devices()[0].device_kind,
    }
