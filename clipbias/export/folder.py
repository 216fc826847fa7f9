"""One adapter, one folder: the tuned model in a form that others load, its adapter file, and a model card."""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias import interruption
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.export.card import model_card
from clipbias.export.folding import fold
from clipbias.export.head import check_default_head, write_head
from clipbias.export.peft import write_peft
from clipbias.export.program import write_program
from clipbias.folders import atomic_folder
from clipbias.io import write_text
from clipbias.tuning import Learnables, Task
from clipbias.tuning.adapter import Adapter, save_adapter

FORMS = ("checkpoint", "head", "program", "peft")
ADAPTER, HEAD, CARD = "adapter.safetensors", "classifier.safetensors", "README.md"


def natural_form(task: Task, learnables: Learnables) -> str:
    """The form that asks least of whoever loads it, by what the method adds to the model.

    A head of the method's own, or texts that depend on the image: a program. Nothing but changes of weights, biases
    among them: a checkpoint. Nothing on the vision side: a head on the base model. Anything else: a program.
    """
    adaptation = jax.eval_shape(task.method.adapt, learnables)
    if task.method.overrides("logits") or task.method.conditional:
        return "program"
    if adaptation.only_changes_weights and task.descriptions is None:
        return "checkpoint"
    return "program" if adaptation.changes_vision else "head"


def export(
    adapter: Adapter,
    clip: Clip,
    folder: str | os.PathLike,
    *,
    form: str | None = None,
    own_methods: Sequence[str] = (),
) -> str:
    """Writes an adapter's folder; it appears when all is written.

    Args:
      adapter: from `clipbias.load_adapter`.
      clip: its base model, from `clipbias.load`.
      folder: what is written; it must not exist, or be empty.
      form: of `FORMS`; `None` takes the natural one.
        "checkpoint": a Hugging Face CLIP checkpoint with the changes folded in, and the head beside it.
        "head": class features, for the image features of the base model.
        "program": images to logits as StableHLO, for any method.
        "peft": what CLIP-LoRA learned as PEFT reads it, and the head beside it.
      own_methods: the program of a method of one's own, see `Adapter.task`.

    Returns:
      The form.

    Raises:
      ClipbiasError: the folder is not empty or cannot be written, `clip` is another model or in half precision, or the
        adapter does not take that form.
    """
    if form not in (None, *FORMS):
        raise ClipbiasError(f"unknown form {form!r}; choose from {', '.join(FORMS)}.")
    if any(leaf.dtype != jnp.float32 for leaf in jax.tree.leaves(clip.params)):
        raise ClipbiasError("the base model is loaded in half precision; load it in float32 to export from it.")
    task, learnables = adapter.task(clip, own_methods=own_methods), adapter.learnables
    natural = natural_form(task, learnables)
    form = form or natural
    if form != "program":
        check_default_head(task, {"checkpoint": "a checkpoint"}.get(form, "a file of class features"))
    if form == "checkpoint" and natural != form:
        kinds = jax.eval_shape(task.method.adapt, learnables).bias_differs_between_tokens
        what = "has a bias that differs between tokens" if kinds else "is not changes of weights alone"
        raise ClipbiasError(
            f"the method {adapter.method!r} {what} and cannot be folded into a checkpoint; export it as a {natural}."
        )
    if form == "head" and task.classifier.changes_vision(learnables):
        raise ClipbiasError(
            f"the method {adapter.method!r} changes the image features, so a head on the base model is not enough; "
            f"export it as a {natural}."
        )
    with atomic_folder(folder) as temporary:
        interruption.check()
        if form == "checkpoint":
            folded = fold(clip.params, task.method.adapt(learnables))
            folded["logit_scale"] = np.asarray(task.method.logit_scale(clip.params))
            clip.save(temporary, folded, exact=True)
        if form == "peft":
            write_peft(temporary, task, learnables, adapter.base)
        if form != "program":
            write_head(temporary / HEAD, task, learnables)
        else:
            write_program(temporary, task, learnables)
        save_adapter(temporary / ADAPTER, task, learnables, notes=adapter.notes)
        write_text(temporary / CARD, model_card(adapter, task, form))
        interruption.check()
    return form
