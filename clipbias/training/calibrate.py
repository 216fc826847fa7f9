"""Calibrates tuned models: what prediction sets and rejections are made of (`tuning.conformal`)."""

import dataclasses

import numpy as np

from clipbias.data import Split, held_out
from clipbias.data.images import Images
from clipbias.training.spec import UNSELECTED, RunSpec
from clipbias.training.sweep_context import SweepContext
from clipbias.training.teacher import Teacher, split_logits
from clipbias.tuning import Task
from clipbias.tuning.conformal import Calibration
from clipbias.tuning.method import Learnables


def calibrate(task: Task, learnables: Learnables, images: Split, context: SweepContext) -> Calibration:
    """A tuned model's scores of images that neither trained it nor selected a setting.

    Raises:
      ClipbiasError: an image cannot be read, unless the context skips these; or the logits are not finite.
    """
    logits, read = split_logits(Teacher(task, learnables), Images(images), context)
    scale = float(np.exp(np.asarray(task.method.logit_scale(task.clip.params))))
    return Calibration.of(logits[read], images.labels[read], scale)


def calibration_images(spec: RunSpec, context: SweepContext) -> tuple[Split | None, str]:
    """The images that calibrate a run, or `None` and why there are none.

    Args:
      spec: of the run; its validation policy says whether validation images selected a setting.
      context: with the run's dataset.
    """
    if spec.validation not in (UNSELECTED, held_out.POLICY):
        return None, f"no prediction sets: its validation images ({spec.validation}) selected a setting"
    (protocol,) = context.protocols_of((dataclasses.replace(spec, validation=UNSELECTED),)).values()
    images = held_out.left_to_calibrate(protocol, spec.seed, selects=spec.validation == held_out.POLICY)
    if images is not None:
        return images, ""
    return None, (
        f"no prediction sets: fewer than {held_out.FEWEST_TO_CALIBRATE} images neither train nor select a setting; "
        "give (more) validation images"
    )
