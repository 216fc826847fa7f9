"""What becomes of an image under given logits: what the causal test, constants and the explorer tell."""

import jax
import jax.numpy as jnp


def outcomes(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """What becomes of images of classes `[B]` under logits `[K, B, C]`, `[K, B]` each.

    "correct"; "log_likelihood" of the true class, in nats; "margin", the true class's logit minus the best other's.
    """
    true = jnp.take_along_axis(logits, labels[None, :, None], axis=-1)[..., 0]
    others = jnp.where(jax.nn.one_hot(labels, logits.shape[-1], dtype=bool), -jnp.inf, logits).max(-1)
    return {
        "correct": logits.argmax(-1) == labels,
        "log_likelihood": true - jax.nn.logsumexp(logits, axis=-1),
        "margin": true - others,
    }
