"""A tuned classifier as a StableHLO program that needs only JAX: a file of weights and images in, logits out."""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, encode_image
from clipbias.clip.adaptation import fold
from clipbias.clip.checkpoint import narrow
from clipbias.io import atomic_path, write_tensors, write_text
from clipbias.tuning import Learnables, Task
from clipbias.tuning.features import unit_length
from clipbias.tuning.method import flatten, unflatten
from clipbias.tuning.task import cosine_logits

PROGRAM = "classifier.stablehlo"
PROGRAM_WEIGHTS = "weights.safetensors"
PROGRAM_DESCRIPTION = "program.json"
PLATFORMS = ("cpu", "cuda", "tpu")

Weights = Mapping[str, Any]


def program_weights(task: Task, learnables: Learnables) -> dict[str, np.ndarray]:
    """Returns the classifier's weights by path: towers (folded for fixed texts), features of texts or learnables."""
    # As an argument: constants would make a program of hundreds of megabytes, which every compilation copies and tries
    # to fold. The text tower is left out if texts are fixed, since it is nearly half of a model.
    method = task.method
    params = task.clip.params
    overrides_head = method.logits is not None
    # A head of the method's own reads features of all texts and the learnables. Texts that depend on the image need
    # both unchanged towers instead.
    others: dict[str, Any] = {"logit_scale": method.logit_scale(params)}
    if "logit_bias" in params:  # SigLIP's
        others["logit_bias"] = params["logit_bias"]
    towers = {"vision": params["vision"]}
    if method.conditional:
        towers["text"] = params["text"]
    else:
        adaptation = method.adapt(learnables)
        if adaptation.vision_weights is not None:
            towers["vision"] = fold(params, Adaptation(vision_weights=adaptation.vision_weights))["vision"]
        # Text parts are in the class features, and changes of weights in the tower.
        parts = [name for name in sorted(adaptation.parts - {"vision_weights"}) if not name.startswith("text_")]
        others["adaptation"] = {name: getattr(adaptation, name) for name in parts}
        name = "text_features" if overrides_head else "class_features"
        others[name] = jax.jit(getattr(task, name))(params, learnables)
    if method.conditional or overrides_head:
        others["learnables"] = dict(learnables)
    weights = {name: np.array(x, order="C") for name, x in flatten(others).items()}
    # Half of the file's size in the checkpoint's type, where no folded change needs float32.
    exact = {name: np.array(x, order="C") for name, x in flatten(towers).items()}
    return weights | {name: narrow(x, task.clip.stored_dtype, exact=True) for name, x in exact.items()}


def classify(task: Task, weights: Weights, images: jax.Array) -> jax.Array:
    """Computes logits `[B, C]` of images, uint8 `[B, R, R, 3]`, from the weights of `program_weights` alone."""
    tree = unflatten(weights)
    normalised = task.clip.preprocessing.normalize(images)
    # Texts depend on the image: both towers run, with the learnables as in training.
    if task.method.conditional:
        return task.classifier.logits(tree, tree["learnables"], normalised, task.text)
    adaptation = Adaptation(**tree.get("adaptation", {}))
    features, _ = encode_image(tree, task.clip.config, normalised, adaptation, patches=task.method.patches)
    # The default head; other heads are traced with their learnables.
    if "class_features" in tree:
        logits = cosine_logits(tree, unit_length(features), tree["class_features"])
        return logits + tree["logit_bias"] if "logit_bias" in tree else logits
    return task.classifier.head(tree, tree.get("learnables", {}), features, tree["text_features"])


def export_program(task: Task, weights: Weights) -> jax.export.Exported:
    """Exports `(weights, images uint8 [b, R, R, 3]) -> logits float32 [b, C]` for every batch size `b`, in float32."""
    size = task.clip.config.vision.image_size
    # A symbol keeps the batch size open: otherwise, every size would need a program.
    (batch,) = jax.export.symbolic_shape("b")
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    # One program for all platforms: whoever receives it may have another device.
    with _without_source_lines():
        return jax.export.export(jax.jit(functools.partial(classify, task)), platforms=PLATFORMS)(shapes, images)


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
    # They name this machine's paths: with them, an adapter would give other bytes on another machine.
    settings = {"jax_traceback_in_locations_limit": 0, "jax_include_full_tracebacks_in_locations": True}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def write_program(folder: Path, task: Task, learnables: Learnables) -> None:
    """Writes the program, its weights, and a description of inputs and outputs."""
    weights = program_weights(task, learnables)
    exported = export_program(task, weights)
    with atomic_path(folder / PROGRAM) as temporary:
        temporary.write_bytes(exported.serialize())
    # Weights keep their names: the program takes them by name, in a dictionary.
    write_tensors(folder / PROGRAM_WEIGHTS, weights, {"format": "np"})
    description = {
        "arguments": [PROGRAM_WEIGHTS, "images"],
        **describe(task),
        "platforms": exported.platforms,
        "calling_convention_version": exported.calling_convention_version,
        "jax": jax.__version__,
    }
    write_text(folder / PROGRAM_DESCRIPTION, json.dumps(description, indent=2) + "\n")


def describe(task: Task) -> dict[str, Any]:
    """Describes inputs and outputs of a classifier as JSON values."""
    size = task.clip.config.vision.image_size
    resizing = task.clip.preprocessing.resizing
    side = resizing.size or resizing.side
    words = f"shorter side resized to {side} pixels, {resizing.resampling}, centre crop"
    if resizing.whole:
        words = f"resized to {side} x {side} pixels, {resizing.resampling}"
    return {
        "images": {
            "type": "uint8",
            "shape": ["b", size, size, 3],
            "channels": "RGB",
            "preparation": f"{words}; levels from 0 to 255, which the program normalises",
        },
        "logits": {"type": "float32", "shape": ["b", len(task.class_names)]},
        "class_names": task.class_names,
    }
