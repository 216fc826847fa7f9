"""Tasks with different classes as runs of one program: what depends on the classes is filled up to equal shapes.

Fillers change no number: a class that is missing repeats the first one and is masked out of the loss, and what belongs
to it among the learnables stays zero.
"""

from collections.abc import Sequence

import jax
import numpy as np

from clipbias.clip.packed_text import PackedTokens, common_layout, pack
from clipbias.tuning import Task
from clipbias.tuning.method import Learnables


def same_program(tasks: Sequence[Task]) -> bool:
    """Whether tasks can be trained side by side: one method with equal options, and texts that can be filled up."""
    first = tasks[0]
    if all(task is first for task in tasks):
        return True
    if any(task.classifier != first.classifier for task in tasks):
        return False
    if not first.classifier.changes_text(first.shapes):
        return True
    return first.classifier.templates == 1 and len({task.text.context_is_shared for task in tasks}) == 1


def packed_alike(tasks: Sequence[Task], *, groups: int) -> list[PackedTokens]:
    """The texts of each task in one layout, so that all arrays have equal shapes."""
    context = jax.eval_shape(tasks[0].method.adapt, tasks[0].shapes).text_context
    specific = context is not None and len(context.shape) == 3
    layout = common_layout([task.tokens for task in tasks], groups=groups, class_specific=specific)
    return [pack(task.tokens, groups=groups, class_specific=specific, layout=layout) for task in tasks]


def features_alike(features: Sequence[np.ndarray], templates: int) -> list[np.ndarray]:
    """Text features `[n · C, d]` of each task with as many classes as the largest has."""
    split = [np.asarray(one).reshape(templates, -1, one.shape[-1]) for one in features]
    classes = max(one.shape[1] for one in split)
    filled = [np.concatenate([one, np.repeat(one[:, :1], classes - one.shape[1], 1)], axis=1) for one in split]
    return [one.reshape(-1, one.shape[-1]) for one in filled]


def fill_up(learnables: Sequence[Learnables]) -> list[Learnables]:
    """Learnables of several tasks with zeros behind what is shorter."""

    def one(*leaves: np.ndarray) -> list[np.ndarray]:
        shape = np.max([leaf.shape for leaf in leaves], axis=0) if leaves[0].ndim else ()
        return [np.pad(leaf, [(0, n - m) for n, m in zip(shape, leaf.shape, strict=True)]) for leaf in leaves]

    filled = jax.tree.map(one, *learnables)
    return [jax.tree.map(lambda _, own, i=i: own[i], learnables[0], filled) for i in range(len(learnables))]


def crop(learnables: Learnables, task: Task) -> Learnables:
    """What belongs to `task` of filled-up learnables with a leading axis of runs."""
    return jax.tree.map(
        lambda leaf, shape: leaf[(slice(None), *(slice(n) for n in shape.shape))], learnables, task.shapes
    )
