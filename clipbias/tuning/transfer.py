"""Learnables of one task used for other classes."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.tuning.learnables import select_run, stack_runs
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
    method = source.method
    if source.class_names == target.class_names:
        return learnables
    if method.overrides("transfer"):
        source_text = _plain_texts(source)
        target_text = _plain_texts(target)
        return _each_run(lambda run: method.transfer(run, labels, source_text, target_text), learnables, axis)
    if method.overrides("read_classes"):
        return _each_run(target.read_classes, learnables, axis)
    # What belongs to a class grows with the number of classes.
    one_more = jax.eval_shape(
        lambda rng: method.init(rng, source.clip, (*source.class_names, "another")), jax.random.key(0)
    )

    def rows(leaf: jax.Array, shape: jax.ShapeDtypeStruct, grown: jax.ShapeDtypeStruct) -> jax.Array:
        if shape.shape == grown.shape:
            return leaf
        if labels is None:
            raise ClipbiasError(
                f"{type(method).__name__} learned something for each class and cannot be used with other classes such "
                f"as {target.class_names[0]!r}; tune it on them."
            )
        return leaf.take(jnp.asarray(labels), axis=axis)

    return jax.tree.map(rows, learnables, source.shapes, one_more)


def _plain_texts(task: Task) -> np.ndarray:
    """Plain CLIP's text features `[S, C, d]` of a task's classes."""
    features = task.plain_text_features(task.clip.params)
    return np.asarray(task.classifier.split_by_template(features))


def _each_run(change: Callable[[Learnables], Learnables], learnables: Learnables, axis: int) -> Learnables:
    """What is made of the learnables on the host; run by run where a leading axis holds several."""
    if not axis:
        return jax.device_get(change(learnables))
    runs = range(jax.tree.leaves(learnables)[0].shape[0])
    return stack_runs([jax.device_get(change(select_run(learnables, run))) for run in runs])
