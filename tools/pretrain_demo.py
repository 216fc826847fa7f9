"""Pretrains the embedded models from nothing but code, fonts and scikit-learn's digits (which they never train on).

    python -m tools.pretrain_demo --model_folder=clipbias/assets/demo
    python -m tools.pretrain_demo --family=siglip --start=demo --steps=3000 --batch_size=64 --learning_rate=0.001 \\
        --model_folder=clipbias/assets/demo-siglip
    python -m tools.pretrain_demo --start=demo --layers=8 --scenes=24000 --steps=800 --learning_rate=0.0005 \\
        --model_folder=workdir/eight_layers --work=workdir/pretrain_8

draws scenes, trains a small CLIP or SigLIP on them contrastively and writes it in Hugging Face format. The SigLIP
starts from the CLIP: from random weights it had learned nothing after 1,500 steps. A deeper model starts from one with
fewer layers, each of which is repeated (after Chen et al. 2016, Net2Net). Progress is kept in `--work`: a run that was
interrupted continues from there, and a finished one only writes the model again. On two CPU cores it takes well under
an hour. Zero-shot accuracy is watched on the demo datasets' validation images; no test image is used.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

from clipbias import clip as clip_lib
from clipbias import data
from clipbias.clip import Clip, ClipConfig, ClipModule, Preprocessing, TextConfig, VisionConfig
from clipbias.clip import tokenizer as tokenizer_lib
from clipbias.clip.config import SIGLIP_TEXT, SIGLIP_VISION
from clipbias.clip.preprocess import family_preprocessing
from clipbias.data import demo
from clipbias.io import atomic_path
from tools.demo import corpus, vocabulary

FLAGS = flags.FLAGS
flags.DEFINE_enum("family", "clip", ["clip", "siglip"], "Kind of the model.")
flags.DEFINE_string("model_folder", "clipbias/assets/demo", "Folder that receives the model.")
flags.DEFINE_string("work", "workdir/pretrain_demo", "Folder of drawn scenes and training state.")
flags.DEFINE_string("start", "", "A model whose weights training starts from, as far as names and sizes are the same.")
flags.DEFINE_integer("seed", 0, "Seed of scenes, initialisation and batches.")
flags.DEFINE_integer("scenes", 120_000, "Number of different scenes.", lower_bound=1)
flags.DEFINE_integer("steps", 6_000, "Number of updates.", lower_bound=1)
flags.DEFINE_integer("batch_size", 128, "Scenes per update.", lower_bound=2)
flags.DEFINE_float("learning_rate", 1.5e-3, "Highest learning rate, after the warm-up.")
flags.DEFINE_float("weight_decay", 0.1, "Of AdamW.")
flags.DEFINE_float(
    "logit_scale", 50.0, "Of CLIP, held fixed: left to itself it stays near 15 in a model as small as this one."
)
flags.DEFINE_integer("report_every", 100, "Steps between lines of progress.", lower_bound=1)
flags.DEFINE_integer("save_every", 500, "Steps between saved states.", lower_bound=1)
flags.DEFINE_integer("workers", 2, "Processes that draw scenes.")
flags.DEFINE_list("watch", list(demo.MAIN), "Demo datasets whose validation accuracy is reported.")
flags.DEFINE_integer("width", 128, "Of the vision tower; the text tower has three quarters of it.", lower_bound=4)
flags.DEFINE_integer("layers", 4, "Of both towers.", lower_bound=1)

SIGLIP_SCALE = 10.0  # at the start; it is learned (Zhai et al. 2023)
CONTEXT_LENGTH = 32
# The kernels of a block whose outputs are added to tokens.
ADDS_TO_TOKENS = ("out", "fc2")
VOCABULARY_SIZE = 3072
WARM_UP = 300  # steps


def model_config(width: int, layers: int, family: str = "clip") -> ClipConfig:
    """48-pixel images in patches of 8; heads of a quarter of the vision width."""
    text_width = width * 3 // 4
    end = VOCABULARY_SIZE - 1
    sizes: dict[str, Any] = dict(vocabulary_size=VOCABULARY_SIZE, context_length=CONTEXT_LENGTH, eos_token_id=end)
    if family == "siglip":
        vision = VisionConfig(width, layers, 4, 4 * width, **SIGLIP_VISION, pool_heads=4, image_size=48, patch_size=8)
        text = TextConfig(text_width, layers, 3, 4 * text_width, **SIGLIP_TEXT, **sizes, pad_token_id=end)
        return ClipConfig(vision, text, width, family)
    return ClipConfig(
        VisionConfig(width, layers, 4, 4 * width, image_size=48, patch_size=8),
        TextConfig(text_width, layers, 3, 4 * text_width, **sizes),
        projection_width=width,
    )


def started_from(start: Any, params: Any) -> Any:
    """`params` with the leaves of `start` that have the same names and sizes.

    Of positions the last ones are taken: CLIP has one more, of `[cls]`. Where `params` has twice as many layers or a
    further multiple of them, each block is repeated, and what all of these add to tokens is divided by their number.
    """
    known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(start)}

    def leaf_of(path: Any, leaf: jax.Array) -> jax.Array:
        array = jnp.asarray(known.get(jax.tree_util.keystr(path), jnp.zeros(0)), jnp.float32)
        names = [key.key for key in path]
        if names[-1] == "position_embedding":
            array = array[-len(leaf) :]
        if "layers" in names and len(array) and len(leaf) % len(array) == 0:
            copies = len(leaf) // len(array)
            array = jnp.repeat(array, copies, axis=0) / (copies if names[-2] in ADDS_TO_TOKENS else 1)
        return array if array.shape == leaf.shape else leaf

    return jax.tree_util.tree_map_with_path(leaf_of, params)


def save_state(path: Path, state: Any, step: int) -> None:
    """Writes parameters and optimiser state, whole."""
    leaves = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    with atomic_path(path) as temporary:
        np.savez(temporary, allow_pickle=False, step=step, **leaves)


def load_state(path: Path, like: Any) -> tuple[Any, int]:
    """Reads what `save_state` wrote into the structure of `like`; (`like`, 0) where nothing was written."""
    if not path.exists():
        return like, 0
    leaves, structure = jax.tree.flatten(like)
    with np.load(path, allow_pickle=False) as file:
        read = [jnp.asarray(file[f"leaf{i}"]) for i in range(len(leaves))]
        return jax.tree.unflatten(structure, read), int(file["step"])


def zero_shot_accuracy(params: Any, model: Clip, dataset: data.Dataset, split: str = "val") -> float:
    """The share of images of `split` whose nearest prompt is their own class."""
    images = dataset.split(split)
    trained = dataclasses.replace(model, params=params)
    image_features = trained.encode_images([images.image(i) for i in range(len(images))])
    texts = [dataset.template.format(name) for name in dataset.class_names]
    text_features = trained.encode_texts(texts, normalize=True)
    return float((np.argmax(image_features @ text_features.T, -1) == images.labels).mean())


def write_model(folder: Path, model: Clip, params: Any) -> None:
    """Writes the Hugging Face checkpoint, and CLIP's original vocabulary files."""
    model.save(folder, params)
    if model.config.family == "clip":
        vocabulary.write(folder, VOCABULARY_SIZE)


