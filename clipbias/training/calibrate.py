"""Calibrates tuned models: what prediction sets and rejections are made of (`tuning.conformal`)."""

import dataclasses
from pathlib import Path

import numpy as np

from clipbias import hosts
from clipbias.data import Split, held_out
from clipbias.data.images import Images
from clipbias.sentences import counted
from clipbias.training.spec import UNSELECTED, RunSpec
from clipbias.training.sweep_context import SweepContext
from clipbias.training.teacher import Teacher, split_logits
from clipbias.tuning import Task
from clipbias.tuning.adapter import read_adapter, write_adapter
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


def calibrate_adapter(path: Path, spec: RunSpec, context: SweepContext) -> str:
    """Adds scores of calibration images to the adapter of a finished run, unless it has them.

    Args:
      path: of the adapter.
      spec: of the run; its validation policy says whether validation images selected a setting.
      context: with the run's dataset.

    Returns:
      A sentence: how many images calibrated, or why none did; empty where the adapter was calibrated before.
    """
    adapter = read_adapter(path)
    if hosts.from_first(lambda: adapter.calibration is not None):
        return ""
    images = None
    reason = f"its validation images ({spec.validation}) selected a setting"
    if spec.validation in (UNSELECTED, held_out.POLICY):
        (protocol,) = context.protocols_of((dataclasses.replace(spec, validation=UNSELECTED),)).values()
        images = held_out.left_to_calibrate(protocol, spec.seed, selects=spec.validation == held_out.POLICY)
        reason = f"fewer than {held_out.FEWEST_TO_CALIBRATE} images neither train nor select a setting"
    if images is None:
        return f"{path.name} has no prediction sets: {reason}; give (more) validation images."
    task, learnables = adapter.bind(context.clip, own_methods=(spec.method,), dtype=context.dtype)
    calibration = calibrate(task, learnables, images, context)
    if hosts.is_first():
        write_adapter(path, dataclasses.replace(adapter, calibration=calibration))
    return f"{path.name} is calibrated on {counted(len(calibration), 'image')}: it has prediction sets."
