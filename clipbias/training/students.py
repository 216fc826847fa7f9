"""Fits a form to a tuned model: a student on the frozen model learns its predictions on unlabelled images."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from clipbias.clip import Clip
from clipbias.data import Dataset, Split, protocols
from clipbias.training import mesh as meshes
from clipbias.training.context import SweepContext
from clipbias.training.job import Logging, Run, TrainJob
from clipbias.training.loop import train_job
from clipbias.training.teacher import Teacher
from clipbias.tuning import Recipe, Task
from clipbias.tuning.method import Learnables, select_run
from clipbias.tuning.prompts import ClassList

STEPS = 1500
BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Form:
    """What a tuned model can be exchanged for.

    Attributes:
      method: the method that learns it, with its default options.
      learning_rate: of Adam, from a pilot on the embedded model.
      words: what it is, in a sentence.
      folds: whether it is a change of weights, so that the result is a plain CLIP.
    """

    method: str
    words: str
    learning_rate: float
    folds: bool = True

    def task(self, clip: Clip, classes: ClassList, dtype: str = "float32") -> Task:
        """The task of a student for a teacher's classes."""
        return Task(clip, self.method, tuple(classes.class_names), template=classes.template, dtype=dtype)


# From few numbers to many.
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "vector": Form("bias", "one vector per layer", 0.08),
        "kind": Form("bias_by_kind", "two vectors per layer (by kind of token)", 0.08, folds=False),
        "layer_norm": Form("layer_norm", "changes of the LayerNorms", 0.02),
        "lora": Form("lora", "changes of rank 2 in all kernels", 0.01),
    }
)


def fit_recipe(*, learning_rate: float, steps: int = STEPS, batch_size: int = BATCH_SIZE) -> Recipe:
    """Adam with a cosine over all steps, without decay or augmentation."""
    return Recipe(
        learning_rate=learning_rate,
        optimizer="adam",
        weight_decay=0.0,
        warmup_epochs=0,
        schedule="steps",
        steps=steps,
        batch_size=batch_size,
        augment=False,
    )


def fit_student(
    student: Task,
    teacher: Teacher,
    images: Split,
    recipe: Recipe,
    context: SweepContext,
    *,
    seed: int,
    logging: Logging,
) -> Learnables:
    """The learnables of a student after its training, on the host.

    Args:
      student: bound to the teacher's classes.
      teacher: whose predictions are learned.
      images: to learn them on. Labels are not read.
      recipe: how it is trained.
      context: the student's frozen model and the devices.
      seed: of the start and of the order of images.
      logging: reports and checkpoints, from which a fit that is done is read.

    Raises:
      ClipbiasError: the method cannot learn from a teacher, the loss is not finite, or an image cannot be read.
    """
    splits = {"train": images, "test": images.subset([])}
    dataset = Dataset("unlabelled images", student.class_names, student.template, splits)
    (run_images,) = context.training_images([images])
    job = TrainJob(
        context=context,
        task=student.with_memory(class_shards=context.mesh.shape[meshes.DATA]),
        recipe=recipe,
        runs=(Run(run_images, seed, protocols.full(dataset)),),
        teacher=teacher,
        logging=dataclasses.replace(logging, keeps_last=True),
    )
    return select_run(train_job(job).learnables, 0)