# One step: the softmax of CLIP (Radford et al. 2021) or the sigmoids of SigLIP (Zhai et al. 2023).


def random_crops(images: jax.Array, rng: jax.Array, *, smallest: float = 0.6) -> jax.Array:
    """Cuts a random window out of each image and stretches it to the full size, bilinearly.

    Args:
      images: `[B, R, R, 3]`.
      smallest: the smallest window's side, as a fraction of the image's; some windows are the whole image.
    """
    batch, size = images.shape[:2]
    keys = jax.random.split(rng, 3)
    sides = jax.random.uniform(keys[0], (batch, 2), minval=smallest, maxval=1.25).clip(max=1.0)
    starts = jax.random.uniform(keys[1], (batch, 2)) * (1 - sides)

    def weights(start: jax.Array, side: jax.Array) -> jax.Array:
        """`[B, R, R]`: how much of each input row or column each output one takes."""
        centres = start[:, None] * size + (jnp.arange(size) + 0.5) * side[:, None] - 0.5
        distance = jnp.abs(centres.clip(0, size - 1)[:, :, None] - jnp.arange(size))
        return jnp.maximum(0, 1 - distance)

    rows, columns = weights(starts[:, 0], sides[:, 0]), weights(starts[:, 1], sides[:, 1])
    return jnp.einsum("BYR,BRCK,BXC->BYXK", rows, images, columns)


