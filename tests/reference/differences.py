"""Gradients held against central differences of the loss that they are said to be of."""

from collections.abc import Callable

import numpy as np

from tests.reference import weights
from tests.reference.gradients import finite_differences
from tests.reference.methods import Learnables


def against_differences(
    loss: Callable[[Learnables], float],
    learnables: Learnables,
    found: Learnables,
    *,
    directions: int = 1,
    entries: int = 2,
    step: float = 1e-5,
    seed: int = 7,
) -> dict[str, float]:
    """How far gradients are from central differences, per array, relative to the norm of the array's gradient.

    Args:
      loss: of learnables, in float64.
      learnables, found: arrays of the same names and shapes: the point, and the gradients in question.
      directions: random directions through the whole array; each costs two evaluations.
      entries: single entries, the one with the largest gradient first.
    """
    errors = {}
    for stream, (name, value) in enumerate(learnables.items()):
        gradient, value = np.asarray(found[name], np.float64), np.asarray(value, np.float64)
        if gradient.shape != value.shape:
            raise AssertionError(f"{name} has shape {value.shape}, its gradient {gradient.shape}.")
        if not value.size:
            continue
        lines = [weights.deterministic_uniform(seed + i, stream, value.shape) for i in range(directions)]
        drawn = np.random.Philox(key=[seed, stream]).random_raw(entries) % np.uint64(value.size)
        for index in [np.abs(gradient).argmax(), *drawn][:entries]:
            lines.append(np.zeros(value.shape))
            lines[-1].flat[int(index)] = 1.0
        scale = max(float(np.linalg.norm(gradient)), np.finfo(np.float64).tiny)
        errors[name] = 0.0
        for line in lines:

            def along(distance: np.ndarray, name: str = name, value: np.ndarray = value, line: np.ndarray = line):
                return loss({**learnables, name: value + distance[0] * line})

            slope = finite_differences(along, np.zeros(1), step)[0]
            errors[name] = max(errors[name], abs(slope - float((gradient * line).sum())) / scale)
    return errors
