"""Learnables of one task used for other classes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.tuning.learnables import one_run, stack_runs
from clipbias.tuning.method import Learnables
from clipbias.tuning.task import Task


def transfer(
    source: Task, target: Task, learnables: Learnables, labels: Sequence[int] | None = None, *, axis: int = 0
) -> Learnables:
    """Learnables of `source` for the classes of `target`, a task of the same method and model.

    Prompts and biases belong to no class and are returned as they are. What was learned for each class (TaskRes,
    class-specific contexts) is taken row by row.

    Args:
      source, target: the task of training and the task of use.
      learnables: of `source`.
      labels: for each class of `target` its label in `source`; `None` where they are other classes.
      axis: position of the class axis; 1 where a leading axis holds several runs.

    Raises:
      ClipbiasError: the method learned something per class, and the classes are others.
    """
    if source.class_names == target.class_names:
        return learnables
    if source.method.overrides("transfer"):
        return _own_transfer(source, target, learnables, labels, axis)
    if source.method.overrides("read_classes"):
        return _read_again(target, learnables, axis)
    # What belongs to a class grows with the number of classes.
    one_more = jax.eval_shape(
        lambda rng: source.method.init(rng, source.clip, (*source.class_names, "another")), jax.random.key(0)
    )

    def one(leaf: jax.Array, shape: jax.ShapeDtypeStruct, grown: jax.ShapeDtypeStruct) -> jax.Array:
        if shape.shape == grown.shape:
            return leaf
        if labels is None:
            raise ClipbiasError(
                f"{type(source.method).__name__} learned something for each class and cannot be used with other "
                f"classes such as {target.class_names[0]!r}; tune it on them."
            )
        return leaf.take(jnp.asarray(labels), axis=axis)

    return jax.tree.map(one, learnables, source.shapes, one_more)


def _read_again(target: Task, learnables: Learnables, axis: int) -> Learnables:
    """What the method makes of the other classes' features, in each run."""
    if not axis:
        return target.read_classes(learnables)
    runs = range(jax.tree.leaves(learnables)[0].shape[0])
    return stack_runs([jax.device_get(target.read_classes(one_run(learnables, run))) for run in runs])


def _own_transfer(
    source: Task, target: Task, learnables: Learnables, labels: Sequence[int] | None, axis: int
) -> Learnables:
    """What the method's own hook makes of each run."""
    before, after = (
        np.asarray(task.classifier.by_text(task.plain_text_features(task.clip.params))) for task in (source, target)
    )

    def of_one(learnables: Learnables) -> Learnables:
        return jax.device_get(source.method.transfer(learnables, labels, before, after))

    if not axis:
        return of_one(learnables)
    runs = jax.tree.leaves(learnables)[0].shape[0]
    return stack_runs([of_one(one_run(learnables, run)) for run in range(runs)])
