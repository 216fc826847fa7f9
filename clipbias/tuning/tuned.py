"""A tuned model: a task with its learnables. Evaluation, distillation, studies, exports and files take this value.

Its learnables are transferred to other classes: known classes keep theirs, new classes get a start.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

import jax
import numpy as np

from clipbias.checks import shown
from clipbias.clip import Clip
from clipbias.data.dataset import Descriptions
from clipbias.errors import ClipbiasError
from clipbias.identity import identity
from clipbias.tuning import on_host
from clipbias.tuning.conformal import Calibration
from clipbias.tuning.method import FeatureMethod, Learnables, flatten, select_run, stack_runs, unflatten
from clipbias.tuning.prompts import ClassList, name_tokens
from clipbias.tuning.task import Task

T = TypeVar("T")

# Notes about the training. They stay true of the model with other classes.
OF_TRAINING = (
    "dataset",
    "data",
    "protocol",
    "validation",
    "shots",
    "seed",
    "start_seed",
    "train_images",
    "images_per_class",
    "skipped_training_images",
    "learning_rate",
    "recipe",
    "choice",
    "used_options",
    "training",
    "equivalent_bias",
    "imported",
    "teacher",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Tuned:
    """A frozen CLIP with the learnables of a method.

    Attributes:
      task: the method bound to the frozen CLIP and the classes.
      learnables: the trainable parameters, a dictionary of arrays; `{}` for a method that learns nothing (zero-shot).
      notes: JSON values that its file keeps, such as dataset, shots, seed and accuracy.
      calibration: scores of calibration images, for prediction sets; `None` without them.
    """

    task: Task
    learnables: Learnables = dataclasses.field(default_factory=dict, repr=False)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    calibration: Calibration | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raises `ClipbiasError` for learnables of another method."""
        if not isinstance(self.task, Task):
            raise ClipbiasError(f"the task is {shown(self.task)}; give a clipbias.Task.")
        self.task.check_learnables(self.learnables)
        # A read-only copy: a user who writes to the original would change predictions behind the identity.
        object.__setattr__(self, "learnables", jax.tree.map(_read_only, self.learnables))

    @property
    def clip(self) -> Clip:
        return self.task.clip

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.task.class_names

    @property
    def identity(self) -> str:
        """Identity: equal models predict the same, wherever they were trained or read."""
        return self._of_leaves("identity", lambda: identity([self.task, flatten(self.learnables)]))

    def _of_leaves(self, name: str, make: Callable[[], T]) -> T:
        # Computed again only when a leaf of the learnables is another array. Compared by `is`: the dictionary is the
        # user's, who may put another array into it. The kept leaves stay alive, so that no new array gets the address
        # of an old one.
        leaves = jax.tree.leaves(self.learnables)
        kept = self.__dict__.get(f"_{name}")
        if kept is None or len(kept[0]) != len(leaves) or any(a is not b for a, b in zip(kept[0], leaves, strict=True)):
            kept = (leaves, make())
            object.__setattr__(self, f"_{name}", kept)
        return kept[1]

    def with_classes(
        self,
        class_names: Sequence[str] | ClassList,
        *,
        descriptions: Descriptions | Mapping[str, Sequence[str]] | None = None,
        free_text: bool | None = None,
    ) -> Self:
        """The same model for other classes, whose texts are those of `Task.with_classes`.

        Known classes keep their learnables. Raises `ClipbiasError` if the method has none for a new class.
        """
        task = self.task.with_classes(class_names, descriptions=descriptions, free_text=free_text)
        # Accuracy and calibration were measured with these classes. Identities, not names, tell whether they still are.
        same = task.identity == self.task.identity
        notes = {name: self.notes[name] for name in OF_TRAINING if name in self.notes}
        notes |= {"training_classes": self.notes.get("training_classes", len(self.class_names))}
        learnables = transfer(self.task, task, self.learnables)
        # Learnables of a class that is left out are lost. With them back from the start, it is no longer that training.
        lost = set(self.task.classes.names_as_read) - set(task.classes.names_as_read)
        if "training" in notes and lost and learnables is not self.learnables:
            notes["training"] = identity([notes["training"], "without", sorted(lost)])
        return dataclasses.replace(
            self,
            task=task,
            learnables=learnables,
            notes=self.notes if same else notes,
            calibration=self.calibration if same else None,
        )


def _read_only(leaf: Any) -> Any:
    # A NumPy scalar becomes an array without axes, as a file gives it back: both must have the same identity.
    if isinstance(leaf, np.ndarray | np.generic):
        leaf = np.array(leaf)
        leaf.flags.writeable = False
    return leaf


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
    if wrong := [
        name for name in belong if grown[name].shape != (len(target.class_names) + 1, *shapes[name].shape[1:])
    ]:
        raise ClipbiasError(
            f"{type(method).__name__} has an array {wrong[0]!r} of shape {list(shapes[wrong[0]].shape)}, whose classes "
            "are not its first axis alone; define its hook transfer, which gives it to other classes."
        )
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
