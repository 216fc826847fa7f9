"""A tuned classifier as a StableHLO program that runs with nothing but JAX: images in, logits out.

The weights are a safetensors file beside the program, and its first argument. As constants they would make a program
of hundreds of megabytes, which every compilation copies and tries to fold. Without them it has some thirty kilobytes.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, encode_image
from clipbias.clip.checkpoint import narrow
from clipbias.clip.preprocess import Preprocessing
from clipbias.export.folding import fold
from clipbias.io import atomic_path, write_tensors, write_text
from clipbias.tuning import Learnables, Task
from clipbias.tuning.features import unit_length
from clipbias.tuning.method import flatten, unflatten
from clipbias.tuning.task import cosine_logits

PROGRAM = "classifier.stablehlo"
PROGRAM_WEIGHTS = "weights.safetensors"
DESCRIPTION = "program.json"
PLATFORMS = ("cpu", "cuda", "tpu")

Weights = Mapping[str, Any]


def program_weights(task: Task, learnables: Learnables) -> dict[str, np.ndarray]:
    """The weights that the classifier computes with, named by path.

    They are the vision tower with the method's weight changes folded in, the rest of the method's vision adaptation,
    and the class features. If the method has its own head, the features of all texts and the learnables stand in place
    of the class features. The text tower is left out, unless texts depend on the image: then both towers are unchanged,
    and the learnables are included. Weights keep the base model's stored type if it is exact.
    """
    method = task.method
    params = task.clip.params
    overrides_head = method.logits is not None
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
        fields = {field.name: getattr(adaptation, field.name) for field in dataclasses.fields(adaptation)}
        others["adaptation"] = {
            name: value
            for name, value in fields.items()
            if value is not None and name != "vision_weights" and not name.startswith("text_")
        }
        name = "text_features" if overrides_head else "class_features"
        others[name] = jax.jit(getattr(task, name))(params, learnables)
    if method.conditional or overrides_head:
        others["learnables"] = dict(learnables)
    weights = {name: np.array(x, order="C") for name, x in flatten(others).items()}
    exact = {name: np.array(x, order="C") for name, x in flatten(towers).items()}
    return weights | {name: narrow(x, task.clip.stored_dtype, exact=True) for name, x in exact.items()}


def classify(task: Task, weights: Weights, images: jax.Array) -> jax.Array:
    """Logits `[B, C]` of images, uint8 `[B, R, R, 3]`, by the weights of `program_weights` alone."""
    tree = unflatten(weights)
    normalised = task.clip.preprocessing.normalize(images)
    if task.method.conditional:
        return task.classifier.logits(tree, tree["learnables"], normalised, task.text)
    adaptation = Adaptation(**tree.get("adaptation", {}))
    features, _ = encode_image(tree, task.clip.config, normalised, adaptation, patches=task.method.patches)
    if "class_features" in tree:
        logits = cosine_logits(tree, unit_length(features), tree["class_features"])
        return logits + tree["logit_bias"] if "logit_bias" in tree else logits
    return task.classifier.head(tree, tree.get("learnables", {}), features, tree["text_features"])


def export_program(task: Task, weights: Weights) -> jax.export.Exported:
    """`(weights, images uint8 [b, R, R, 3]) -> logits float32 [b, C]` for every batch size `b`, in float32."""
    size = task.clip.config.vision.image_size
    (batch,) = jax.export.symbolic_shape("b")
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    with _without_source_lines():
        return jax.export.export(jax.jit(functools.partial(classify, task)), platforms=PLATFORMS)(shapes, images)


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
    """Leaves the files and lines of operations out of programs, so that an adapter gives the same bytes everywhere."""
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
    """Writes the program, its weights, and a description of what goes in and comes out."""
    weights = program_weights(task, learnables)
    exported = export_program(task, weights)
    with atomic_path(folder / PROGRAM) as temporary:
        temporary.write_bytes(exported.serialize())
    write_tensors(folder / PROGRAM_WEIGHTS, weights, {"format": "np"})
    description = {
        "arguments": [PROGRAM_WEIGHTS, "images"],
        **describe(task),
        "platforms": exported.platforms,
        "calling_convention_version": exported.calling_convention_version,
        "jax": jax.__version__,
    }
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def preparation_words(preprocessing: Preprocessing) -> str:
    """How a picture becomes an image that goes into a classifier."""
    resizing = preprocessing.resizing
    side = resizing.size or preprocessing.image_size
    if resizing.whole:
        words = f"resized to {side} x {side} pixels, {resizing.resampling}"
    else:
        words = f"shorter side resized to {side} pixels, {resizing.resampling}, centre crop"
    return f"{words}; levels from 0 to 255, which the program normalises"


def describe(task: Task) -> dict[str, Any]:
    """What goes into a classifier and comes out, as JSON values."""
    size = task.clip.config.vision.image_size
    return {
        "images": {
            "type": "uint8",
            "shape": ["b", size, size, 3],
            "channels": "RGB",
            "preparation": preparation_words(task.clip.preprocessing),
        },
        "logits": {"type": "float32", "shape": ["b", len(task.class_names)]},
        "class_names": task.class_names,
    }
