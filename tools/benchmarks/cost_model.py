"""What one training step costs on `N` devices: arithmetic, what the devices exchange, and images to decode.

The arithmetic is that of the busiest device: its images, its classes, and what every device does for itself (the shared
tokens of the prompts). The exchanges are what the partitioner makes of the program, whatever its depth:

| exchange | bytes per run | where |
| --- | --- | --- |
| class features, forward | `4 n C d` | only where learnables act on the text tower |
| their gradients | `4 n C d` | the same; with a residual alone `4 C d`, in the last exchange |
| images seen, images right | `8` | always |
| gradients and loss | `4 (G + 1)` | always |

`G` is what the learnables become where they enter the towers: contexts, `L` rows of prompts for each tower (also where
fewer blocks replace any) and the vision prompts' first row, biases. What a method computes these from, as MaPLe's
projections, is never exchanged.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from sklearn.linear_model import LinearRegression

from clipbias.clip import TextTokens
from clipbias.clip.adaptation import Adaptation
from clipbias.training import flops
from clipbias.tuning import Task


@dataclasses.dataclass(frozen=True)
class Work:
    """One training step of one run.

    Attributes:
      flop: of the busiest device; `all_flop` of all devices together.
      exchanges, exchanged_bytes: all-reduces, and the bytes that each device puts into them.
      images: decoded by all hosts together.
    """

    flop: int
    all_flop: int
    exchanges: int
    exchanged_bytes: int
    images: int


def adaptation_of(task: Task) -> Adaptation:
    """Shapes of what the method adds."""
    return jax.eval_shape(task.method.adapt, task.shapes)


def first_block(bias: Any, changes: bool) -> int | None:
    """The first block that gradients pass through: a bias acts behind the first one."""
    return (0 if bias is None else 1) if changes else None


def training_step(task: Task, batch: int, devices: int = 1) -> Work:
    """The work of one step; `task` must have as many groups as there are devices."""
    adaptation, config = adaptation_of(task), task.clip.config
    per_device = -(-batch // devices)  # a batch that does not divide is filled up
    shared = flops.vision(
        config,
        per_device,
        prompts=prompt_count(adaptation),
        backward_from=first_block(adaptation.vision_bias, adaptation.changes_vision),
    )
    shared += 3 * flops.matmul((per_device, config.projection_width, len(task.class_names)))
    texts = [0]
    if adaptation.changes_text:
        backward = first_block(adaptation.text_bias, True)
        texts = [flops.text(config, one, task.text.shared, backward_from=backward) for one in groups_of(task)]
    count, size = exchanges(task) if devices > 1 else (0, 0)
    return Work(shared + max(texts), devices * shared + sum(texts), count, size, batch)


def prompt_count(adaptation: Adaptation) -> int:
    """Vision prompts beside the patches."""
    return 0 if adaptation.vision_prompts is None else adaptation.vision_prompts.shape[1]


def groups_of(task: Task) -> list[TextTokens]:
    """The texts of each group of classes, as `pack` dealt them."""
    group = np.asarray(task.text.order) // task.text.ends.shape[1]
    arrays = [np.asarray(leaf) for leaf in (task.tokens.ids, task.tokens.context_rows, task.tokens.eos)]
    return [TextTokens(*(array[group == one] for array in arrays)) for one in np.unique(group)]


def exchanges(task: Task) -> tuple[int, int]:
    """How many all-reduces a step has on several devices, and the bytes of their results on one device."""
    adaptation, config = adaptation_of(task), task.clip.config
    features = len(task.texts) * config.projection_width
    numbers = 1  # the loss
    for part in (adaptation.text_context, adaptation.text_bias, adaptation.vision_bias):
        numbers += 0 if part is None else part.size
    for prompts, layers, first in (
        (adaptation.text_prompts, config.text.layers, 0),
        (adaptation.vision_prompts, config.vision.layers, 1),
    ):
        if prompts is None or 0 in prompts.shape:
            continue
        rows = first + (layers if prompts.shape[0] > first else 0)
        numbers += rows * prompts.shape[1] * prompts.shape[2]
    if adaptation.changes_text:
        numbers += 2 * features
    elif adaptation.text_residual is not None:
        numbers += adaptation.text_residual.size
    return (4 if adaptation.changes_text else 2), 4 * numbers + 8


def all_reduce_seconds(count: int, size: float, devices: int, *, link: float, hop_seconds: float) -> float:
    """Of a ring: an all-reduce takes `2 (N - 1)` hops, and `2 (N - 1) / N` of all bytes pass each link."""
    return 2 * (devices - 1) * (count * hop_seconds + size / devices / link)


@dataclasses.dataclass(frozen=True)
class StepTime:
    """The parts of a step's seconds; images are decoded meanwhile, the others follow each other.

    Attributes:
      compute, collectives, dispatch: of the devices' arithmetic, of their exchanges, of the host that starts a step.
      input: until the hosts have decoded the step's images.
    """

    compute: float
    collectives: float
    dispatch: float
    input: float

    @property
    def seconds(self) -> float:
        return max(self.compute + self.collectives + self.dispatch, self.input)

    @property
    def limit(self) -> str:
        """What takes most."""
        return max(dataclasses.asdict(self), key=lambda name: getattr(self, name))


FEATURES = ("fixed", "each further device", "arithmetic", "exchanged bytes")


@dataclasses.dataclass(frozen=True)
class Fit:
    """Least squares over measured steps: seconds per unit of each of `FEATURES`, and each point's relative residual."""

    coefficients: tuple[float, ...]
    residuals: tuple[float, ...]

    @property
    def flop_per_second(self) -> float:
        """Infinite where the points are too small to show their arithmetic."""
        return 1 / self.coefficients[2] if self.coefficients[2] else float("inf")


def fit(points: Sequence[tuple[int, Work, float]]) -> Fit:
    """From `(simulated devices, work, seconds)`; coefficients are not negative, residuals count relative to each point.

    Simulated devices share the cores, so arithmetic is that of all of them, and bytes are those that all of them copy.
    """
    rows = np.array([(1, n - 1, work.all_flop, n * work.exchanged_bytes) for n, work, _ in points], float)
    seconds = np.array([s for *_, s in points])
    scale = np.maximum(rows.max(0), 1)
    relative = rows / scale / seconds[:, None]
    solution = LinearRegression(fit_intercept=False, positive=True).fit(relative, np.ones(len(points))).coef_
    predicted = rows / scale @ solution
    return Fit(tuple((solution / scale).tolist()), tuple((predicted / seconds - 1).tolist()))
