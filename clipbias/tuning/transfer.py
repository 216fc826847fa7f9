"""Learnables for other classes."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.tuning.method import Learnables, select_run, stack_runs
from clipbias.tuning.task import Task


def transfer(
    source: Task, target: Task, learnables: Learnables, labels: Sequence[int] | None = None, *, axis: int = 0
) -> Learnables:
    """Learnables of `source` for the classes of `target`, a task of the same method and model.

    Arrays with a row for each class (TaskRes, class-specific contexts) are indexed by `labels`: the label in `source`
    of each class of `target`, or `None` for classes that `source` lacks. Others are returned unchanged. The class axis
    is 1 with a leading axis of runs.

    Raises:
      ClipbiasError: an array has a row for each class, and `labels` is `None`.
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
    # An array depends on the classes if its shape changes with their number.
    grown_shapes = jax.eval_shape(
        lambda rng: method.init(rng, source.clip, (*source.class_names, "another")), jax.random.key(0)
    )

    def select_rows(leaf: jax.Array, shape: jax.ShapeDtypeStruct, grown: jax.ShapeDtypeStruct) -> jax.Array:
        if shape.shape == grown.shape:
            return leaf
        if labels is None:
            raise ClipbiasError(
                f"{type(method).__name__} learned something for each class and cannot be used with other classes such "
                f"as {target.class_names[0]!r}; tune it on them."
            )
        return leaf.take(jnp.asarray(labels), axis=axis)

    return jax.tree.map(select_rows, learnables, source.shapes, grown_shapes)


def _plain_texts(task: Task) -> np.ndarray:
    """Plain CLIP's text features `[S, C, d]` of a task's classes."""
    features = task.plain_text_features(task.clip.params)
    return np.asarray(task.classifier.split_by_template(features))


def _each_run(change: Callable[[Learnables], Learnables], learnables: Learnables, axis: int) -> Learnables:
    if not axis:
        return jax.device_get(change(learnables))
    runs = range(jax.tree.leaves(learnables)[0].shape[0])
    return stack_runs([jax.device_get(change(select_run(learnables, run))) for run in runs])
