"""Relevancy of image and text tokens for a class (Eq. 13 to 16; Chefer, Gur, Wolf 2021).

For a target's logit `y`, `exp(logit_scale) · cos(f, g)` unless the method has a head of its own, and each branch by
itself,

    Ā_l = mean_h relu(∂y/∂A_l ⊙ A_l),    R ← R + Ā_l R,    first layer to last, R = I at the start,

read at the row of `[cls]` or EOS. That row is `e (I + Ā_L) … (I + Ā_1)`: a row vector that starts at the last layer,
which is where gradients come from, so one backward scan yields it. A head of one's own is differentiated by the image's
features and by those of the target's texts; the texts of the other classes and whatever else it holds stay fixed.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.checks import check_int, shown
from clipbias.clip import TextTokens
from clipbias.clip.encode import check_images
from clipbias.clip.params import Params
from clipbias.errors import ClipbiasError
from clipbias.explain.attention_gradients import MapOptions, Relevancy, compute_maps
from clipbias.explain.reductions import REDUCTIONS
from clipbias.explain.scope import why_no_maps
from clipbias.explain.targets import check_targets
from clipbias.tuning import Classifier, Learnables, Task
from clipbias.tuning.method import check_order
from clipbias.tuning.task import Text


def relevancy(
    task: Task,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    targets: jax.Array | Sequence[int],
    *,
    start_layer: int = 0,
    chunk: int | None = None,
    recompute: int = 0,
    text: Text | None = None,
    by_layer: bool = False,
) -> Relevancy:
    """How much each patch, prompt and text token contributes to the logit of a class.

    No attention is stacked over layers. What grows with depth is what is kept between the forward and the backward
    pass: the blocks' intermediate tokens, nine times `[L, B, N, D]`, or once or less with `recompute`. For comparison,
    attention `[B, H, N, N]` is `N / 64` times as large as `[B, N, D]`, and differentiating all layers at once keeps
    several of them per layer.

    Args:
      task: a method bound to classes.
      params: the frozen weights, `task.clip.params`.
      learnables: as from `task.init`.
      images: `[B, R, R, 3]`, normalised.
      targets: the class to explain in each image, int `[B]`, or `K` classes per image `[B, K]` that share one forward
        pass of the image.
      start_layer: the first layer that counts; 0 all of them, -1 the last alone.
      chunk: so many images at a time, which bounds the memory of any batch; `None` all at once.
      recompute: 1 keeps nothing of a block but its tokens `[B, N, D]` and computes the rest again, about a third of
        the memory for an eighth more time; `n` keeps those of every `n`-th block, for about `(n + 1) / 2` more forward
        passes: with `n` in proportion to `L` memory does not grow with depth. 0 computes nothing twice. The maps are
        the same; above 1 they cannot be differentiated in reverse mode themselves.
      text: what `task.text_features` returned, to compute it once for many calls; a method without a head of its own
        has no use for it.
      by_layer: whether to return a map for each first layer from `start_layer` on, from the same pass.

    Returns:
      `Relevancy` with `vision [B, M + V]` and `text [B, N]` (`[B, K, …]` for targets `[B, K]`); by layer, `vision
      [B, L − start_layer, M + V]` and `text` likewise, of its own number of layers.

    Raises:
      ClipbiasError: targets do not fit the images or the classes, there is no such layer, or `chunk` or `recompute` is
        no whole number or too small.
    """
    options = MapOptions(
        maps=("relevancy",), start_layer=start_layer, chunk=chunk, recompute=recompute, by_layer=by_layer
    )
    return explanations(task, params, learnables, images, targets, options, text=text)["relevancy"]


def explanations(
    task: Task,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    targets: jax.Array | Sequence[int],
    options: MapOptions = MapOptions(),  # noqa: B008 (frozen)
    *,
    text: Text | None = None,
) -> dict[str, Relevancy]:
    """Several maps of the same images and targets by name, from one pass.

    Args:
      task: as in `relevancy`.
      params: likewise.
      learnables: likewise.
      images: likewise.
      targets: likewise.
      options: which maps, by default all of "relevancy", "attention", "rollout", "legrad", "grad_eclip"; and the other
        arguments of `relevancy`.
      text: as in `relevancy`.
    """
    unknown = sorted(set(options.maps) - set(REDUCTIONS))
    if unknown:
        raise ClipbiasError(f"unknown map {unknown[0]!r}; choose from {', '.join(REDUCTIONS)}.")
    if not isinstance(task, Task):
        raise ClipbiasError(
            f"the first argument is {shown(task)} and no task; the order is task, clip.params, learnables, images, "
            "targets."
        )
    if reason := why_no_maps(task):
        raise ClipbiasError(f"{type(task.method).__name__} has no maps. {reason}")
    check_order(params, learnables)
    check_images(images, task.clip.config.vision.image_size)
    targets = check_targets(task, images, targets)
    check_int("recompute", options.recompute)
    if options.chunk is not None:
        check_int("chunk", options.chunk, lowest=1)
    pairs = targets[:, None] if targets.ndim == 1 else targets
    tokens = jax.tree.map(jnp.asarray, task.tokens)
    class_texts: Text | None = None
    if task.method.overrides("logits"):
        class_texts = task.text if text is None else text
    maps = _explanations(task.classifier, options, params, learnables, images, pairs, tokens, class_texts)
    return jax.tree.map(lambda x: x[:, 0], maps) if targets.ndim == 1 else maps


@functools.partial(jax.jit, static_argnums=(0, 1))
def _explanations(
    classifier: Classifier,
    options: MapOptions,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    targets: jax.Array,
    tokens: TextTokens,
    class_texts: Text | None,
) -> dict[str, Relevancy]:
    class_features: jax.Array | None = None
    if class_texts is not None:
        class_features = classifier.encode_text(params, classifier.method.adapt(learnables), class_texts)

    def run(images: jax.Array, targets: jax.Array) -> dict[str, Relevancy]:
        return compute_maps(
            classifier,
            options,
            params,
            learnables,
            images,
            targets,
            tokens,
            class_features,
            dtype=classifier.dtype,
        )

    batch = images.shape[0]
    chunk = options.chunk
    if chunk is None or chunk >= batch:
        return run(images, targets)

    def split(x: jax.Array) -> jax.Array:
        """`[n, chunk, …]`; the last chunk is filled up, since another size would be another program."""
        widths = np.zeros((x.ndim, 2), int)
        widths[0, 1] = -batch % chunk
        return jnp.pad(x, widths, "edge").reshape(-1, chunk, *x.shape[1:])

    maps = jax.lax.map(lambda chunk: run(*chunk), (split(images), split(targets)))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:batch], maps)
