"""Transfer of learnables to other classes: known classes keep theirs, new classes get a start."""

import collections
from collections.abc import Callable, Sequence

import jax
import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.tuning import on_host
from clipbias.tuning.method import FeatureMethod, Learnables, flatten, select_run, stack_runs, unflatten
from clipbias.tuning.prompts import name_tokens
from clipbias.tuning.task import Task


def transfer(
    source: Task, target: Task, learnables: Learnables, source_labels: Sequence[int] | None = None, *, axis: int = 0
) -> Learnables:
    """Learnables of `source` for the classes of `target`, a task of the same method and model.

    `source_labels [C']` are the labels in `source` of the classes of `target`, -1 for new ones; by default classes are
    matched by their names. The `axis` of classes is 1 with a leading axis of runs. Raises `ClipbiasError` where the
    method has nothing for a new class.
    """
    # Known classes keep their learnables. A new class gets the method's start, unless no class is known, or the start
    # is random or made of training images: such a start says nothing about a class.
    method = source.method
    # Tokens, not strings: "maine_coon" and "Maine  coon" are the same class to the model.
    names = (name_tokens(task.clip, task.class_names, source.prompt) for task in (source, target))
    places = match_labels(*names) if source_labels is None else np.asarray(source_labels, np.int32)
    in_place = np.array_equal(places, np.arange(len(source.class_names)))
    if in_place and source.classes.identity == target.classes.identity:
        return learnables
    if (to_other_classes := method.transfer) is not None:
        texts = [
            np.asarray(task.classifier.split_by_template(task.plain_text_features(task.clip.params)))
            for task in (source, target)
        ]
        return _each_run(lambda run: to_other_classes(run, places, *texts), learnables, axis)

    def start(seed: int, *more: str) -> Learnables:
        return flatten(method.init(jax.random.key(seed), target.clip, (*target.class_names, *more)))

    # An array belongs to the classes if its shape changes with their number. `eval_shape` computes nothing.
    shapes, grown = (jax.eval_shape(lambda more=more: start(0, *more)) for more in ((), ("another",)))
    belong = [name for name, leaf in shapes.items() if leaf.shape != grown[name].shape]
    if not belong:
        return learnables
    is_new = places < 0
    # Two keys tell a random start from a start that the class's text determines.
    first, other = ({name: np.asarray(rows[name])[is_new] for name in belong} for rows in map(start, (0, 1)))
    is_random = any(not np.array_equal(first[name], other[name]) for name in belong)
    says_nothing = is_random or is_new.all() or isinstance(method, FeatureMethod)
    has_start = method.read_classes is not None or not says_nothing
    if is_new.any() and not has_start:
        raise ClipbiasError(
            f"{type(method).__name__} learned something for each class and cannot be used with other classes such as "
            f"{target.class_names[int(places.argmin())]!r}; tune it on them."
        )

    def change(run: Learnables) -> Learnables:
        arrays = flatten(run)
        rows = {name: on_host.class_rows(arrays[name], places, first[name]) for name in belong}
        return target.read_classes(unflatten({**arrays, **rows}))

    return _each_run(change, learnables, axis)


def match_labels(known: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> np.ndarray:
    """The label `[C']` of each wanted class among the known ones, by tokens, or -1."""
    # Classes may share a name (ImageNet's two "missile"): equal ones are matched in order, since `pop` takes the last.
    labels_of: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
    for label in reversed(range(len(known))):
        labels_of[tuple(known[label])].append(label)
    return np.asarray([labels_of[tuple(name)].pop() if labels_of[tuple(name)] else -1 for name in wanted], np.int32)


def _each_run(change: Callable[[Learnables], Learnables], learnables: Learnables, axis: int) -> Learnables:
    # Run by run: `transfer` of a method works on NumPy arrays, and the shapes of its result may depend on the run.
    if not axis:
        return jax.device_get(change(learnables))
    runs = range(jax.tree.leaves(learnables)[0].shape[0])
    return stack_runs([jax.device_get(change(select_run(learnables, run))) for run in runs])