def matching_loss(
    image_features: jax.Array, text_features: jax.Array, ids: jax.Array, logit_scale: jax.Array
) -> jax.Array:
    """Symmetric cross-entropy where every pair with equal captions is a match, all equally likely.

    Args:
      image_features, text_features: `[B, d]`, of any length.
      ids: `[B, N]`: the captions.
      logit_scale: a logarithm.
    """
    logits, matches = _compared(image_features, text_features, ids, logit_scale)
    targets = matches / matches.sum(-1, keepdims=True)
    of_images = optax.softmax_cross_entropy(logits, targets)
    of_texts = optax.softmax_cross_entropy(logits.T, targets)
    return 0.5 * (of_images + of_texts).mean()


def sigmoid_loss(
    image_features: jax.Array, text_features: jax.Array, ids: jax.Array, logit_scale: jax.Array, logit_bias: jax.Array
) -> jax.Array:
    """SigLIP's loss: each pair of an image and a caption is a match or none by itself; their sum over `B`.

    Another image's caption that equals an image's own is left out: as a match it would make the number of matches, and
    with it the best `logit_bias`, another one in each batch.

    Args:
      image_features, text_features, ids, logit_scale: as of `matching_loss`.
      logit_bias: added to every logit.
    """
    logits, matches = _compared(image_features, text_features, ids, logit_scale)
    diagonal = jnp.eye(len(ids))
    losses = optax.sigmoid_binary_cross_entropy(logits + logit_bias, diagonal)
    return jnp.where(matches > diagonal, 0, losses).sum() / len(ids)


