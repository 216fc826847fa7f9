"""Measures clipbias on this machine with random weights; the last line printed is one JSON object.

    python -m tools.benchmark train --methods ivlp --option depth=9 --classes=100 --batch=4
    python -m tools.benchmark train --methods vpt --geometry=SigLIP-B/16 --classes=100
    python -m tools.benchmark features --batch=16
    python -m tools.benchmark relevancy --batch=8 --recompute
    python -m tools.benchmark pipeline --images=96 --batch=32

Seconds are medians over rounds in which each computation and a large matrix product have their turn, so that other
work on the machine slows both alike. FLOP are those of the matrix products in a program. Memory is the compiler's plan
for a program, and the peak of the process or the device.
"""

import argparse
import dataclasses
import io
import json
import math
import os
import re
import resource
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from PIL import Image

from clipbias.analysis.relevancy import relevancy as relevancy_maps
from clipbias.clip import Clip, encode_image
from clipbias.clip.config import SIGLIP_TEXT, SIGLIP_VISION, ClipConfig, TextConfig, VisionConfig
from clipbias.clip.params import Params, empty_params
from clipbias.clip.precision import DTYPES, PRECISIONS, cast_weights
from clipbias.clip.preprocess import family_preprocessing
from clipbias.data import transforms
from clipbias.data.dataset import Split
from clipbias.data.images import ImageCache, Images, processors
from clipbias.data.pipeline import Batches, train_source
from clipbias.errors import ClipbiasError
from clipbias.training import placement
from clipbias.training.device import prepare_cpu
from clipbias.training.memory import StepShape, training_program
from clipbias.training.step import StepScalars, StepStatic, init_state, place_inputs, train_step
from clipbias.tuning import Recipe, Task

# Models with random weights: nothing is downloaded.


def _geometry(
    vision: tuple[int, int, int, int, int], text: tuple[int, int, int], joint: int, *, vocabulary: int = 49408
) -> ClipConfig:
    """From `(width, layers, heads, image size, patch size)`, `(width, layers, heads)` and the joint width."""
    width, layers, heads, image_size, patch_size = vision
    return ClipConfig(
        vision=VisionConfig(width, layers, heads, 4 * width, image_size=image_size, patch_size=patch_size),
        text=TextConfig(*text, 4 * text[0], vocabulary_size=vocabulary, context_length=77, eos_token_id=vocabulary - 1),
        projection_width=joint,
    )


GEOMETRIES = {
    "tiny": _geometry((64, 2, 2, 32, 8), (32, 2, 2), 32, vocabulary=512),
    "ViT-B/32": _geometry((768, 12, 12, 224, 32), (512, 12, 8), 512),
    "ViT-B/16": _geometry((768, 12, 12, 224, 16), (512, 12, 8), 512),
    "ViT-L/14": _geometry((1024, 24, 16, 224, 14), (768, 12, 12), 768),
    "ViT-L/14@336": _geometry((1024, 24, 16, 336, 14), (768, 12, 12), 768),
    "SigLIP-B/16": ClipConfig(
        VisionConfig(768, 12, 12, 3072, **SIGLIP_VISION, pool_heads=12, image_size=224, patch_size=16),
        TextConfig(
            *(768, 12, 12, 3072),
            **SIGLIP_TEXT,
            vocabulary_size=32000,
            context_length=64,
            eos_token_id=1,
            pad_token_id=1,
        ),
        768,
        "siglip",
    ),
}
# How many of ImageNet's 1000 class names (`clipbias/assets/imagenet_classes.txt`) have so many tokens in CLIP's own
# byte-pair encoding; counted with the published vocabulary.
NAME_LENGTHS = {1: 246, 2: 508, 3: 154, 4: 50, 5: 22, 6: 10, 7: 8, 9: 1, 12: 1}


@dataclasses.dataclass(frozen=True)
class WordTokenizer:
    """Stands in for a tokenizer: one token per word or mark, whatever the vocabulary's size."""

    vocabulary_size: int

    @property
    def bos_token_id(self) -> int:
        return self.vocabulary_size - 2

    @property
    def eos_token_id(self) -> int:
        return self.vocabulary_size - 1

    pad_token_id = 0

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        words = (re.findall(r"\w+|[^\w\s]", text) for text in texts)
        return {"input_ids": [[self._id(word) for word in line] for line in words]}

    def _id(self, word: str) -> int:
        """The id of a word: its number where it has one, so that the names of `class_names` are distinct."""
        number = re.search(r"\d+$", word)
        return (zlib.crc32(word.encode()) if number is None else int(number[0])) % self.bos_token_id


