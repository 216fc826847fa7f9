"""The bias that a method amounts to: what its blocks add on average, as one constant per layer.

With `F_l` the tuned block `l`, its bias included, and `f_l` the frozen one,

    c_l = mean over images of F_l(x) − f_l(x),

both on the tuned run's own input tokens `x`, which are all but *slots*: the positions that a method fills with learned
tokens. In the vision tower the frozen block sees input tokens alone. In the text tower it sees in the slots what the
reference run has there: the frozen model's run with the context that the method starts from, in which nothing is
replaced. The mean there is over classes and tokens up to EOS.

It has three forms: one vector per layer, which bias tuning can learn; two per layer, one for the readout token and one
for all others; and one per position. Only what acts inside the blocks is in it. A method may also change the pixels,
the weights before the first block and after the last, or the class features, or have a head of its own: `c_l` knows
nothing of these.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, TextTokens, layers, scan, tower
from clipbias.clip.config import ClipConfig, TowerConfig
from clipbias.clip.params import Params
from clipbias.clip.text import embed_text
from clipbias.clip.vision import embed_image
from clipbias.clip.weight_changes import of_layers
from clipbias.errors import ClipbiasError
from clipbias.explain.statistics import Moments, Totals, merge
from clipbias.tuning import Classifier, Learnables, Task

TOWERS = ("vision", "text")
# Texts that run at once: a tower's tokens of all layers are held for them.
_TEXTS_AT_ONCE = 128


@dataclasses.dataclass(frozen=True)
class Amount:
    """What a method amounts to in one tower: `c_l` in its three forms, float32.

    Attributes:
      vector: `[L, D]`, the mean over all input tokens.
      kind: `[L, 2, D]`: of the readout token (`[cls]`, EOS), then of all other input tokens.
      token: `[L, N, D]` by position: `[cls]` and patches (`N = 1 + M`), or the text's positions (`N` the context
        length). Positions without an input token are 0.
    """

    vector: np.ndarray
    kind: np.ndarray
    token: np.ndarray

    @classmethod
    def of(cls, token: Moments, readout: Moments, length: int) -> "Amount":
        """Of the differences by position (count `[L, N]`) and at the readout token (count `[L]`), filled up to `N`."""
        count, mean = (np.asarray(x, np.float64) for x in (token.count, token.mean))
        own_count, own = (np.asarray(x, np.float64) for x in (readout.count, readout.mean))
        total, samples = (count[..., None] * mean).sum(1), count.sum(1)
        others = total - own_count[:, None] * own
        by_kind = np.stack([own, others / np.maximum(samples - own_count, 1)[:, None]], axis=1)
        by_token = np.pad(mean, ((0, 0), (0, length - mean.shape[1]), (0, 0)))
        forms = (total / np.maximum(samples, 1)[:, None], by_kind, by_token)
        return cls(*(form.astype(np.float32) for form in forms))


def changed_towers(task: Task, learnables: Learnables) -> tuple[str, ...]:
    """The towers in whose blocks a method changes tokens or weights."""
    found = jax.eval_shape(task.method.adapt, learnables)
    parts = {
        "vision": (
            *(found.vision_prompts, found.vision_bias, found.vision_adapters),
            of_layers(found.vision_weights),
        ),
        "text": (
            *(found.text_context, found.text_prompts, found.text_bias, found.text_adapters),
            of_layers(found.text_weights),
        ),
    }
    return tuple(name for name in TOWERS if any(leaf.size for leaf in jax.tree.leaves(parts[name])))


def refusal(task: Task, learnables: Learnables) -> str | None:
    """Why a method amounts to no bias, in one sentence, or `None` where it does."""
    name = type(task.method).__name__
    if task.method.conditional:
        return f"the texts of {name} depend on the image, so there is no one bias that they amount to."
    if not changed_towers(task, learnables):
        return f"{name} changes neither tokens nor weights inside the towers' blocks, so it amounts to no bias."
    return None


def reference_adaptation(task: Task, initial: Learnables) -> Adaptation:
    """What the reference run is given: the context that the method starts from, and nothing else."""
    return Adaptation(text_context=task.method.adapt(initial).text_context)


@jax.jit(static_argnums=0)
def vision_moments(
    classifier: Classifier, params: Params, learnables: Learnables, images: jax.Array, mask: jax.Array
) -> Totals:
    """Of normalised images `[B, R, R, 3]`, counting where `mask [B]` is true; computed in float32 always.

    Returns:
      "vision/token" (`count [L, 1 + M]`) and "vision/readout" (`count [L]`).
    """
    config: ClipConfig = classifier.config
    with jax.default_matmul_precision("highest"):
        run = embed_image(params, config, images, classifier.method.adapt(learnables))
        length = 1 + config.vision.patches
        counted = jnp.broadcast_to(mask[:, None], (images.shape[0], length))
        return _named("vision", _scan(run, config.vision, counted))


@jax.jit(static_argnums=(0, 1))
def _text_moments(
    classifier: Classifier,
    count: int,
    params: Params,
    learnables: Learnables,
    reference: Adaptation,
    tokens: TextTokens,
    texts: jax.Array,
    mask: jax.Array,
) -> Totals:
    config: ClipConfig = classifier.config
    adaptation = _of_texts(classifier.method.adapt(learnables), texts, count)
    with jax.default_matmul_precision("highest"):
        run = embed_text(params, config, tokens, adaptation)
        counted = (jnp.arange(tokens.ids.shape[1]) <= tokens.eos[:, None]) & mask[:, None]
        if adaptation.text_context is None and adaptation.text_prompts is None:
            return _named("text", _scan(run, config.text, counted))
        slots = jnp.asarray(tokens.context_rows) >= 0
        words = embed_text(params, config, tokens, _of_texts(reference, texts, count)).tokens
        return _named("text", _scan(run, config.text, counted & ~slots, slots, words))


def text_moments(task: Task, params: Params, learnables: Learnables, initial: Learnables) -> Totals:
    """Of all the task's texts: "text/token" (`count [L, N]`, `N` the longest text) and "text/readout".

    Args:
      task: the method bound to classes.
      params: the frozen weights.
      learnables: as tuned.
      initial: as before training.
    """
    reference, count = reference_adaptation(task, initial), len(task.tokens.ids)
    size = min(count, _TEXTS_AT_ONCE)
    totals: Totals = {}
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        mask, rows = rows < count, np.minimum(rows, count - 1)
        tokens: TextTokens = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], task.tokens)
        found = _text_moments(task.classifier, count, params, learnables, reference, tokens, rows, mask)
        totals = merge(totals, jax.device_get(found))
    return totals


def _of_texts(adaptation: Adaptation, texts: jax.Array, count: int) -> Adaptation:
    """The same for some of `count` texts, where they have contexts of their own, or share one with the next texts."""
    context = adaptation.text_context
    if context is None or context.ndim == 2:
        return adaptation
    return dataclasses.replace(adaptation, text_context=jnp.asarray(context)[texts // (count // context.shape[0])])


def _named(name: str, moments: Mapping[str, Moments]) -> Totals:
    return {f"{name}/{key}": value for key, value in moments.items()}


def _scan(
    run: tower.TowerInput,
    config: TowerConfig,
    counted: jax.Array,
    slots: jax.Array | None = None,
    words: jax.Array | None = None,
) -> Totals:
    """Runs the tuned tower, and each frozen block on the same input tokens; sums up their differences layer by layer.

    Args:
      counted: `[B, N']`: which of the first `N'` tokens count. The others are slots, or of no influence.
      slots: `[B, N]`: which tokens are slots, where they stand among the first `N'`.
      words: `[B, N, D]`: tokens of the reference run at the first block's input, which stand in the slots.
    """
    length = counted.shape[1]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return layers.fused_attention(q, k, v, causal=run.causal)

    def step(carry: tuple[jax.Array, jax.Array | None], layer: scan.LayerInput) -> tuple[tuple, Totals]:
        tokens, words = carry
        tokens = tower.put_prompts(tokens, layer, run.prompt_rows)
        inputs = tokens[:, :length]
        if words is not None and slots is not None:
            inputs = jnp.where(slots[..., None], words, inputs)
        output = tower.add_beside(layers.block(tokens, layer.weights, config, attend), tokens, layer, config)
        tokens = tower.add_bias(output, layer, run.bias_rows)
        change = tokens[:, :length] - layers.block(inputs, layer.frozen, config, attend)
        words = None if words is None else layers.block(words, layer.frozen, config, attend)
        readout = tower.take_rows(change, run.readout)
        found = {"token": Moments.of(change, counted), "readout": Moments.of(readout, counted.any(1))}
        return (tokens, words), found

    return jax.lax.scan(step, (run.tokens, words), run.layers)[1]


def amounts_from(totals: Mapping[str, Moments], config: ClipConfig) -> dict[str, Amount]:
    """By tower, of the sums that `vision_moments` and `text_moments` give."""
    lengths = {"vision": 1 + config.vision.patches, "text": config.text.context_length}
    return {
        name: Amount.of(totals[f"{name}/token"], totals[f"{name}/readout"], lengths[name])
        for name in TOWERS
        if f"{name}/token" in totals
    }


def measure(
    task: Task,
    params: Params,
    learnables: Learnables,
    initial: Learnables,
    batches: Iterable[tuple[np.ndarray, np.ndarray]] = (),
) -> tuple[dict[str, Amount], int]:
    """What a method amounts to, in the towers that it changes, in memory that does not grow with the images.

    Args:
      task: the method bound to classes.
      params: the frozen weights.
      learnables: as tuned.
      initial: as before training.
      batches: raw images `[B, R, R, 3]` uint8, and which of them count `[B]`; unused where the vision tower is as it
        was.

    Returns:
      `Amount` by tower, and the number of images.

    Raises:
      ClipbiasError: it amounts to no bias, or there is no image.
    """
    if reason := refusal(task, learnables):
        raise ClipbiasError(reason)
    towers, images = changed_towers(task, learnables), 0
    totals = text_moments(task, params, learnables, initial) if "text" in towers else {}
    for pixels, mask in batches if "vision" in towers else ():
        found = vision_moments(
            task.classifier, params, learnables, task.clip.preprocessing.normalize(pixels), jnp.asarray(mask)
        )
        totals, images = merge(totals, jax.device_get(found)), images + int(np.sum(mask))
    if "vision" in towers and not images:
        raise ClipbiasError("there is no image to measure on; give images of the training set.")
    return amounts_from(totals, task.clip.config), images
