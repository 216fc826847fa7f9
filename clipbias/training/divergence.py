"""The loss of a student: the Kullback-Leibler divergence of its predictions from a teacher's, in place of its own loss.

A batch of such a training holds the teacher's logits of its images as `teacher [B, C]`. No label is read.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from clipbias.tuning.method import Method

# `images`, `labels`, `mask`, and for a student `teacher`.
Batch = Mapping[str, jax.Array]
TEACHER = "teacher"


def divergence(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """`KL(softmax teacher ‖ softmax student)` of logits `[…, C]`, in nats: `[…]`, float32."""
    log_p = jax.nn.log_softmax(teacher.astype(jnp.float32))
    log_q = jax.nn.log_softmax(student.astype(jnp.float32))
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def targets(batch: Batch) -> jax.Array:
    """`[B]`: the labels, or the teacher's predictions."""
    return batch[TEACHER].argmax(-1) if TEACHER in batch else batch["labels"]


def loss_terms(terms: Mapping[str, jax.Array], logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """The method's terms of the loss, or the divergence `[B]` of `logits [B, C]` from the teacher's."""
    return {"divergence": divergence(batch[TEACHER], logits)} if TEACHER in batch else dict(terms)


def combines(method: Method, batch: Batch) -> bool:
    """Whether the method makes the gradient of a step from the gradients of its terms."""
    return method.overrides("combine") and TEACHER not in batch