def geometry(name: str, *, layers: int = 0) -> ClipConfig:
    """A geometry by name; `layers` makes both towers shallower, to try things quickly.

    Raises:
      ClipbiasError: there is no geometry of that name.
    """
    if name not in GEOMETRIES:
        raise ClipbiasError(f"there is no geometry {name!r}; choose one of {', '.join(GEOMETRIES)}.")
    config = GEOMETRIES[name]
    if not layers:
        return config
    vision = dataclasses.replace(config.vision, layers=layers)
    return dataclasses.replace(config, vision=vision, text=dataclasses.replace(config.text, layers=layers))


def random_clip(config: ClipConfig) -> Clip:
    """A frozen model with random weights on the default device, made without more memory than it has itself."""
    rng = np.random.default_rng(0)

    def fill(path: tuple[Any, ...], leaf: np.ndarray) -> None:
        kind = path[-1].key
        if kind == "logit_scale":
            leaf[...] = np.log(1 / 0.07)
        elif kind == "scale":
            leaf[...] = 1
        elif kind != "bias":
            rng.standard_normal(out=leaf, dtype=np.float32)
            leaf *= leaf.shape[-2] ** -0.5 if kind in ("kernel", "projection", "patch_embedding") else 0.02

    params = empty_params(config)
    jax.tree_util.tree_map_with_path(fill, params)
    return clip_of(config, jax.device_put(params))


def clip_of(config: ClipConfig, params: Params) -> Clip:
    """A model with these weights, and a tokenizer that needs no files."""
    tokenizer: Any = WordTokenizer(config.text.vocabulary_size)
    return Clip(params, config, tokenizer, family_preprocessing(config), "random", "random")


def class_names(count: int) -> list[str]:
    """`count` distinct names whose numbers of tokens are spread as ImageNet's are, in random order."""
    lengths = np.repeat(list(NAME_LENGTHS), list(NAME_LENGTHS.values()))
    quantiles = ((np.arange(count) + 0.5) / count * len(lengths)).astype(int)
    shuffled = np.random.default_rng(0).permutation(lengths[quantiles])
    return [" ".join([f"name{index}", *["of"] * (length - 1)]) for index, length in enumerate(shuffled)]


def random_images(config: ClipConfig, *shape: int) -> np.ndarray:
    """Noise as uint8 images `[*shape, R, R, 3]`."""
    size = config.vision.image_size
    return np.random.default_rng(0).integers(0, 256, (*shape, size, size, 3), np.uint8)


# Arithmetic, memory and time.


def traced(function: Any, *arguments: Any) -> int:
    """Multiplications and additions of the matrix products in a jitted function, on all devices together.

    Those in loops count as often as they run. The compiler's own count (`cost_analysis`) takes the body of a loop once,
    and the layers are a loop.
    """
    return _products((function if hasattr(function, "trace") else jax.jit(function)).trace(*arguments).jaxpr.jaxpr)


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * terms * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(map(_products, jaxprs_in_params(equation.params)))
    return total


def square_product(dtype: str, side: int = 2048) -> tuple[Callable[[], jax.Array], int]:
    """A product of two square matrices in a compute type, and its multiplications and additions.

    `side` is for a CPU; an accelerator, which so small matrices would not fill, gets 8192 rows.
    """
    side = side if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((side, side), "bfloat16" if dtype == "bfloat16" else "float32")
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=PRECISIONS[dtype]))
    return lambda: multiply(matrix), 2 * side**3


