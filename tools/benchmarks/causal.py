"""What the causal test of images costs beside classifying them by both models, and the memory it takes per image."""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, encode_image
from clipbias.clip.params import Params
from clipbias.explain.factorial import corners, effects_in_play, mix_images
from clipbias.tuning import Task
from tools.benchmarks import measure, model, ways

BOTH = "both models"
WAYS = (BOTH, "mixtures")
SETTINGS = ("geometry", "layers", "method", "option", "dtype", "batch")


def causal(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a forward pass of both models and of all mixtures, in turn."""
    job = {name: getattr(arguments, name) for name in SETTINGS} | {"module": __name__}
    both, mixtures = ways.measured(
        [job | {"way": way} for way in WAYS], arguments.repeats, together=arguments.together, check=False
    )
    print(ways.table([both, mixtures]))
    return {
        "name": f"causal test, {arguments.method}, batch {arguments.batch}",
        "forward_passes_of_both": mixtures["seconds"] / both["seconds"],
        "device": jax.devices()[0].device_kind,
        "points": [both, mixtures],
    }


def load(job: ways.Job) -> ways.Loaded:
    """A way for `ways`."""
    clip = model.random_clip(model.geometry(job["geometry"], layers=job["layers"]))
    task = Task(clip, job["method"], ["cat", "dog"], dtype=job["dtype"], **model.options(job["option"]))
    tuned, config, options = task.method.adapt(task.init(0)), clip.config, {"dtype": job["dtype"]}
    prompts = 0 if tuned.vision_prompts is None else tuned.vision_prompts.shape[1]
    # As the section of a study asks: the first and the last corner are the runs themselves.
    asked = corners(effects_in_play(prompts > 0))[1:-1]

    def compute(params: Params, images: jax.Array) -> Any:
        if job["way"] == BOTH:
            return [encode_image(params, config, images, adaptation, **options)[0] for adaptation in (None, tuned)]
        return mix_images(params, config, images, tuned, Adaptation(), asked, **options)

    def program(count: int) -> tuple[Any, jax.Array]:
        images = jnp.asarray(model.random_images(config, count))
        return jax.jit(compute).lower(clip.params, images).compile(), images

    compiled, images = program(job["batch"])

    def run() -> Any:
        return jax.block_until_ready(compiled(clip.params, images))

    def first() -> dict[str, Any]:
        run()
        sizes = [measure.planned(each)["program_bytes"] for each in (compiled, program(2 * job["batch"])[0])]
        # Both ways compute other things: no answer to compare.
        return measure.planned(compiled) | {
            "bytes_per_image": (sizes[1] - sizes[0]) // job["batch"],
            "answer": [np.ones((1, 1))],
        }

    return run, first
