"""What the causal test of images costs beside classifying them by both models, and the memory it takes per image."""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

from clipbias.clip import Adaptation, encode_image
from clipbias.clip.params import Params
from clipbias.explain.factorial import corners, effects_in_play, mix_images
from clipbias.tuning import Task
from tools.benchmarks import measure, model, steps


def causal(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a forward pass of both models and of all mixtures, in turn."""
    clip = model.random_clip(model.geometry(arguments.geometry, layers=arguments.layers))
    task = Task(clip, arguments.method, ["cat", "dog"], dtype=arguments.dtype, **steps.options(arguments.option))
    tuned, dtype = task.method.adapt(task.init(0)), arguments.dtype
    prompts = 0 if tuned.vision_prompts is None else tuned.vision_prompts.shape[1]
    names = corners(effects_in_play(prompts > 0))
    # As the section of a study asks: the first and the last corner are the runs themselves.
    asked, config = names[1:-1], clip.config

    @jax.jit
    def both(params: Params, images: jax.Array) -> Any:
        return [encode_image(params, config, images, adaptation, dtype=dtype)[0] for adaptation in (None, tuned)]

    @jax.jit
    def mixtures(params: Params, images: jax.Array) -> Any:
        return mix_images(params, config, images, tuned, Adaptation(), asked, dtype=dtype)

    def images(count: int) -> jax.Array:
        return jnp.asarray(model.random_images(clip.config, count))

    ways = {
        "both models": lambda: both(clip.params, images(arguments.batch)),
        "mixtures": lambda: mixtures(clip.params, images(arguments.batch)),
    }
    seconds = measure.in_turn(ways, arguments.repeats)
    planned = [
        measure.program_bytes(mixtures.lower(clip.params, images(count)).compile())
        for count in (arguments.batch, 2 * arguments.batch)
    ]
    return {
        "name": f"causal test, {arguments.method}, batch {arguments.batch}",
        "method": arguments.method,
        "batch": arguments.batch,
        "seconds": seconds,
        "forward_passes_of_both": seconds["mixtures"] / seconds["both models"],
        "bytes_per_image": (planned[1] - planned[0]) // arguments.batch,
        "peak_bytes": measure.peak_bytes(),
        "device": jax.devices()[0].device_kind,
    }
