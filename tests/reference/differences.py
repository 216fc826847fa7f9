"""Gradients by central differences of float64 losses, which a package's float32 gradients are compared with.

Differences of float64 losses are exact to 1e-6 and better, relative to the gradient; float32 rounds to some 1e-5.
"""

from collections.abc import Callable, Mapping

import numpy as np

from tests.reference import weights

Arrays = Mapping[str, np.ndarray]
STEP = 1e-5


def central(function: Callable[..., np.ndarray | float], step: float = STEP) -> np.ndarray:
    """The derivative at 0 of a function of a number."""
    return (np.asarray(function(step)) - np.asarray(function(-step))) / (2 * step)


def in_full(losses: Callable[[dict[str, np.ndarray]], np.ndarray], learnables: Arrays) -> list[dict[str, np.ndarray]]:
    """The gradient of each of several losses, every coordinate, from two evaluations for each."""
    gradients: dict[str, np.ndarray] = {}
    for name, value in learnables.items():
        value = np.asarray(value, np.float64)
        slopes = []
        for index in np.ndindex(value.shape):

            def along(distance: float, name: str = name, value: np.ndarray = value, index: tuple = index) -> np.ndarray:
                moved = value.copy()
                moved[index] += distance
                return losses({**learnables, name: moved})

            slopes.append(central(along))
        gradients[name] = np.reshape(np.transpose(slopes), (-1, *value.shape))
    count = len(next(iter(gradients.values())))
    return [{name: value[i] for name, value in gradients.items()} for i in range(count)]


def along_directions(
    loss: Callable[[dict[str, np.ndarray]], float],
    learnables: Arrays,
    gradients: Arrays,
    *,
    directions: int = 3,
    seed: int = 7,
    step: float = STEP,
) -> dict[str, float]:
    """How far gradients are from central differences, per array, relative to the norm of the array's gradient.

    Args:
      loss: of learnables, in float64.
      learnables, gradients: arrays of the same names and shapes: the point, and the gradients in question.
      directions: random directions through each whole array, of entries of variance 1; two evaluations for each.
    """
    errors = {}
    for stream, (name, value) in enumerate(learnables.items()):
        gradient, value = np.asarray(gradients[name], np.float64), np.asarray(value, np.float64)
        if gradient.shape != value.shape:
            raise AssertionError(f"{name} has shape {value.shape}, its gradient {gradient.shape}.")
        if not value.size:
            continue
        scale = max(float(np.linalg.norm(gradient)), np.finfo(np.float64).tiny)
        errors[name] = 0.0
        for number in range(directions):
            line = weights.deterministic_uniform(seed + number, stream, value.shape).astype(np.float64)

            def along(distance: float, name: str = name, value: np.ndarray = value, line: np.ndarray = line) -> float:
                return loss({**learnables, name: value + distance * line})

            slope = float(central(along, step))
            errors[name] = max(errors[name], abs(slope - float((gradient * line).sum())) / scale)
    return errors
