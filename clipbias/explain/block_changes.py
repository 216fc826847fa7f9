"""What tuned blocks add to frozen ones, on the same input tokens: moments over tokens, layer by layer.

`equivalent_bias` says which tokens count, and what the frozen block sees in the slots.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, TextTokens, tower
from clipbias.clip.block import LayerInput, Record, run_block
from clipbias.clip.config import ClipConfig, TowerConfig
from clipbias.clip.layers import INPUT
from clipbias.clip.params import Params
from clipbias.clip.text import embed_text
from clipbias.clip.vision import embed_image
from clipbias.explain.statistics import Moments, merge
from clipbias.explain.targets import by_pass, of_texts
from clipbias.tuning import Classifier, Learnables, Task
from clipbias.tuning.task import Text

# Sums over tokens by name: of one tower ("token", "pooled"), or of both ("vision/token", …).
BlockSums = dict[str, Moments]
# Texts that run at once: a tower's tokens of all layers are held for them.
_TEXTS_AT_ONCE = 128


def reference_adaptation(task: Task, initial: Learnables) -> Adaptation:
    """What the reference run is given: the context that the method starts from, and nothing else."""
    return Adaptation(text_context=task.method.adapt(initial).text_context)


@jax.jit(static_argnums=0)
def vision_moments(
    classifier: Classifier, params: Params, learnables: Learnables, images: jax.Array, mask: jax.Array
) -> BlockSums:
    """Of normalised images `[B, R, R, 3]`, counting where `mask [B]` is true; computed in float32 always.

    Returns:
      "vision/token" (`count [L, 1 + M]`) and "vision/pooled" (`count [L]`), the latter not for a pooling head.
    """
    config: ClipConfig = classifier.config
    with jax.default_matmul_precision("highest"):
        counted = jnp.broadcast_to(mask[:, None], (images.shape[0], config.vision.tokens))
        sums = [
            _sum_changes(embed_image(params, config, images, adaptation), config.vision, counted)
            for adaptation in by_pass(classifier.method.adapt(learnables))
        ]
        return _joined("vision", jax.tree.map(lambda *leaves: jnp.stack(leaves), *sums))


def _joined(tower: str, stacked: BlockSums) -> BlockSums:
    """Sums of several runs, stacked, as one, by the names of a tower."""
    return {f"{tower}/{name}": sums.joined() for name, sums in stacked.items()}


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
) -> BlockSums:
    adaptation = of_texts(classifier.method.adapt(learnables), texts, count)
    initial = of_texts(reference, texts, count)
    with jax.default_matmul_precision("highest"):
        sums = _sum_text_changes(params, classifier.config, adaptation, initial, tokens, mask)
        return {f"text/{name}": moments for name, moments in sums.items()}


@jax.jit(static_argnums=0)
def text_moments_of_images(
    classifier: Classifier,
    params: Params,
    learnables: Learnables,
    reference: Adaptation,
    tokens: TextTokens,
    text: Text,
    images: jax.Array,
    mask: jax.Array,
) -> BlockSums:
    """`text_moments` where texts depend on the images, `[B, R, R, 3]` or views of them, of which `mask [B]` count.

    The text tower takes one image after another.
    """
    config = classifier.config
    with jax.default_matmul_precision("highest"):
        features = classifier.encode_images(params, classifier.method.adapt(learnables), images)

        def sum_of_image(inputs: tuple[jax.Array, jax.Array]) -> BlockSums:
            feature, is_counted = inputs
            adaptation = classifier.adaptation_for(params, learnables, feature, text)
            counted_texts = jnp.broadcast_to(is_counted, tokens.ids.shape[:1])
            return _sum_text_changes(params, config, adaptation, reference, tokens, counted_texts)

        return _joined("text", jax.lax.map(sum_of_image, (features, mask)))


def _sum_text_changes(
    params: Params,
    config: ClipConfig,
    adaptation: Adaptation,
    reference: Adaptation,
    tokens: TextTokens,
    mask: jax.Array,
) -> BlockSums:
    """Of texts `[C, N]` whose contexts the adaptations hold, counting where `mask [C]` is true."""
    run = embed_text(params, config, tokens, adaptation)
    counted = tokens.counted & mask[:, None]
    if adaptation.text_context is None and adaptation.text_prompts is None:
        return _sum_changes(run, config.text, counted)
    slots = jnp.asarray(tokens.context_rows) >= 0
    words = embed_text(params, config, tokens, reference).tokens
    return _sum_changes(run, config.text, counted & ~slots, slots, words)


def text_moments(task: Task, params: Params, learnables: Learnables, initial: Learnables) -> BlockSums:
    """Of all the task's texts: "text/token" (`count [L, N]`, `N` the longest text) and "text/pooled".

    Args:
      task: the method bound to classes.
      params: the frozen weights.
      learnables: as tuned.
      initial: as before training.
    """
    reference = reference_adaptation(task, initial)
    count = len(task.tokens.ids)
    size = min(count, _TEXTS_AT_ONCE)
    sums: BlockSums = {}
    for start in range(0, count, size):
        numbers = np.arange(start, start + size)
        texts = np.minimum(numbers, count - 1)
        tokens: TextTokens = jax.tree.map(lambda x, texts=texts: np.asarray(x)[texts], task.tokens)
        moments = _text_moments(
            task.classifier, count, params, learnables, reference, tokens, texts, mask=numbers < count
        )
        sums = merge(sums, jax.device_get(moments))
    return sums


def _sum_changes(
    run: tower.TowerInput,
    config: TowerConfig,
    counted: jax.Array,
    slots: jax.Array | None = None,
    words: jax.Array | None = None,
) -> BlockSums:
    """Runs the tuned tower, and each frozen block on the same input tokens; sums up their differences layer by layer.

    Args:
      run: the tuned tower up to its first block.
      config: of the tower.
      counted: `[B, N']`: which of the first `N'` tokens count. The others are slots, or of no influence.
      slots: `[B, N]`: which tokens are slots, where they stand among the first `N'`.
      words: `[B, N, D]`: tokens of the reference run at the first block's input, which stand in the slots.
    """
    length = counted.shape[1]

    def step(
        stage: tower.TowerInput,
        places: np.ndarray,
        carry: tuple[jax.Array, jax.Array | None],
        scanned: tuple[LayerInput, None],
    ) -> tuple[tuple[jax.Array, jax.Array | None], BlockSums]:
        tokens, words = carry
        layer, _ = scanned
        frozen = dataclasses.replace(layer, prompts=None, bias=None, changes=None, adapters=None)
        seen = Record()
        hooks = stage.hooks(stage.attend_fused)
        tokens = run_block(tokens, layer, config, dataclasses.replace(hooks, keep=seen))
        inputs = seen[INPUT][:, places[:length]]
        if words is not None and slots is not None:
            inputs = jnp.where(slots[..., None], words, inputs)
        change = tokens[:, places[:length]] - run_block(inputs, frozen, config, hooks)
        if words is not None:
            words = run_block(words, frozen, config, hooks)
        sums: BlockSums = {"token": Moments.of(change, counted)}
        if run.pooled is not None:
            sums["pooled"] = Moments.of(tower.take_rows(change, run.pooled), counted.any(1))
        return (tokens, words), sums

    return tower.scan_blocks(run, step, (run.tokens, words), None)[2]
