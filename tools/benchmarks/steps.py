"""Training steps and image features, each beside its plain computation where asked."""

import argparse
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, TextTokens, encode_image, encode_text, precision
from clipbias.clip.params import Params
from clipbias.training.step import StepInputs, TrainState, init_state, train_step
from clipbias.tuning import Task
from clipbias.tuning.classifier import Classifier, Text
from clipbias.tuning.recipe import Recipe
from tools.benchmarks import flops, measure, model


def _nothing(view: Any) -> None:
    """An observer that keeps nothing: asking for it takes the explicit path."""


@dataclasses.dataclass(frozen=True)
class PlainClassifier(Classifier):
    """The same numbers without any saving: whole blocks, whole attention, padded texts.

    `parts` takes the texts in so many parts, one after another and again in the backward pass, where the memory would
    not hold all of them.
    """

    parts: int = 1

    def encode_images(self, params: Params, adaptation: Adaptation, images: jax.Array) -> jax.Array:
        return encode_image(params, self.config, images, adaptation, observe=_nothing, dtype=self.dtype)[0]

    def encode_text(self, params: Params, adaptation: Adaptation, text: Text) -> jax.Array:
        assert isinstance(text, TextTokens)  # `padded`
        dtype = self.dtype

        def run(tokens: TextTokens) -> jax.Array:
            return encode_text(params, self.config, tokens, adaptation, observe=_nothing, dtype=dtype)[0]

        if self.parts == 1:
            return run(text)
        split = jax.tree.map(lambda leaf: leaf.reshape(self.parts, -1, *leaf.shape[1:]), text)
        return jax.lax.map(jax.checkpoint(run, prevent_cse=False), split).reshape(len(text.eos), -1)


def padded(tokens: TextTokens, length: int) -> TextTokens:
    """Texts filled up to the model's context length, as most implementations run them."""
    missing = ((0, 0), (0, length - tokens.ids.shape[1]))
    return TextTokens(np.pad(tokens.ids, missing), np.pad(tokens.context_rows, missing, constant_values=-1), tokens.eos)


