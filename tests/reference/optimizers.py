"""PyTorch's optimisers and the learning-rate schedules of the methods, in float64.

Learnables and gradients are dicts of arrays with the same names. An optimiser keeps its own state, so one object
serves one training. `p` is a parameter, `g` its gradient, `lr` the learning rate of the step.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass
class SGD:
    """`g += wd p; v = momentum v + g; p -= lr v`, with v = 0 before the first step."""

    momentum: float = 0.9
    weight_decay: float = 5e-4
    velocity: Arrays = dataclasses.field(default_factory=dict)

    def step(self, values: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray], rate: float) -> Arrays:
        for name, value in values.items():
            gradient = gradients[name] + self.weight_decay * value
            self.velocity[name] = self.momentum * self.velocity.get(name, 0.0) + gradient
        return {name: value - rate * self.velocity[name] for name, value in values.items()}


@dataclasses.dataclass
class Adam:
    """`m = β1 m + (1 - β1) g; v = β2 v + (1 - β2) g²; p -= lr m̂ / (√v̂ + eps)`; `m̂ = m / (1 - β1ᵗ)`, v̂ likewise.

    Weight decay is added to the gradient, as torch's `Adam` does it: `g += wd p` before everything else.
    """

    epsilon: float = 1e-8
    weight_decay: float = 0.0
    steps: int = 0
    moments: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)

    def step(self, values: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray], rate: float) -> Arrays:
        decayed = {name: gradients[name] + self.weight_decay * value for name, value in values.items()}
        return self._move(values, decayed, rate)

    def _move(self, values: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray], rate: float) -> Arrays:
        self.steps += 1
        moved = {}
        for name, value in values.items():
            m, v = self.moments.get(name, (0.0, 0.0))
            m, v = 0.9 * m + 0.1 * gradients[name], 0.999 * v + 0.001 * gradients[name] ** 2
            self.moments[name] = m, v
            size = np.sqrt(v / (1 - 0.999**self.steps))
            moved[name] = value - rate * m / (1 - 0.9**self.steps) / (size + self.epsilon)
        return moved


@dataclasses.dataclass
class AdamW(Adam):
    """`p *= 1 - lr wd` first, then Adam's step with the gradient alone. The default decay is torch's."""

    weight_decay: float = 1e-2

    def step(self, values: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray], rate: float) -> Arrays:
        shrunk = {name: value * (1 - rate * self.weight_decay) for name, value in values.items()}
        return self._move(shrunk, gradients, rate)


Optimizer = SGD | Adam


def cosine_rates(rate: float, steps: int) -> np.ndarray:
    """[steps]: `rate (1 + cos(π k / steps)) / 2` for k = 0 … steps - 1, one per step."""
    return rate * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


def warmed_cosine_rates(rate: float, epochs: int) -> np.ndarray:
    """[epochs], one per epoch: 1e-5 in epoch 0, then `rate (1 + cos(π (e - 1) / epochs)) / 2`."""
    return np.concatenate([[1e-5], cosine_rates(rate, epochs)[:-1]])
