"""Image preprocessing of a model: how a picture is resized and cropped (`data.transforms`), then normalisation.

`preprocess_files` reads and writes it in the files of the libraries.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.data.transforms import Resizing

HALF = (0.5, 0.5, 0.5)  # SigLIP's mean and standard deviation


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How the images of a checkpoint are prepared, as its publisher's files say.

    Attributes:
      resizing: from a picture to R x R pixels.
      mean, std: per RGB channel, of values from 0 to 1.
    """

    resizing: Resizing
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def image_size(self) -> int:
        """The resolution R in pixels."""
        return self.resizing.side

    def normalize(self, images: np.ndarray | jax.Array) -> jax.Array:
        """`(x / 255 - mean) / std`: uint8 `[..., R, R, 3]` to float32. Runs on the device, so that bytes travel."""
        scaled = jnp.asarray(images).astype(jnp.float32) / 255
        return (scaled - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def levels(self, images: np.ndarray) -> np.ndarray:
        """The inverse of `normalize`: float32 `[..., R, R, 3]` to uint8."""
        levels = 255 * (images * np.asarray(self.std) + np.asarray(self.mean))
        return levels.round().clip(0, 255).astype(np.uint8)
