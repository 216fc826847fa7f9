"""A tuned classifier as a StableHLO program that runs with nothing but JAX: images in, logits out.

The weights lie beside the program and are its first argument. Inside, they would be constants of a program of hundreds
of megabytes, which every compilation copies and tries to fold; beside it, the program stays some thirty kilobytes, and
the weights a safetensors file that is mapped into memory and that anyone can look into.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, encode_image
from clipbias.clip.checkpoint import narrow
from clipbias.files import atomic_path, write_tensors, write_text
from clipbias.tuning import Learnables, Task
from clipbias.tuning.adapter import flatten, unflatten
from clipbias.tuning.classifier import cosine_logits
from clipbias.tuning.features import unit_length

PROGRAM, PROGRAM_WEIGHTS, DESCRIPTION = "classifier.stablehlo", "weights.safetensors", "program.json"
PLATFORMS = ("cpu", "cuda", "tpu")

Weights = Mapping[str, Any]


def program_weights(task: Task, learnables: Learnables) -> dict[str, np.ndarray]:
    """What the classifier computes with, named by path: the vision tower, what the method adds to it, class features.

    The text tower has done its work and is left out. Weights keep the base model's own type where it is exact.
    """
    params, dtype = task.clip.params, task.clip.stored_dtype
    adaptation = task.method.adapt(learnables)
    added = {"vision_prompts": adaptation.vision_prompts, "vision_bias": adaptation.vision_bias}
    whole = {
        "adaptation": {name: value for name, value in added.items() if value is not None},
        "class_features": jax.jit(task.class_features)(params, learnables),
        "logit_scale": params["logit_scale"],
    }
    weights = {name: np.array(x, np.float32) for name, x in flatten(whole).items()}
    vision = flatten({"vision": params["vision"]})
    return weights | {name: narrow(np.array(x, order="C"), dtype, exact=True) for name, x in vision.items()}


def export_program(task: Task, weights: Weights) -> jax.export.Exported:
    """`(weights, images uint8 [b, R, R, 3]) -> logits float32 [b, C]` for every batch size `b`, in float32."""
    config, preprocessing = task.clip.config, task.clip.preprocessing

    @jax.jit
    def classify(weights: Weights, images: jax.Array) -> jax.Array:
        tree = unflatten(weights)
        features, _ = encode_image(
            tree, config, preprocessing.normalize(images), Adaptation(**tree.get("adaptation", {}))
        )
        return cosine_logits(tree, unit_length(features), tree["class_features"])

    size = config.vision.image_size
    (batch,) = jax.export.symbolic_shape("b")
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    return jax.export.export(classify, platforms=PLATFORMS)(shapes, images)


def write_program(folder: Path, task: Task, learnables: Learnables) -> None:
    """Writes the program, its weights, and a description of what goes in and comes out."""
    weights = program_weights(task, learnables)
    exported = export_program(task, weights)
    with atomic_path(folder / PROGRAM) as temporary:
        temporary.write_bytes(exported.serialize())
    write_tensors(folder / PROGRAM_WEIGHTS, weights, {"format": "np"})
    size = task.clip.config.vision.image_size
    description = {
        "arguments": [PROGRAM_WEIGHTS, "images"],
        "images": {
            "type": "uint8",
            "shape": ["b", size, size, 3],
            "channels": "RGB",
            "preparation": f"shorter side resized to {size} pixels, bicubic, centre crop; the program normalises",
        },
        "logits": {"type": "float32", "shape": ["b", len(task.class_names)]},
        "class_names": task.class_names,
        "platforms": exported.platforms,
        "calling_convention_version": exported.calling_convention_version,
        "jax": jax.__version__,
    }
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")
