"""A tuned model: a task with its learnables. Evaluation, distillation, studies, exports and files take this value."""

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
from clipbias.tuning.conformal import Calibration
from clipbias.tuning.method import Learnables, flatten
from clipbias.tuning.prompts import ClassList
from clipbias.tuning.task import Task
from clipbias.tuning.transfer import transfer

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
