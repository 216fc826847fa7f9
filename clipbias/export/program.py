"""A tuned classifier as a StableHLO program that runs with nothing but JAX: images in, logits out.

The weights lie beside the program and are its first argument. Inside, they would be constants of a program of hundreds
of megabytes, which every compilation copies and tries to fold; beside it, the program stays some thirty kilobytes, and
the weights a safetensors file that is mapped into memory and that anyone can look into.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, encode_image
from clipbias.clip.checkpoint import narrow
from clipbias.clip.weight_changes import check_changes, fold_changes
from clipbias.errors import ClipbiasError
from clipbias.io import atomic_path, write_tensors, write_text
from clipbias.tuning import Learnables, Task
from clipbias.tuning.classifier import cosine_logits
from clipbias.tuning.features import unit_length
from clipbias.tuning.learnables import flatten, unflatten
from clipbias.tuning.test_time_method import TestTimeMethod

PROGRAM, PROGRAM_WEIGHTS, DESCRIPTION = "classifier.stablehlo", "weights.safetensors", "program.json"
PLATFORMS = ("cpu", "cuda", "tpu")

Weights = Mapping[str, Any]


def program_weights(task: Task, learnables: Learnables) -> dict[str, np.ndarray]:
    """What the classifier computes with, named by path.

    That is the vision tower with the method's changes of its weights in it, what else the method adds there, and the
    class features; for a head of the method's own the features of all texts as they are, and the learnables. The text
    tower has done its work and is left out, unless texts depend on the image: then both towers are there as they are,
    and the learnables. Weights keep the base model's own type where it is exact.
    """
    params, dtype = task.clip.params, task.clip.stored_dtype
    if isinstance(task.method, TestTimeMethod):
        raise ClipbiasError(
            f"{type(task.method).__name__} learns of each test image, which no exported file does; classify images "
            "with experiments.predict or task.logits."
        )
    if task.method.conditional:
        towers = flatten({name: params[name] for name in ("vision", "text")})
        others = flatten({"learnables": dict(learnables), "logit_scale": task.method.logit_scale(params)})
        found = {name: np.array(x, order="C") for name, x in others.items()}
        return found | {name: narrow(np.array(x, order="C"), dtype, exact=True) for name, x in towers.items()}
    adaptation = task.method.adapt(learnables)
    added = {
        name: getattr(adaptation, name)
        for name in ("vision_prompts", "vision_bias", "vision_adapters", "pixels", "vision_tokens", "vision_readout")
    }
    whole: dict[str, Any] = {
        "adaptation": {name: value for name, value in added.items() if value is not None},
        "logit_scale": task.method.logit_scale(params),
    }
    vision = params["vision"]
    if adaptation.vision_weights is not None:
        check_changes(adaptation.vision_weights, vision, "vision_weights")
        vision = fold_changes(vision, adaptation.vision_weights)
    if task.method.overrides("logits"):
        whole["text_features"] = task.text_features(params, learnables)
    else:
        whole["class_features"] = jax.jit(task.class_features)(params, learnables)
    weights = {name: np.array(x, np.float32) for name, x in flatten(whole).items()}
    if task.method.overrides("logits"):  # their own types, for some are whole numbers
        weights |= {name: np.array(x, order="C") for name, x in flatten({"learnables": dict(learnables)}).items()}
    tower = flatten({"vision": vision})
    return weights | {name: narrow(np.array(x, order="C"), dtype, exact=True) for name, x in tower.items()}


def export_program(task: Task, weights: Weights) -> jax.export.Exported:
    """`(weights, images uint8 [b, R, R, 3]) -> logits float32 [b, C]` for every batch size `b`, in float32."""
    config, preprocessing = task.clip.config, task.clip.preprocessing

    @jax.jit
    def classify(weights: Weights, images: jax.Array) -> jax.Array:
        tree = unflatten(weights)
        if task.method.conditional:
            return task.classifier.logits(tree, tree["learnables"], preprocessing.normalize(images), task.text)
        adaptation = Adaptation(**tree.get("adaptation", {}))
        normalised, patches = preprocessing.normalize(images), task.method.patches
        features, _ = encode_image(tree, config, normalised, adaptation, patches=patches)
        if "class_features" in tree:
            return cosine_logits(tree, unit_length(features), tree["class_features"])
        return task.classifier.head(tree, tree.get("learnables", {}), features, tree["text_features"])

    size = config.vision.image_size
    (batch,) = jax.export.symbolic_shape("b")
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    with _without_places():
        return jax.export.export(classify, platforms=PLATFORMS)(shapes, images)


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
    """Has programs not say in which file of this machine, called from where, each operation stands.

    So the same adapter gives the same bytes everywhere.
    """
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
