"""The equivalent bias of a method: the mean of what its blocks add, as a constant per layer.

With `F_l` the tuned block `l`, its bias included, and `f_l` the frozen block,

    c_l = mean over images of F_l(x) − f_l(x),

both on the tuned run's input tokens `x`: all tokens but *slots*, the positions that a method fills with learned tokens.
The mean over texts takes classes, all their texts, tokens up to EOS, and images where texts depend on them.

The bias has two forms: one vector per layer, as in bias tuning; or two, for the pooled token and for all others. It
holds only what acts inside the blocks: not changes of pixels, of weights before the first or behind the last block, of
class features, or of the head.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.analysis.model import Model, additions, by_pass, of_texts, starts_from_words, sum_over_texts
from clipbias.analysis.statistics import Moments, Totals, merge
from clipbias.analysis.study import Batch, Computation, Request, Study, for_each
from clipbias.checks import check_choice
from clipbias.clip import Adaptation, TextTokens, tower
from clipbias.clip.block import LayerInput, Record, run_block
from clipbias.clip.config import ClipConfig, TowerConfig
from clipbias.clip.encode import as_images, image_batches
from clipbias.clip.layers import INPUT, of_layers
from clipbias.clip.params import Params
from clipbias.clip.text import embed_text
from clipbias.clip.vision import embed_image
from clipbias.constants import TOWERS
from clipbias.data import Split
from clipbias.data.user_images import Pictures
from clipbias.errors import ClipbiasError
from clipbias.identity import identity
from clipbias.tuning import Classifier, Learnables, Task, make_method
from clipbias.tuning.adapter import start_seed
from clipbias.tuning.method import crops_of
from clipbias.tuning.task import Text
from clipbias.tuning.tuned import Tuned


@dataclasses.dataclass(frozen=True)
class EquivalentBias:
    """Equivalent bias of one tower in its two forms, float32."""

    vector: np.ndarray  # `[L, D]`, over all input tokens
    kind: np.ndarray  # `[L, 2, D]`: pooled token (`[cls]`, EOS), all other inputs; `[L, 1, D]` under a pooling head


# Texts that run at once: a tower's tokens of all layers are held for them.
_TEXTS_AT_ONCE = 128


def reference_adaptation(task: Task, initial: Learnables) -> Adaptation:
    """Returns the adaptation of the reference run: the context that training started from, and nothing else."""
    return Adaptation(text_context=task.method.adapt(initial).text_context)


@jax.jit(static_argnums=0)
def vision_moments(
    classifier: Classifier, params: Params, learnables: Learnables, images: jax.Array, mask: jax.Array
) -> Totals:
    """Sums up block changes over normalised images `[B, R, R, 3]` where `mask [B]` is true; always in float32.

    Returns "vision/token" (`count [L, 1 + M]`) and, without a pooling head, "vision/pooled" (`count [L]`).
    """
    config: ClipConfig = classifier.config
    # A change is the difference of two nearly equal outputs: reduced precision would leave mostly rounding.
    with jax.default_matmul_precision("highest"):
        counted = jnp.broadcast_to(mask[:, None], (images.shape[0], config.vision.tokens))
        sums = [
            _sum_changes(embed_image(params, config, images, adaptation), config.vision, counted)
            for adaptation in by_pass(classifier.method.adapt(learnables))
        ]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sums)
        return {f"vision/{name}": moments.joined() for name, moments in stacked.items()}


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
) -> Totals:
    """Sums up block changes of texts that depend on images, `[B, R, R, 3]` or views of them, where `mask [B]`."""
    config = classifier.config
    with jax.default_matmul_precision("highest"):
        features = classifier.encode_images(params, classifier.method.adapt(learnables), images)

        def sum_of_image(inputs: tuple[jax.Array, jax.Array]) -> Totals:
            feature, is_counted = inputs
            adaptation = classifier.adaptation_for(params, learnables, feature, text)
            counted_texts = jnp.broadcast_to(is_counted, tokens.ids.shape[:1])
            return _sum_text_changes(params, config, adaptation, reference, tokens, counted_texts)

        # One image after another: each has texts of its own for all classes, which do not fit for a whole batch.
        stacked = jax.lax.map(sum_of_image, (features, mask))
        return {f"text/{name}": moments.joined() for name, moments in stacked.items()}


def _sum_text_changes(
    params: Params,
    config: ClipConfig,
    adaptation: Adaptation,
    reference: Adaptation,
    tokens: TextTokens,
    mask: jax.Array,
) -> Totals:
    """Sums up block changes of texts `[C, N]` where `mask [C]` is true."""
    run = embed_text(params, config, tokens, adaptation)
    counted = tokens.counted & mask[:, None]
    if adaptation.text_context is None and adaptation.text_prompts is None:
        return _sum_changes(run, config.text, counted)
    slots = jnp.asarray(tokens.context_rows) >= 0
    words = embed_text(params, config, tokens, reference).tokens
    return _sum_changes(run, config.text, counted & ~slots, slots, words)


def text_moments(task: Task, params: Params, learnables: Learnables, initial: Learnables) -> Totals:
    """Sums up block changes of all the task's texts: "text/token" (`count [L, N]`) and "text/pooled".

    Empty where the text tower is unchanged, or texts depend on images. `initial`: learnables before training.
    """
    if "text" not in changed_towers(task) or task.method.conditional:
        return {}
    reference = reference_adaptation(task, initial)
    sums = functools.partial(_text_moments, task.classifier, len(task.tokens.ids), params, learnables, reference)
    return sum_over_texts(task.tokens, _TEXTS_AT_ONCE, sums)


def _sum_changes(
    run: tower.TowerInput,
    config: TowerConfig,
    counted: jax.Array,
    slots: jax.Array | None = None,
    words: jax.Array | None = None,
) -> Totals:
    """Sums up tuned less frozen blocks on the tuned run's inputs, where `counted [B, N']` is true, layer by layer."""
    # At `slots [B, N]` frozen blocks get `words [B, N, D]`, tokens of the reference run.
    length = counted.shape[1]

    def step(
        stage: tower.TowerInput, places: np.ndarray, carry: tuple[jax.Array, jax.Array | None], layer: LayerInput
    ) -> tuple[tuple[jax.Array, jax.Array | None], Totals]:
        tokens, words = carry
        frozen = dataclasses.replace(layer, prompts=None, bias=None, changes=None, adapters=None)
        seen = Record()
        hooks = stage.hooks(stage.attend_fused)
        tokens = run_block(tokens, layer, config, dataclasses.replace(hooks, tap=seen))
        # The block's input holds the prompts of this layer: `places` are the positions of all other tokens.
        inputs = seen[INPUT][:, places[:length]]
        if words is not None and slots is not None:
            # A frozen text block needs something in the slots: the words of the reference run. An image block does not.
            inputs = jnp.where(slots[..., None], words, inputs)
        # The frozen block runs on the tuned run's tokens, not on its own: differences of layers before are not in
        # `c_l`.
        change = tokens[:, places[:length]] - run_block(inputs, frozen, config, hooks)
        # The reference run advances beside the tuned one, so that each layer's slots get its tokens of that layer.
        if words is not None:
            words = run_block(words, frozen, config, hooks)
        sums: Totals = {"token": Moments.of(change, counted)}
        if run.pooled is not None:
            # The pooled token counts in a sample if any token does: a padded sample has none.
            sums["pooled"] = Moments.of(tower.take_rows(change, run.pooled), counted.any(1))
        return (tokens, words), sums

    return tower.scan_blocks(run, step, (run.tokens, words))


def equivalent_biases(sums: Totals) -> dict[str, EquivalentBias]:
    """Averages the sums of `vision_moments` and `text_moments` to the biases of each tower."""

    def count_and_mean(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(moments.count, np.float64), np.asarray(moments.mean, np.float64)

    def ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
        # A count of 0, where nothing but the pooled token counts, gives 0: NaN would spread through the adapter.
        return (total / np.maximum(count, 1)[:, None]).astype(np.float32)

    biases = {}
    for name in TOWERS:
        if f"{name}/token" in sums:
            count, mean = count_and_mean(sums[f"{name}/token"])
            # Sums in float64: "all others" is a difference of two sums, in which float32 would lose digits.
            total, count = (count[..., None] * mean).sum(1), count.sum(1)
            vector = ratio(total, count)
            kinds = [vector]  # a pooling head reads all tokens
            if f"{name}/pooled" in sums:
                of_pooled, pooled = count_and_mean(sums[f"{name}/pooled"])
                others = ratio(total - of_pooled[:, None] * pooled, count - of_pooled)
                # The pooled token is a small part of all tokens, and its mean comes from its own sum, not from a
                # difference.
                kinds = [pooled.astype(np.float32), others]
            biases[name] = EquivalentBias(vector=vector, kind=np.stack(kinds, axis=1))
    return biases


def changed_towers(task: Task) -> tuple[str, ...]:
    """Returns the towers in whose blocks a method changes tokens or weights; without any it has no equivalent bias."""
    adaptation = additions(task)
    names = ("context", "prompts", "class_prompts", "tokens", "bias", "adapters")
    towers = []
    for tower_name in TOWERS:
        parts = [getattr(adaptation, f"{tower_name}_{name}", None) for name in names]
        parts.append(of_layers(getattr(adaptation, f"{tower_name}_weights")))
        # A part of size 0, such as prompts of depth 0, changes nothing.
        if any(leaf.size for leaf in jax.tree.leaves(parts)):
            towers.append(tower_name)
    return tuple(towers)


def needs_images(task: Task) -> bool:
    """Whether the equivalent bias depends on images, through the vision tower or through texts."""
    return "vision" in changed_towers(task) or task.method.conditional


def image_moments(
    task: Task, params: Params, learnables: Learnables, initial: Learnables, images: jax.Array, mask: jax.Array
) -> Totals:
    """Sums up block changes over normalised images `[B, R, R, 3]`, or views `[B, 1 + V, R, R, 3]` of them."""
    towers = changed_towers(task)
    sums: Totals = {}
    if "vision" in towers:
        whole = images[:, 0] if images.ndim == 5 else images
        sums |= vision_moments(task.classifier, params, learnables, whole, mask)
    if "text" in towers and task.method.conditional:
        reference = reference_adaptation(task, initial)
        sums |= text_moments_of_images(
            task.classifier, params, learnables, reference, task.tokens, task.text, images, mask
        )
    return sums


def measure_equivalent_bias(
    task: Task,
    params: Params,
    learnables: Learnables,
    initial: Learnables,
    batches: Iterable[tuple[np.ndarray, np.ndarray]] = (),
) -> tuple[dict[str, EquivalentBias], int]:
    """Measures the equivalent bias in the towers that a method changes; returns it by tower, and the number of images.

    `initial` are the learnables before training. `batches` are pairs of images `[B, R, R, 3]`, raw (uint8) or
    normalised, and a mask `[B]`, unused where the bias does not depend on images. Raises `ClipbiasError` if the method
    has no equivalent bias, or there is no image.
    """
    if not changed_towers(task):
        raise ClipbiasError(
            f"{type(task.method).__name__} has no equivalent bias: it changes no token and no weight inside the blocks."
        )
    if crops_of(task.method):
        raise ClipbiasError(
            f"{type(task.method).__name__} learns from crops of each image, so its equivalent bias cannot be measured."
        )
    # Texts first: they do not depend on images, so a method of the text tower alone never reads one.
    sums = text_moments(task, params, learnables, initial)
    if not needs_images(task):
        return equivalent_biases(sums), 0
    images = 0
    for batch, mask in batches:
        pixels = task.clip.preprocessing.normalize(batch) if batch.dtype == np.uint8 else jnp.asarray(batch)
        # Sums leave the device batch by batch and are joined on the host in float64.
        sums = merge(sums, jax.device_get(image_moments(task, params, learnables, initial, pixels, jnp.asarray(mask))))
        images += int(np.sum(mask))
    if not images:
        raise ClipbiasError("there is no image to measure on; give images of the training set.")
    return equivalent_biases(sums), images


def measure_equivalent_biases(
    study: Study, models: Sequence[Model]
) -> Computation[dict[str, dict[str, EquivalentBias]]]:
    """Measures equivalent biases on the study's training images, by model key and tower, where there are any."""

    totals: dict[str, Totals] = {}
    for model in models:
        if changed_towers(model.task) and (study.training or not needs_images(model.task)):
            initial = model.task.init(model.seed)
            totals[model.key] = text_moments(model.task, study.params, study.learnables[model.key], initial)

    def request_of(model: Model) -> Request:
        initial = model.task.init(model.seed)

        def step(batch: Batch) -> Totals:
            pixels = study.normalize(batch["images"])
            return image_moments(model.task, study.params, study.learnables[model.key], initial, pixels, batch["mask"])

        name, title = f"equivalent-bias-{model.key}", f"{model.label}: equivalent bias"
        return Request(name, title, study.training_images, step, split=study.training, crops=model.crops)

    seeing = [model for model in models if model.key in totals and needs_images(model.task)]
    for key, sums in (yield from for_each(seeing, request_of)).items():
        totals[key] |= sums
    return {key: equivalent_biases(of_model) for key, of_model in totals.items()}


# Methods that can hold the bias, by its form.
METHOD_OF_FORM = {"vector": "bias", "kind": "bias_by_kind"}
# Notes of a model that hold for its equivalent bias too.
_KEPT = ("dataset", "data", "shots", "train_images", "images_per_class", "seed", "start_seed")


def equivalent_bias(model: Tuned, images: Pictures | Split | None, form: str, *, batch_size: int) -> Tuned:
    """Makes an adapter of a model's equivalent bias; see `clipbias.equivalent_bias`."""
    check_choice("form", form, tuple(METHOD_OF_FORM))
    task, notes = model.task, model.notes
    initial = task.init(start_seed(notes))
    # A generator can be read only once.
    images = None if images is None else as_images(images)
    batches = () if images is None else image_batches(task.clip.preprocessing, images, batch_size)
    biases, count = measure_equivalent_bias(task, task.clip.params, model.learnables, initial, batches)
    method = make_method(METHOD_OF_FORM[form], vision_tower="vision" in biases, text_tower="text" in biases)
    bias_task = task.with_method(method)
    # The adapter is CLIP's head and the texts that the method starts from, so that nothing but the bias differs from
    # CLIP. Added to other texts, it would not be this method's bias.
    _check_texts(task, initial, bias_task, task.method_name)
    source = {"method": task.method_name, "options": task.options(), "images": count}
    kept = {name: notes[name] for name in _KEPT if name in notes} | {"equivalent_bias": source}
    # Another identity than the model's own training: a study may not take the bias for a seed of the method, nor
    # biases that were measured on other images for seeds of each other.
    kept["training"] = identity(["equivalent bias", form, notes.get("training"), images if count else None])
    return Tuned(bias_task, {f"{tower}_bias": getattr(bias, form) for tower, bias in biases.items()}, kept)


def _check_texts(task: Task, initial: Learnables, bias_task: Task, method: str) -> None:
    """Raises `ClipbiasError` unless the method starts from the texts of `bias_task`."""
    if not starts_from_words(task, initial):
        raise ClipbiasError(
            f"{method!r} starts from a random context and not from words, so its equivalent bias cannot be added "
            "to a plain CLIP that reads words."
        )
    if not np.array_equal(task.tokens.ids, bias_task.tokens.ids):
        raise ClipbiasError(
            f"{method!r} starts from texts such as {task.texts[0]!r}, and {METHOD_OF_FORM['vector']!r} always reads "
            f"{bias_task.texts[0]!r}, so its equivalent bias cannot be an adapter of that method."
        )
