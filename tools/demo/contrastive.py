"""One step of contrastive pretraining with several matches per caption: CLIP's softmax (Radford et al. 2021), or
SigLIP's sigmoids (Zhai et al. 2023).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipbias.clip import ClipConfig, ClipModule, Preprocessing

WARM_UP = 300  # steps


def random_crops(images: jax.Array, rng: jax.Array, *, smallest: float = 0.6) -> jax.Array:
    """Cuts a random window out of each image and stretches it to the full size, bilinearly.

    Args:
      images: `[B, R, R, 3]`.
      smallest: the smallest window's side, as a fraction of the image's; some windows are the whole image.
    """
    batch, size = images.shape[:2]
    keys = jax.random.split(rng, 3)
    sides = jax.random.uniform(keys[0], (batch, 2), minval=smallest, maxval=1.25).clip(max=1.0)
    starts = jax.random.uniform(keys[1], (batch, 2)) * (1 - sides)

    def weights(start: jax.Array, side: jax.Array) -> jax.Array:
        """`[B, R, R]`: how much of each input row or column each output one takes."""
        centres = start[:, None] * size + (jnp.arange(size) + 0.5) * side[:, None] - 0.5
        distance = jnp.abs(centres.clip(0, size - 1)[:, :, None] - jnp.arange(size))
        return jnp.maximum(0, 1 - distance)

    rows, columns = weights(starts[:, 0], sides[:, 0]), weights(starts[:, 1], sides[:, 1])
    return jnp.einsum("BYR,BRCK,BXC->BYXK", rows, images, columns)


def matching_loss(
    image_features: jax.Array, text_features: jax.Array, ids: jax.Array, logit_scale: jax.Array
) -> jax.Array:
    """Symmetric cross-entropy where every pair with equal captions is a match, all equally likely.

    Args:
      image_features, text_features: `[B, d]`, of any length.
      ids: `[B, N]`: the captions.
      logit_scale: a logarithm.
    """
    logits, matches = _compared(image_features, text_features, ids, logit_scale)
    targets = matches / matches.sum(-1, keepdims=True)
    of_images = optax.softmax_cross_entropy(logits, targets)
    of_texts = optax.softmax_cross_entropy(logits.T, targets)
    return 0.5 * (of_images + of_texts).mean()


def sigmoid_loss(
    image_features: jax.Array, text_features: jax.Array, ids: jax.Array, logit_scale: jax.Array, logit_bias: jax.Array
) -> jax.Array:
    """SigLIP's loss: each pair of an image and a caption is a match or none by itself; their sum over `B`.

    Another image's caption that equals an image's own is left out: as a match it would make the number of matches, and
    with it the best `logit_bias`, another one in each batch.

    Args:
      image_features, text_features, ids, logit_scale: as of `matching_loss`.
      logit_bias: added to every logit.
    """
    logits, matches = _compared(image_features, text_features, ids, logit_scale)
    diagonal = jnp.eye(len(ids))
    losses = optax.sigmoid_binary_cross_entropy(logits + logit_bias, diagonal)
    return jnp.where(matches > diagonal, 0, losses).sum() / len(ids)


def _compared(
    image_features: jax.Array, text_features: jax.Array, ids: jax.Array, logit_scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`[B, B]` logits of each image and each caption, and 1 where the image's own caption is that one, else 0."""
    image_features = image_features / jnp.linalg.norm(image_features, axis=-1, keepdims=True)
    text_features = text_features / jnp.linalg.norm(text_features, axis=-1, keepdims=True)
    logits = jnp.exp(logit_scale) * image_features @ text_features.T
    return logits, (ids[:, None] == ids[None]).all(-1).astype(jnp.float32)


def loss(params: Any, config: ClipConfig, images: jax.Array, ids: jax.Array) -> jax.Array:
    """The loss of the model's family, of normalised `images [B, R, R, 3]` and their captions `ids [B, N]`.

    CLIP's scale of logits is a constant here. SigLIP's is learned.
    """
    features: Any = ClipModule(config).apply({"params": params}, images, ids)
    image_features, text_features = features
    if config.family == "siglip":
        return sigmoid_loss(image_features, text_features, ids, params["logit_scale"], params["logit_bias"])
    return matching_loss(image_features, text_features, ids, jax.lax.stop_gradient(params["logit_scale"]))


def decayed(params: Any) -> Any:
    """Which parameters weight decay acts on: matrices, not biases, LayerNorm or the logit scale."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and not any(getattr(key, "key", "") in ("bias", "scale") for key in path),
        params,
    )


def optimiser(*, learning_rate: float, steps: int, weight_decay: float) -> optax.GradientTransformation:
    """AdamW with gradients clipped to norm 1.

    The rate rises for `WARM_UP` steps, stays, and falls to nothing over the last third. Being constant in between, it
    lets a run that is under way be made longer or shorter and still be the run that its final number of steps defines.
    """
    warm_up = min(WARM_UP, max(1, steps // 3))
    fall = max(warm_up + 1, steps * 2 // 3)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, learning_rate, warm_up),
            optax.constant_schedule(learning_rate),
            optax.linear_schedule(learning_rate, 0.0, max(1, steps - fall)),
        ],
        boundaries=[warm_up, fall],
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.98, eps=1e-6, weight_decay=weight_decay, mask=decayed),
    )


def train_step(
    params: Any,
    state: optax.OptState,
    batch: dict[str, jax.Array],
    rng: jax.Array,
    *,
    config: ClipConfig,
    preprocessing: Preprocessing,
    optimiser: optax.GradientTransformation,
) -> tuple[Any, optax.OptState, jax.Array]:
    """One update. Returns parameters, optimiser state and the loss."""
    images = random_crops(batch["images"].astype(jnp.float32), rng)
    images = preprocessing.normalize(images)
    value, gradients = jax.value_and_grad(loss)(params, config, images, batch["ids"])
    updates, state = optimiser.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value