def peak_bytes() -> int:
    """The most memory that was in use: of the accelerator if it reports it, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def measured(call: Callable[[], Any], program: Any, flop: int, dtype: str, repeats: int) -> dict[str, Any]:
    """Times a computation in turn with a large matrix product.

    Args:
      call: computes once, and waits for it.
      program: what it runs, compiled.
      flop: of its matrix products.
      dtype: its compute type.
      repeats: rounds.
    """
    memory = program.memory_analysis()
    planned = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    multiply, count = square_product(dtype)
    call()
    jax.block_until_ready(multiply())
    seconds, products = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        between = time.perf_counter()
        jax.block_until_ready(multiply())
        seconds.append(between - began)
        products.append(time.perf_counter() - between)
    median = statistics.median(seconds)
    return {
        "seconds": median,
        "flop": flop,
        "share_of_matmul": flop / median / (count / statistics.median(products)),
        "planned_bytes": int(planned - memory.alias_size_in_bytes),
        "program_bytes": int(memory.temp_size_in_bytes),
        "peak_bytes": peak_bytes(),
    }


# What is measured: each returns rows.


def train(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Forward, backward and update of each method, as `clipbias.training.loop` calls it."""
    clip = random_clip(geometry(arguments.geometry, layers=arguments.layers))
    names = class_names(arguments.classes)
    options: dict[str, Any] = {name: int(value) for name, value in (pair.split("=") for pair in arguments.option)}
    tasks = [Task(clip, name, names, dtype=arguments.dtype, **options) for name in arguments.methods]
    return [step(task, arguments) for task in tasks]


def step(task: Task, arguments: argparse.Namespace) -> dict[str, Any]:
    """A row of a method."""
    mesh, batch = placement.single_device(), arguments.batch
    recipe = task.method.recipe_for(Recipe(0.0025, 10, 1, 1e-5, batch, 0.9, 5e-4), 16)
    pixels = training_program(task, recipe, StepShape(batch, 1, mesh)).arguments[3]["images"]
    images: Any = random_images(task.clip.config, 1, batch)
    if pixels.dtype == jnp.float32:  # features that stand for the images
        images = np.random.default_rng(0).standard_normal(pixels.shape, np.float32)
    labels = np.arange(batch, dtype=np.int32) % len(task.class_names)
    start = jax.tree.map(lambda leaf: jnp.array(leaf)[None], task.init(0))
    static = StepStatic.of(task, recipe)
    inputs = place_inputs(mesh, task, cast_weights(task.clip.params, arguments.dtype), start, [0])
    state = init_state(task.method, recipe, start)
    data = jax.device_put({"images": images, "labels": labels[None], "mask": np.ones((1, batch), bool)})
    # If a method averages its epochs: the step at the end of an epoch.
    weight = None if state.average is None else jnp.ones(())
    scalars = StepScalars(jnp.full(1, recipe.learning_rate), weight)
    program = train_step.lower(static, inputs, state, data, scalars).compile()
    flop = traced(train_step, static, inputs, state, data, scalars)
    losses = []

    def call() -> None:
        nonlocal state
        state, metrics = program(inputs, state, data, scalars)
        losses.append(jax.block_until_ready(metrics["loss"]))

    row = measured(call, program, flop, arguments.dtype, arguments.repeats)
    facts = {"method": task.method_name, "classes": arguments.classes, "batch": batch}
    return facts | row | {"loss": float(losses[0][0])}


