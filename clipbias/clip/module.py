"""CLIP as a Flax module, for training loops with `init` and `apply`."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from clipbias.clip.adaptation import Adaptation
from clipbias.clip.config import ClipConfig
from clipbias.clip.layers import RematPolicy
from clipbias.clip.params import init_logit_bias, init_logit_scale, init_text, init_vision
from clipbias.clip.text import TextTokens, encode_text
from clipbias.clip.tower import Observe, Observed
from clipbias.clip.vision import encode_image


class ClipModule(nn.Module):
    """Flax shell over `encode_image` and `encode_text`; its parameters are `Clip.params`.

      module = ClipModule(clip.config)
      features = module.apply({"params": clip.params}, images, method="encode_image")

    As a part of another module, it keeps the tree below its name. Results of `observe` are sown, stacked over layers,
    into the collection "intermediates" as "vision_layers" and "text_layers". For `dtype` and `remat` see
    `encode_image`.
    """

    config: ClipConfig
    dtype: DTypeLike = jnp.float32
    remat: RematPolicy | None = None

    def setup(self) -> None:
        # One parameter per tower, a whole tree, so that the names below are those of `Clip.params`.
        self.param("vision", init_vision, self.config)
        self.param("text", init_text, self.config)
        self.param("logit_scale", init_logit_scale)
        if self.config.logit_bias:
            self.param("logit_bias", init_logit_bias)

    def encode_image(
        self,
        images: jax.Array,
        adaptation: Adaptation | None = None,
        *,
        taps: jax.Array | None = None,
        observe: Observe | None = None,
    ) -> jax.Array:
        """Computes features `[B, d]` of images `[B, R, R, 3]`; see `clip.encode_image`."""
        return self._encode(encode_image, "vision", images, adaptation, taps, observe)

    def encode_text(
        self,
        tokens: TextTokens | jax.Array,
        adaptation: Adaptation | None = None,
        *,
        taps: jax.Array | None = None,
        observe: Observe | None = None,
    ) -> jax.Array:
        """Computes features `[C, d]` of tokens or ids `[C, N]`; see `clip.encode_text`."""
        return self._encode(encode_text, "text", tokens, adaptation, taps, observe)

    def __call__(
        self,
        images: jax.Array | None = None,
        tokens: TextTokens | jax.Array | None = None,
        adaptation: Adaptation | None = None,
        *,
        observe: Observe | None = None,
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """Computes image features `[B, d]` and text features `[C, d]`; `None` without images or tokens."""
        # Each tower is optional, so that `init` needs one kind of input only.
        return (
            None if images is None else self.encode_image(images, adaptation, observe=observe),
            None if tokens is None else self.encode_text(tokens, adaptation, observe=observe),
        )

    def _encode(
        self,
        encode: Callable[..., tuple[jax.Array, Observed]],
        tower: str,
        batch: jax.Array | TextTokens,
        adaptation: Adaptation | None,
        taps: jax.Array | None,
        observe: Observe | None,
    ) -> jax.Array:
        # `setup` has created all parameters, so that `init` may call this before any other method.
        params = self.variables["params"]
        features, seen = encode(
            params, self.config, batch, adaptation, taps=taps, observe=observe, remat=self.remat, dtype=self.dtype
        )
        # Sown and not returned, so that both methods return features alone, as a model in a training loop does.
        if observe is not None:
            self.sow("intermediates", f"{tower}_layers", seen)
        return features
