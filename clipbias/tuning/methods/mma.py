"""MMA (Yang et al. 2024, Multi-Modal Adapter for Vision-Language Models): adapters sharing a layer between towers."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from clipbias.checks import Range
from clipbias.clip import Adaptation, Clip
from clipbias.tuning.method import Kind, Learnables, Method, Preset
from clipbias.tuning.recipe import COMMON, MOST, Recipe, RecipeName


@dataclasses.dataclass(frozen=True)
class MMA(Method):
    """Adds `a · up(relu(shared(relu(down(LN1(x))))))` to the output of each of the last blocks of both towers.

    `x` is the block's input and LN1 its frozen first LayerNorm. `down [D, r]` and `up [r, D]` belong to one tower;
    `shared [r, r]` belongs to the blocks of the same number in both towers. Kernels start at N(0, 2/outputs), biases at
    zero. The optimiser gets `1/a` times the gradient.

    Attributes:
      blocks: number of the last blocks of the shallower tower; the authors use 5 to 12 of 12.
      width, factor: `r` and `a`.
      recipe: "common", or the "authors'": SGD at 0.0015 for 5 epochs without warm-up.
      batch_size: of the authors' recipe.
    """

    presets = {"mma": Preset("MMA", order=650)}
    kind = Kind.WEIGHTS
    datasets = {"imagenet": {"batch_size": 128}}

    blocks: Annotated[int, Range(1, 1000)] = 8
    width: Annotated[int, Range(1, 10_000)] = 32
    factor: Annotated[float, Range(1e-9, 1e9)] = 0.001
    recipe: RecipeName = COMMON
    batch_size: Annotated[int, Range(1, MOST)] = 16

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        vision = clip.config.vision
        text = clip.config.text
        count = min(self.blocks, vision.layers, text.layers)
        width = self.width

        # One row per block, counted from the towers' starts, so that a shared kernel meets blocks of the same number,
        # also in a deeper tower.
        def dense(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
            # Kaiming's variance for ReLU, by the number of outputs.
            kernel = (2 / outputs) ** 0.5 * jax.random.normal(key, (count, inputs, outputs))
            return {"kernel": kernel, "bias": jnp.zeros((count, outputs))}

        keys = jax.random.split(rng, 5)
        return {
            "vision": {"down": dense(keys[0], vision.width, width), "up": dense(keys[1], width, vision.width)},
            "text": {"down": dense(keys[2], text.width, width), "up": dense(keys[3], width, text.width)},
            "shared": dense(keys[4], width, width),
        }

    def adapt(self, learnables: Learnables) -> Adaptation:
        # `a` multiplies `up` here, and gradients in `optimizer` are divided by it: folded once, a block pays nothing.
        def adapters(tower: Learnables) -> dict[str, Learnables]:
            up = jax.tree.map(lambda leaf: self.factor * leaf, tower["up"])
            return {"down": tower["down"], "middle": learnables["shared"], "up": up}

        return Adaptation(text_adapters=adapters(learnables["text"]), vision_adapters=adapters(learnables["vision"]))

    def optimizer(self, recipe: Recipe) -> optax.GradientTransformation:
        # `a` also scales the gradients: without its inverse, as the authors' code has it, SGD would hardly move
        # anything. Before the recipe's chain, which adds the weight decay: the decay must not be scaled.
        return optax.chain(optax.scale(1 / self.factor), recipe.transformation())

    def authors_recipe(self, common: Recipe, shots: int | None) -> Recipe:
        return Recipe(learning_rate=0.0015, epochs=5, batch_size=self.batch_size, warmup_epochs=0)