def features(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Features of images under the frozen model."""
    clip = random_clip(geometry(arguments.geometry, layers=arguments.layers))
    images = jax.device_put(random_images(clip.config, arguments.batch))

    @jax.jit
    def encode(params: Params, images: jax.Array) -> jax.Array:
        return encode_image(params, clip.config, clip.preprocessing.normalize(images), dtype=arguments.dtype)[0]

    inputs = cast_weights(clip.params, arguments.dtype), images
    program = encode.lower(*inputs).compile()
    call = lambda: jax.block_until_ready(program(*inputs))  # noqa: E731
    row = measured(call, program, traced(encode, *inputs), arguments.dtype, arguments.repeats)
    return [{"batch": arguments.batch, "images_per_second": arguments.batch / row["seconds"], **row}]


def relevancy(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Maps in both towers of each image for a class of its own, of each method."""
    clip = random_clip(geometry(arguments.geometry, layers=arguments.layers))
    names = class_names(arguments.batch)
    return [maps(Task(clip, name, names, dtype=arguments.dtype), arguments) for name in arguments.methods]


def maps(task: Task, arguments: argparse.Namespace) -> dict[str, Any]:
    """A row of a method."""
    batch = arguments.batch
    options = {name: value for name in ("recompute", "chunk") if (value := getattr(arguments, name))}
    images = jnp.asarray(task.clip.preprocessing.normalize(random_images(task.clip.config, batch)))

    @jax.jit
    def explain(params: Params, learnables: Any, images: jax.Array) -> Any:
        return relevancy_maps(task, params, learnables, images, jnp.arange(batch), **options)

    inputs = task.clip.params, task.init(0), images
    program = explain.lower(*inputs).compile()
    call = lambda: jax.block_until_ready(program(*inputs))  # noqa: E731
    row = measured(call, program, traced(explain, *inputs), arguments.dtype, arguments.repeats)
    facts = {"method": task.method_name, "batch": batch, **options}
    return facts | {"seconds_per_pair": row["seconds"] / batch} | row


HEIGHT, WIDTH, SIZE = 375, 500, 224  # of JPEG files, and of the model's input


def pipeline(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Training images per second from JPEG files: decoded, cropped, resized and flipped."""
    batch = min(arguments.batch, arguments.images)
    files = draw_images(arguments.images // batch * batch)  # full batches
    split = Split([f"{number}.jpg" for number in range(len(files))], np.zeros(len(files)), files.__getitem__)
    cached = Images(split, ImageCache(2 << 30))

    def batches(images: Images, workers: int | None = None) -> Iterable[Any]:
        source = train_source(
            images,
            resizing=transforms.Resizing(SIZE),
            batch_size=batch,
            seed=1,
            epochs=1,
            start_step=0,
            shard=(0, 1),
            keep_last=False,
            crop=transforms.SCALE[0],
        )
        return Batches(source, workers)

    ways: dict[str, Callable[[], Iterable[Any]]] = {
        "1 thread": lambda: batches(Images(split), 1),
        f"{processors()} threads": lambda: batches(Images(split)),
        f"{processors()} threads, cached": lambda: batches(cached),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for round_number in range(arguments.repeats + 1):
        for name, way in ways.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            for _ in way():
                pass
            if round_number:  # the first fills the cache
                times[name].append((time.perf_counter() - began, time.process_time() - began_cpu))
    rows = []
    for name, spent in times.items():
        clock, core = (len(files) / statistics.median(seconds) for seconds in zip(*spent, strict=True))
        rows.append({"way": name, "images_per_second": clock, "of_a_core": core})
    return rows


def draw_images(count: int) -> list[bytes]:
    """JPEG bytes of pictures with structure at several scales, as photographs have."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for cells in (3, 12, 48):
            coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            picture += np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32) / 3
        buffer = io.BytesIO()
        Image.fromarray(picture.astype(np.uint8)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in Markdown: bytes in GB, operations in TFLOP."""

    def cell(name: str, value: Any) -> str:
        if name.endswith("_bytes"):
            return f"{value / 1e9:.2f}"
        if name == "flop":
            return f"{value / 1e12:.3g}"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    heads = [name.replace("_bytes", " (GB)").replace("flop", "TFLOP").replace("_", " ") for name in rows[0]]
    lines = [heads, ["---"] * len(heads), *([cell(name, row[name]) for name in rows[0]] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


COMMANDS = {
    "train": train,
    "features": features,
    "relevancy": relevancy,
    "pipeline": pipeline,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one sub-command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--geometry", default="ViT-B/16", help="or one of " + ", ".join(GEOMETRIES))
    parser.add_argument("--layers", type=int, default=0, help="blocks of each tower; 0: as the geometry has")
    parser.add_argument("--methods", nargs="+", default=["ivlp"])
    parser.add_argument("--option", action="append", default=[], help="train: an option of the methods, name=number")
    parser.add_argument("--classes", type=int, default=37)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--recompute", action="store_true", help="relevancy: its option")
    parser.add_argument("--chunk", type=int, default=0, help="relevancy: its option")
    parser.add_argument("--images", type=int, default=96, help="pipeline")
    parsed = parser.parse_args(arguments)
    if min(parsed.classes, parsed.batch, parsed.repeats, parsed.images) < 1:
        parser.error("classes, batch, repeats and images must be 1 or more.")
    prepare_cpu()
    try:
        rows = COMMANDS[parsed.command](parsed)
    except ClipbiasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    facts = {name: getattr(parsed, name) for name in ("command", "geometry", "dtype")}
    facts["device"] = jax.devices()[0].device_kind
    print(json.dumps(facts | {"rows": rows}), flush=True)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sys.exit(main())
