"""A classifier head: the class features that image features are compared with, as one small file."""

import json
import os

import jax
import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.io import write_tensors
from clipbias.tuning import Learnables, Task


def write_head(path: str | os.PathLike, task: Task, learnables: Learnables) -> None:
    """Writes `text_features [C, d]` (unit length) and `logit_scale` (a logarithm, as in CLIP) as safetensors.

    `exp(logit_scale) · f @ text_features.T` with unit-length image features `f [B, d]` are the logits. The metadata
    holds `class_names` and `templates`, both JSON lists; or `descriptions`, a list of texts by class name.

    Raises:
      ClipbiasError: the method has a head of its own, which is more than class features.
    """
    check_default_head(task, "a file of class features")
    features = jax.jit(task.class_features)(task.clip.params, learnables)
    tensors = {
        "text_features": np.asarray(features),
        "logit_scale": np.asarray(task.method.logit_scale(task.clip.params), np.float32),
    }
    described = task.descriptions is not None
    templates = () if described else task.prompt.templates
    metadata = {"class_names": json.dumps(task.class_names), "templates": json.dumps(templates)}
    if described:
        metadata["descriptions"] = json.dumps(task.descriptions)
    write_tensors(path, tensors, metadata)


def check_default_head(task: Task, what: str) -> None:
    """Raises `ClipbiasError` where `what` cannot hold the method's classifier, which is not cosines alone."""
    has = "a head of its own" if task.method.overrides("logits") else "texts that depend on the image"
    if task.method.overrides("logits") or task.method.conditional:
        raise ClipbiasError(
            f"the method {type(task.method).__name__} has {has}, which {what} cannot hold; export it as a program."
        )