def _compared(
    image_features: jax.Array, text_features: jax.Array, ids: jax.Array, logit_scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`[B, B]` logits of each image and each caption, and 1 where the image's own caption is that one, else 0."""
    image_features = image_features / jnp.linalg.norm(image_features, axis=-1, keepdims=True)
    text_features = text_features / jnp.linalg.norm(text_features, axis=-1, keepdims=True)
    logits = jnp.exp(logit_scale) * image_features @ text_features.T
    return logits, (ids[:, None] == ids[None]).all(-1).astype(jnp.float32)


def loss(params: Any, config: ClipConfig, images: jax.Array, ids: jax.Array) -> jax.Array:
    """The loss of the model's family, of normalised `images [B, R, R, 3]` and their captions `ids [B, N]`.

    CLIP's scale of logits is a constant here. SigLIP's is learned.
    """
    features: Any = ClipModule(config).apply({"params": params}, images, ids)
    image_features, text_features = features
    if config.family == "siglip":
        return sigmoid_loss(image_features, text_features, ids, params["logit_scale"], params["logit_bias"])
    return matching_loss(image_features, text_features, ids, jax.lax.stop_gradient(params["logit_scale"]))


def decayed(params: Any) -> Any:
    """Which parameters weight decay acts on: matrices, not biases, LayerNorm or the logit scale."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and not any(getattr(key, "key", "") in ("bias", "scale") for key in path),
        params,
    )


def optimiser_of(*, learning_rate: float, steps: int, weight_decay: float) -> optax.GradientTransformation:
    """AdamW with gradients clipped to norm 1.

    The rate rises for `WARM_UP` steps, stays, and falls to nothing over the last third. Being constant in between, it
    lets a run that is under way be made longer or shorter and still be the run that its final number of steps defines.
    """
    warm_up = min(WARM_UP, max(1, steps // 3))
    fall = max(warm_up + 1, steps * 2 // 3)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, learning_rate, warm_up),
            optax.constant_schedule(learning_rate),
            optax.linear_schedule(learning_rate, 0.0, max(1, steps - fall)),
        ],
        boundaries=[warm_up, fall],
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.98, eps=1e-6, weight_decay=weight_decay, mask=decayed),
    )


def train_step(
    params: Any,
    state: optax.OptState,
    batch: dict[str, jax.Array],
    rng: jax.Array,
    *,
    config: ClipConfig,
    preprocessing: Preprocessing,
    optimiser: optax.GradientTransformation,
) -> tuple[Any, optax.OptState, jax.Array]:
    """One update. Returns parameters, optimiser state and the loss."""
    images = random_crops(batch["images"].astype(jnp.float32), rng)
    images = preprocessing.normalize(images)
    value, gradients = jax.value_and_grad(loss)(params, config, images, batch["ids"])
    updates, state = optimiser.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


@functools.cache
def compiled_step(
    config: ClipConfig, preprocessing: Preprocessing, learning_rate: float, weight_decay: float, steps: int
) -> tuple[optax.GradientTransformation, Callable[..., Any]]:
    """The optimiser and the jitted update that uses it."""
    optimiser = optimiser_of(learning_rate=learning_rate, steps=steps, weight_decay=weight_decay)
    step = functools.partial(train_step, config=config, preprocessing=preprocessing, optimiser=optimiser)
    return optimiser, jax.jit(step, donate_argnums=(0, 1))


def train(model: Clip, scenes: corpus.Corpus, datasets: list[data.Dataset], work: Path) -> Any:
    """Runs the steps that are left and returns the parameters."""
    optimiser, step_fn = compiled_step(
        model.config, model.preprocessing, FLAGS.learning_rate, FLAGS.weight_decay, FLAGS.steps
    )
    state_path = work / ("state.npz" if model.config.family == "clip" else f"state_{model.config.family}.npz")
    # The step donates its arguments, and the caller's parameters must outlive it.
    initial = jax.jit(lambda params: (jax.tree.map(jnp.copy, params), optimiser.init(params)))(model.params)
    (params, state), start = load_state(state_path, initial)
    began = time.monotonic()
    reported = start
    for step in range(start, FLAGS.steps):
        batch = corpus.batch(scenes, seed=FLAGS.seed, step=step, size=FLAGS.batch_size)
        rng = jax.random.fold_in(jax.random.key(FLAGS.seed), step)
        params, state, loss = step_fn(params, state, batch, rng)
        done = step + 1
        if done % FLAGS.report_every == 0 or done == FLAGS.steps:
            rate = (done - reported) * FLAGS.batch_size / (time.monotonic() - began)
            began = time.monotonic()
            reported = done
            logging.info("step %d/%d  loss %.3f  %.0f images/s", done, FLAGS.steps, float(loss), rate)
        if done % FLAGS.save_every == 0 or done == FLAGS.steps:
            if not np.isfinite(float(loss)):
                raise FloatingPointError(f"the loss is {float(loss)} at step {done}; lower --learning_rate.")
            save_state(state_path, (params, state), done)
            for dataset in datasets:
                accuracy = zero_shot_accuracy(params, model, dataset)
                logging.info("step %d  %s  zero-shot %.1f %% of val", done, dataset.name, 100 * accuracy)
    return params


def main(_: list[str]) -> None:
    work = Path(FLAGS.work)
    siglip = FLAGS.family == "siglip"
    config = model_config(FLAGS.width, FLAGS.layers, FLAGS.family)
    params = clip_lib.init_params(config, jax.random.key(FLAGS.seed))
    if FLAGS.start:
        params = started_from(clip_lib.load(FLAGS.start).params, params)
    params["logit_scale"] = jnp.asarray(np.log(SIGLIP_SCALE if siglip else FLAGS.logit_scale), jnp.float32)
    text_tokenizer = (vocabulary.siglip_tokenizer if siglip else vocabulary.tokenizer)(VOCABULARY_SIZE)
    model = Clip(params, config, text_tokenizer, family_preprocessing(config), "demo", stored_dtype="float16")
    scenes = corpus.load(
        work,
        seed=FLAGS.seed,
        count=FLAGS.scenes,
        tokenize=lambda texts: tokenizer_lib.tokenize(text_tokenizer, texts, config.text),
        workers=FLAGS.workers,
    )
    logging.info("%d scenes in %s", len(scenes.kinds), work)
    params = train(model, scenes, [demo.load(name) for name in FLAGS.watch], work)
    write_model(Path(FLAGS.model_folder), model, params)
    logging.info("wrote %s", FLAGS.model_folder)


if __name__ == "__main__":
    app.run(main)
