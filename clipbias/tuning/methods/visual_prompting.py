"""Visual prompting (Bahng et al. 2022, arXiv 2203.17274, Exploring Visual Prompts): a learned border of pixels.

The rate of the common recipe hardly changes a pixel. The authors evaluate the epoch that is best on the test set; here
it is the last epoch.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp

from clipbias.checks import Range
from clipbias.clip import Adaptation, Clip
from clipbias.tuning.method import Kind, Learnables, Method, Preset, PromptText
from clipbias.tuning.recipe import AUTHORS, MOST, Recipe, RecipeName

SIDE = 224  # of the authors' images


@dataclasses.dataclass(frozen=True)
class VisualPrompting(Method):
    """Adds a frame to the normalised image `[R, R, 3]`, which keeps its size: four strips of `p` pixels at N(0, 1).

    The upper and lower strips are `[p, R, 3]`, the left and right ones `[R - 2p, p, 3]`. The text is "This is a photo
    of a {}", without a full stop; `-` in class names becomes a space, as `_` does.

    Attributes:
      width: `p` in images of 224 x 224 pixels. In other images the share is the same, and no strip is empty.
      epochs: of the authors' recipe.
      recipe: the "authors'": SGD at 40 without decay, in batches of 256 of images that are not augmented, with a rate
        that rises over the first 1/200 of the epochs and then falls along a cosine, step by step; or "common".
    """

    presets = {"visual_prompting": Preset("Visual prompting", order=260)}
    kind = Kind.PROMPTS

    width: Annotated[int, Range(1, SIDE // 2 - 1)] = 30
    epochs: Annotated[int, Range(1, MOST)] = 1000
    recipe: RecipeName = AUTHORS

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        side = clip.config.vision.image_size
        # The authors' 30 of 224 pixels, as a share; at least a pixel of the image stays inside the frame.
        width = max(1, min(round(self.width * side / SIDE), (side - 1) // 2))
        horizontal = (width, side, 3)
        vertical = (side - 2 * width, width, 3)
        up, down, left, right = jax.random.split(rng, 4)
        return {
            "vision_up": jax.random.normal(up, horizontal),
            "vision_down": jax.random.normal(down, horizontal),
            "vision_left": jax.random.normal(left, vertical),
            "vision_right": jax.random.normal(right, vertical),
        }

    def adapt(self, learnables: Learnables) -> Adaptation:
        # Four strips, not a masked image: weight decay and the number of parameters are those of the frame alone.
        width, side = learnables["vision_up"].shape[:2]
        inside = jnp.zeros((side - 2 * width, side - 2 * width, 3))
        middle = jnp.concatenate([learnables["vision_left"], inside, learnables["vision_right"]], axis=1)
        return Adaptation(pixels=jnp.concatenate([learnables["vision_up"], middle, learnables["vision_down"]], axis=0))

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText(("This is a photo of a {}",), spaces="_-")

    def authors_recipe(self, common: Recipe, shots: int | None) -> Recipe:
        # The authors' 1000 steps of warm-up are 5 of their 1000 epochs, of 50,000 images.
        return Recipe(
            learning_rate=40.0,
            epochs=self.epochs,
            warmup_epochs=max(1, self.epochs // 200),
            warmup_learning_rate=0.0,
            batch_size=256,
            momentum=0.9,
            weight_decay=0.0,
            schedule="warmed_steps",
            augment=False,
        )