def options(pairs: list[str]) -> dict[str, Any]:
    """`name=3` as `{"name": 3}`."""
    return {name: int(value) for name, value in (pair.split("=", 1) for pair in pairs)}


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """One training step: forward, backward, update; that of another method, `beside` it, takes turns with it."""
    clip = model.random_clip(model.geometry(arguments.geometry, layers=arguments.layers))
    names, batch = model.class_names(arguments.classes), arguments.batch
    task = Task(clip, arguments.method, names, dtype=arguments.dtype, **options(arguments.option))
    recipe = Recipe(0.0025, 10, 1, 1e-5, batch, 0.9, 5e-4)
    data = jax.device_put(
        {
            "images": model.random_images(clip.config, 1, batch),
            "labels": np.arange(batch, dtype=np.int32)[None] % arguments.classes,
            "mask": np.ones((1, batch), bool),
        }
    )
    rate = jnp.full(1, recipe.learning_rate)
    params, sizes = precision.held(clip.params, arguments.dtype), {}

    def way(name: str, task: Task, classifier: Classifier, text: Text) -> Any:
        start, text = task.init(0), jax.tree.map(jnp.asarray, text)
        state = init_state(task.method, recipe, jax.tree.map(lambda leaf: jnp.array(leaf)[None], start))
        given = StepInputs(text, None, {}, jnp.zeros(1, jnp.int32))
        arrays = (params, given, state, data, rate)
        began = time.perf_counter()
        program = train_step.lower(classifier, clip.preprocessing, recipe, *arrays).compile()
        too_large = measure.program_bytes(program) > 0.85 * measure.room()
        if too_large and isinstance(classifier, PlainClassifier):
            del program
            parts = next(n for n in range(2, arguments.classes + 1) if not arguments.classes % n and n >= 10)
            classifier = dataclasses.replace(classifier, parts=parts)
            program = train_step.lower(classifier, clip.preprocessing, recipe, *arrays).compile()
        sizes[name] = {
            "parts": getattr(classifier, "parts", 1),
            "compile_seconds": time.perf_counter() - began,
            "program_bytes": measure.program_bytes(program),
            "planned_bytes": measure.planned_bytes(program),
        }
        held: list[TrainState] = [state]

        def step() -> jax.Array:
            held[0], metrics = program(params, given, held[0], data, rate)
            return metrics["loss"]

        sizes[name]["loss"] = float(step()[0])
        sizes[name]["peak_bytes"] = measure.peak_bytes()
        return step

    ways = {"clipbias": way("clipbias", task, task.classifier, task.fixed_text(clip.params, task.init(0)))}
    if arguments.beside:
        other = Task(clip, arguments.beside, names, dtype=arguments.dtype)
        ways["beside"] = way("beside", other, other.classifier, other.fixed_text(clip.params, other.init(0)))
    if arguments.baseline:
        fields = {field.name: getattr(task.classifier, field.name) for field in dataclasses.fields(Classifier)}
        text = padded(task.tokens, clip.config.text.context_length)
        ways["plain"] = way("plain", task, PlainClassifier(**fields), text)
    seconds, machine = measure.with_machine(ways, arguments.repeats, arguments.dtype)
    title = f"{arguments.method}, {arguments.classes} classes, batch {batch}"
    result = measure.rates(title, seconds["clipbias"], flops.step(task, batch), machine) | sizes["clipbias"]
    if arguments.beside:
        result |= {
            "beside": arguments.beside,
            "beside_seconds": seconds["beside"],
            "times_the_step_beside": seconds["clipbias"] / seconds["beside"],
            "beside_program_bytes": sizes["beside"]["program_bytes"],
            "beside_flop": flops.step(other, batch),
        }
    if arguments.baseline:
        plain = seconds["plain"]
        if sizes["plain"]["parts"] > 1:
            # The texts' forward pass was run twice for want of memory. Without that the plain step would take this
            # share of its time, by its arithmetic.
            once = flops.vision(clip.config, batch, backward_from=1) + plain_text_flops(task, backward_from=1)
            forward = plain_text_flops(task)
            result["plain_seconds_with_texts_again"] = plain
            plain *= once / (once + forward)
        result |= {
            "plain_seconds": plain,
            "times_as_fast": plain / seconds["clipbias"],
            "plain_program_bytes": sizes["plain"]["program_bytes"],
            "plain_loss": sizes["plain"]["loss"],
        }
    return result


def plain_text_flops(task: Task, *, backward_from: int | None = None) -> int:
    """Products of the text tower with every text at full length and nothing shared."""
    config = task.clip.config
    text = padded(task.tokens, config.text.context_length)
    whole = dataclasses.replace(text, eos=np.full(len(text.eos), config.text.context_length - 1))
    return flops.text(config, whole, 0, backward_from=backward_from)


def features(arguments: argparse.Namespace) -> dict[str, Any]:
    """Features of images under the frozen model."""
    clip = model.random_clip(model.geometry(arguments.geometry, layers=arguments.layers))
    images = jax.device_put(model.random_images(clip.config, arguments.batch))

    @jax.jit
    def encode(params: Params, images: jax.Array) -> jax.Array:
        dtype = arguments.dtype
        return encode_image(params, clip.config, clip.preprocessing.normalize(images), dtype=dtype)[0]

    @jax.jit
    def plain(params: Params, images: jax.Array) -> jax.Array:
        return encode_image(params, clip.config, clip.preprocessing.normalize(images), observe=_nothing)[0]

    params = precision.held(clip.params, arguments.dtype)
    ways = {"clipbias": lambda: encode(params, images)}
    if arguments.baseline:
        ways["plain"] = lambda: plain(clip.params, images)
    seconds, machine = measure.with_machine(ways, arguments.repeats, arguments.dtype)
    count = flops.vision(clip.config, arguments.batch)
    result = measure.rates(f"features, batch {arguments.batch}", seconds["clipbias"], count, machine)
    result |= {"images_per_second": arguments.batch / seconds["clipbias"], "peak_bytes": measure.peak_bytes()}
    if arguments.baseline:
        result |= {"plain_seconds": seconds["plain"], "times_as_fast": seconds["plain"] / seconds["clipbias"]}
    return result
