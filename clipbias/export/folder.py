"""Export of a tuned model to a folder: a form for other programs, the adapter file, and a model card."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from clipbias import hosts
from clipbias.clip.adaptation import fold
from clipbias.constants import ADAPTER_FILE, HEAD_FILE
from clipbias.errors import ClipbiasError
from clipbias.export.card import NOTE, model_card
from clipbias.export.onnx_file import write_onnx
from clipbias.export.peft import write_peft
from clipbias.export.program import write_program
from clipbias.io import atomic_folder, write_tensors, write_text
from clipbias.tuning import Learnables, Task
from clipbias.tuning.adapter import write_adapter
from clipbias.tuning.method import TestTimeMethod
from clipbias.tuning.tuned import Tuned

FORMS = ("checkpoint", "open_clip", "head", "program", "onnx", "peft")
CARD = "README.md"
CERTIFICATE = "certificate.json"


def natural_form(task: Task, learnables: Learnables) -> str:
    """Returns the form that is easiest to load: "checkpoint", "head" or "program"."""
    # Most programs load a checkpoint, so a method that only changes weights becomes one. Class features suffice if
    # image features are the base model's. Heads of methods, prompts, and texts that depend on the image need a program.
    adaptation = jax.eval_shape(task.method.adapt, learnables)
    if task.method.logits is not None or task.method.conditional:
        return "program"
    if adaptation.only_changes_weights and task.descriptions is None:
        return "checkpoint"
    return "program" if adaptation.changes_vision else "head"


def export(model: Tuned, folder: str | os.PathLike, *, form: str | None = None) -> str:
    """Writes a tuned model's folder, which appears when everything is written.

    Args:
      model: a result of `clipbias.fit` or `clipbias.load_adapter`.
      folder: the new folder; it must not exist, or be empty.
      form: one of `FORMS`. Default: `natural_form`.
        "checkpoint": a Hugging Face CLIP checkpoint with the changes folded in, and the head beside it.
        "open_clip": the same for open_clip.
        "head": class features, for the image features of the base model.
        "program": images to logits as StableHLO, for any method.
        "onnx": images to logits as one ONNX file, for methods whose texts do not depend on the image.
        "peft": the learnables of CLIP-LoRA as PEFT reads them, and the head beside them.

    Returns:
      The form.

    Raises:
      ClipbiasError: the folder is not empty or cannot be written, the base model is in half precision, or the method
        does not take that form.
    """
    if form not in (None, *FORMS):
        raise ClipbiasError(f"unknown form {form!r}; choose from {', '.join(FORMS)}.")
    task, learnables, clip = model.task, model.learnables, model.clip
    if any(leaf.dtype != jnp.float32 for leaf in jax.tree.leaves(clip.params)):
        raise ClipbiasError("the base model is loaded in half precision; load it in float32 to export from it.")
    if isinstance(task.method, TestTimeMethod):
        raise ClipbiasError(
            f"the method {task.method_name!r} learns from each test image, and exported files cannot; use `predict`."
        )
    # Checked before anything is computed; the message names a form that works.
    natural = natural_form(task, learnables)
    form = form or natural
    if reason := _why_not(task, learnables, form):
        raise ClipbiasError(f"the method {task.method_name!r} {reason}; export it as a {natural}.")
    # A folder that is half written would load, and give wrong predictions.
    with atomic_folder(folder) as temporary:
        hosts.check()
        if form in ("checkpoint", "open_clip"):
            folded = fold(clip.params, task.method.adapt(learnables))
            # Some methods use another scale than the model's; programs read it from the checkpoint.
            folded["logit_scale"] = np.asarray(task.method.logit_scale(clip.params))
            clip.save(temporary, folded, format="safetensors" if form == "checkpoint" else form, exact=True)
        # PEFT has no class features, so a head lies beside it, as beside a checkpoint.
        if form == "peft":
            write_peft(temporary, task, learnables, clip.source)
        if form == "program":
            write_program(temporary, task, learnables)
        elif form == "onnx":
            write_onnx(temporary, task, learnables)
        else:
            _write_head(temporary / HEAD_FILE, task, learnables)
        # Always, so that clipbias reads every exported folder with calibration and notes.
        write_adapter(temporary / ADAPTER_FILE, model)
        if NOTE in model.notes:
            write_text(temporary / CERTIFICATE, json.dumps(model.notes[NOTE], indent=2) + "\n")
        write_text(temporary / CARD, model_card(model, form))
        hosts.check()
    return form


def _why_not(task: Task, learnables: Learnables, form: str) -> str:
    """Returns the reason why an adapter has no such form, or ""."""
    method = task.method
    adaptation = jax.eval_shape(method.adapt, learnables)
    if form == "program":
        return ""
    if form == "onnx":
        return "has texts that depend on the image, and an ONNX file holds fixed texts" if method.conditional else ""
    is_checkpoint = form in ("checkpoint", "open_clip")
    if method.logits is not None or method.conditional:
        part = "a head of its own" if method.logits is not None else "texts that depend on the image"
        return f"has {part}, which a {'checkpoint' if is_checkpoint else 'file of class features'} cannot hold"
    if form == "open_clip" and task.clip.config.family != "clip":
        return "tunes another network than CLIP's, which is not written in open_clip's format"
    if is_checkpoint and adaptation.bias_differs_between_tokens:
        return "has a bias that differs between tokens and cannot be folded into a checkpoint"
    if is_checkpoint and natural_form(task, learnables) != "checkpoint":
        return "is not changes of weights alone and cannot be folded into a checkpoint"
    if form == "head" and adaptation.changes_vision:
        return "changes the image features, so a head on the base model is not enough"
    return ""


def _write_head(path: Path, task: Task, learnables: Learnables) -> None:
    """Writes `text_features [C, d]` (unit length) and `logit_scale` (a logarithm, as in CLIP) as safetensors."""
    # Logits of unit-length image features `f [B, d]` are `exp(logit_scale) · f @ text_features.T`, for SigLIP plus
    # `logit_bias`: an average over templates and contexts is taken here, so that a program needs one product.
    tensors = {
        "text_features": np.asarray(jax.jit(task.class_features)(task.clip.params, learnables)),
        "logit_scale": np.asarray(task.method.logit_scale(task.clip.params), np.float32),
    }
    if "logit_bias" in task.clip.params:
        tensors["logit_bias"] = np.asarray(task.clip.params["logit_bias"], np.float32)
    templates = task.prompt.templates if task.descriptions is None else ()
    metadata = {"class_names": json.dumps(task.class_names), "templates": json.dumps(templates)}
    if task.descriptions is not None:
        metadata["descriptions"] = json.dumps(task.descriptions)
    write_tensors(path, tensors, metadata)
