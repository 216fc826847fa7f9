"""A training step, the test of an image with its views (TPT), and image features.

Steps and tests can be timed beside the authors' computation in PyTorch (`tools/benchmarks/training_torch.py`), and
steps of bias tuning beside the code of a family's owner (`tools/benchmarks/owner.py`).
"""

import argparse
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Clip, encode_image
from clipbias.clip.params import Params
from clipbias.clip.precision import cast_weights
from clipbias.constants import ZERO_SHOT
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.evaluate import EvalInputs, EvalStatic, image_features, logits
from clipbias.training.memory import StepShape, training_program
from clipbias.training.step import StepScalars, StepStatic, init_state, place_inputs, place_text, train_step
from clipbias.tuning import Recipe, Task
from clipbias.tuning.method import crops_of
from tools.benchmarks import measure, model, ways

MODULES = {"clipbias": __name__, "torch": "tools.benchmarks.training_torch", "owner": "tools.benchmarks.owner"}
# Methods whose learnables PyTorch starts from; the others are given IVLP's prompts.
OWN_LEARNABLES = ("ivlp", "cocoop", "tpt", "coop", "vpt", "bias")
SETTINGS = ("command", "geometry", "layers", "method", "option", "dtype", "classes", "batch")
memory = ways.device_memory


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Forward, backward and update of a method, a row per way.

    Raises:
      ClipbiasError: a way does not exist or fails, or the first losses or logits differ.
    """
    names = arguments.ways or ["clipbias"]
    if unknown := [name for name in names if name not in MODULES]:
        raise ClipbiasError(f"there is no way {unknown[0]!r}; choose from {', '.join(MODULES)}.")
    config = model.geometry(arguments.geometry, layers=arguments.layers)
    job = {name: getattr(arguments, name) for name in SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        if {"torch", "owner"} & {*names}:
            job |= {"folder": folder, "inputs": torch_inputs(model.write_weights(Path(folder), config), job)}
        jobs = [job | {"way": name, "module": MODULES[name]} for name in names]
        # The PyTorch step of PromptSRC has a teacher of one template, so its loss is another one.
        check = arguments.method != "promptsrc"
        rows = ways.measured(jobs, arguments.repeats, together=arguments.together, check=check)
    print(ways.table(rows))
    name = f"{arguments.method}, {arguments.classes} classes, batch {arguments.batch}"
    return {"name": name, "device": jax.devices()[0].device_kind, "points": rows}


def features(arguments: argparse.Namespace) -> dict[str, Any]:
    """Features of images under the frozen model."""
    job = {name: getattr(arguments, name) for name in SETTINGS} | {"way": "clipbias", "module": __name__}
    (row,) = ways.measured([job], arguments.repeats, together=arguments.together)
    row["images_per_second"] = arguments.batch / row["seconds"]
    return {"name": f"features, batch {arguments.batch}", "device": jax.devices()[0].device_kind, **row}


def load(job: ways.Job) -> ways.Loaded:
    """A way for `ways`."""
    clip = model.random_clip(model.geometry(job["geometry"], layers=job["layers"]))
    if job["command"] == "features":
        return _features(clip, job)
    names = model.class_names(job["classes"])
    task = Task(clip, job["method"], names, dtype=job["dtype"], **model.options(job["option"]))
    if crops := crops_of(task.method):
        return _test(task, model.random_views(clip.config, job["batch"], crops))
    return _step(task, cast_weights(clip.params, job["dtype"]), job["batch"])


def _step(task: Task, params: Params, batch: int) -> ways.Loaded:
    """One training step, as `clipbias.training.loop` calls it."""
    mesh = meshes.single_device()
    clip = task.clip
    recipe = task.method.recipe_for(Recipe(0.0025, 10, 1, 1e-5, batch, 0.9, 5e-4), 16)
    pixels = training_program(task, recipe, StepShape(batch, 1, mesh)).arguments[3]["images"]
    images: Any = model.random_images(clip.config, 1, batch)
    if pixels.dtype == jnp.float32:  # features that stand for the images
        images = np.random.default_rng(0).standard_normal(pixels.shape, np.float32)
    start = jax.tree.map(lambda leaf: jnp.array(leaf)[None], task.init(0))
    static = StepStatic(task.classifier, clip.preprocessing, recipe)
    inputs = place_inputs(mesh, task, params, start, [0])
    state = init_state(task.method, recipe, start)
    data = jax.device_put({"images": images, "labels": labels(task, batch)[None], "mask": np.ones((1, batch), bool)})
    # If a method averages its epochs: the step at the end of an epoch.
    weight = None if state.average is None else jnp.ones(())
    scalars = StepScalars(jnp.full(1, recipe.learning_rate), weight)
    jax.block_until_ready((inputs, state, data, scalars))
    program: Any = None

    def step() -> jax.Array:
        nonlocal state
        state, metrics = program(inputs, state, data, scalars)
        return jax.block_until_ready(metrics["loss"])

    def first() -> dict[str, Any]:
        nonlocal program
        program = train_step.lower(static, inputs, state, data, scalars).compile()
        flop = measure.traced(train_step, static, inputs, state, data, scalars)
        loss = np.asarray(step())
        return measure.planned(program) | {"flop": flop, "loss": float(loss[0]), "answer": [loss]}

    return step, first


def _test(task: Task, views: np.ndarray) -> ways.Loaded:
    """What an evaluation does with images and their views `[B, 1 + V, R, R, 3]`, from pixels to logits `[B, C]`."""
    mesh = meshes.single_device()
    params = task.clip.params
    static = EvalStatic(task.classifier, task.clip.preprocessing, mesh, runs=1)
    learnables = jax.tree.map(lambda leaf: jnp.array(leaf)[None], task.init(0))
    inputs = EvalInputs(params, learnables, place_text(mesh, task, params))
    pixels = jax.device_put(views)
    mask = jnp.ones(len(views), bool)
    jax.block_until_ready((inputs, pixels))
    programs: list[Any] = []

    def compute() -> jax.Array:
        vision, head = programs
        return jax.block_until_ready(head(inputs, vision(params, learnables, pixels), mask))

    def first() -> dict[str, Any]:
        features = jax.eval_shape(functools.partial(image_features, static), params, learnables, pixels)
        programs.append(image_features.lower(static, params, learnables, pixels).compile())
        programs.append(logits.lower(static, inputs, features, mask).compile())
        plan = max((measure.planned(program) for program in programs), key=lambda facts: facts["program_bytes"])
        return plan | {"answer": [np.asarray(compute()[0])]}

    return compute, first


def _features(clip: Clip, job: ways.Job) -> ways.Loaded:
    images = jax.device_put(model.random_images(clip.config, job["batch"]))

    @jax.jit
    def encode(params: Params, images: jax.Array) -> jax.Array:
        return encode_image(params, clip.config, clip.preprocessing.normalize(images), dtype=job["dtype"])[0]

    inputs = cast_weights(clip.params, job["dtype"]), images
    program = encode.lower(*inputs).compile()

    def first() -> dict[str, Any]:
        return measure.planned(program) | {
            "flop": measure.traced(encode, *inputs),
            "answer": [np.asarray(encode(*inputs))],
        }

    return lambda: jax.block_until_ready(program(*inputs)), first


def torch_inputs(clip: Clip, job: ways.Job) -> dict[str, np.ndarray]:
    """Images or views of images, labels, padded tokens, prompts, and a teacher's text features of one template."""
    names = model.class_names(job["classes"])
    count = job["batch"]
    plain = Task(clip, ZERO_SHOT, names)
    has_own = job["method"] in OWN_LEARNABLES
    # PromptSRC's prompts are IVLP's, of nine layers.
    options = model.options(job["option"]) if has_own else {"depth": 9}
    task = Task(clip, job["method"] if has_own else "ivlp", names, **options)
    crops = crops_of(task.method)
    # A BERT's padding is masked, and its owner's code pads no further than the longest text either.
    missing = 0 if clip.config.text.pooling == "first" else clip.config.text.context_length - task.tokens.ids.shape[1]
    pixels = model.random_views(clip.config, count, crops) if crops else model.random_images(clip.config, count)
    teacher = np.asarray(plain.text_input(clip.params, plain.init(0)))
    arrays = {
        "images": clip.preprocessing.normalize(pixels),
        "labels": labels(task, count),
        "ids": np.pad(task.tokens.ids, ((0, 0), (0, missing))),
        "eos": task.tokens.eos,
        "teacher": teacher / np.linalg.norm(teacher, axis=-1, keepdims=True),
        **task.init(0),
    }
    return {name: np.array(value, order="C") for name, value in arrays.items()}


def labels(task: Task, batch: int) -> np.ndarray:
    """`[B]`."""
    return np.arange(batch, dtype=np.int32) % len(task.class_names)
