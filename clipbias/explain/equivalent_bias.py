"""The equivalent bias of a method: what its blocks add on average, as one constant per layer.

With `F_l` the tuned block `l`, its bias included, and `f_l` the frozen one,

    c_l = mean over images of F_l(x) − f_l(x),

both on the tuned run's own input tokens `x`, which are all but *slots*: the positions that a method fills with learned
tokens. In the vision tower the frozen block sees input tokens alone. In the text tower it sees in the slots what the
reference run has there: the frozen model's run with the context that the method starts from, in which nothing is
replaced; where tokens are inserted, nothing. The mean there is over classes and tokens up to EOS, over all texts where
a class has several, and over images too where texts depend on them. Where an image has several passes it is over these.

It has two forms: one vector per layer, which bias tuning can learn; and two per layer, one for the pooled token and one
for all others. Only what acts inside the blocks is in it. A method may also change the pixels, the weights before the
first block and after the last, or the class features, or have a head of its own: `c_l` knows nothing of these.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip.layers import of_layers
from clipbias.clip.params import Params
from clipbias.constants import TOWERS
from clipbias.errors import ClipbiasError
from clipbias.explain.block_changes import (
    BlockSums,
    reference_adaptation,
    text_moments,
    text_moments_of_images,
    vision_moments,
)
from clipbias.explain.model import Model
from clipbias.explain.requests import Batch, Section, Step, SumRequest
from clipbias.explain.results import EquivalentBias
from clipbias.explain.statistics import Moments, Totals, merge
from clipbias.explain.study import Study
from clipbias.tuning import Learnables, Task
from clipbias.tuning.method import crops_of


def _bias_of(sums: BlockSums, tower: str) -> EquivalentBias:
    """Of a tower's differences by position, and at the pooled token."""
    pooled: Moments | None = sums.get(f"{tower}/pooled")
    count, mean = _count_and_mean(sums[f"{tower}/token"])
    samples = count.sum(1)
    total = (count[..., None] * mean).sum(1)
    pooled_count = np.zeros(len(count))
    pooled_mean = np.zeros_like(total)
    if pooled is not None:
        pooled_count, pooled_mean = _count_and_mean(pooled)
    others = total - pooled_count[:, None] * pooled_mean
    by_kind = np.stack([pooled_mean, _ratio(others, samples - pooled_count)], axis=1)
    if pooled is None:
        by_kind = by_kind[:, 1:]
    return EquivalentBias(vector=_ratio(total, samples).astype(np.float32), kind=by_kind.astype(np.float32))


def _count_and_mean(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(moments.count, np.float64), np.asarray(moments.mean, np.float64)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Means of sums `[L, D]` over counts `[L]`; 0 where nothing was counted."""
    return total / np.maximum(count, 1)[:, None]


def changed_towers(task: Task, learnables: Learnables) -> tuple[str, ...]:
    """The towers in whose blocks a method changes tokens or weights."""
    adaptation = jax.eval_shape(task.method.adapt, learnables)
    vision = (
        adaptation.vision_prompts,
        adaptation.vision_tokens,
        adaptation.vision_bias,
        adaptation.vision_adapters,
        of_layers(adaptation.vision_weights),
    )
    text = (
        adaptation.text_context,
        adaptation.text_prompts,
        adaptation.text_class_prompts,
        adaptation.text_tokens,
        adaptation.text_bias,
        adaptation.text_adapters,
        of_layers(adaptation.text_weights),
    )
    parts = {"vision": vision, "text": text}
    return tuple(name for name in TOWERS if any(leaf.size for leaf in jax.tree.leaves(parts[name])))


def why_no_equivalent_bias(task: Task, learnables: Learnables) -> str | None:
    """Why a method has no equivalent bias, in one sentence, or `None` where it does."""
    if not changed_towers(task, learnables):
        return "Neither tokens nor weights inside the towers' blocks are changed, so that there is no bias in them."
    return None


def needs_images(task: Task, learnables: Learnables) -> bool:
    """Whether the equivalent bias depends on images: where a method changes their tower, or they change its texts."""
    return "vision" in changed_towers(task, learnables) or task.method.conditional


def image_moments(
    task: Task,
    params: Params,
    learnables: Learnables,
    initial: Learnables,
    images: jax.Array,
    mask: jax.Array,
) -> BlockSums:
    """All that depends on normalised images `[B, R, R, 3]`, or on views of them where the method learns of crops."""
    towers = changed_towers(task, learnables)
    sums: BlockSums = {}
    if "vision" in towers:
        whole = images[:, 0] if images.ndim == 5 else images
        sums |= vision_moments(task.classifier, params, learnables, whole, mask)
    if "text" in towers and task.method.conditional:
        reference = reference_adaptation(task, initial)
        sums |= text_moments_of_images(
            task.classifier, params, learnables, reference, task.tokens, task.text, images, mask
        )
    return sums


def equivalent_biases(sums: BlockSums) -> dict[str, EquivalentBias]:
    """By tower, of the sums that `vision_moments` and `text_moments` give."""
    return {tower: _bias_of(sums, tower) for tower in TOWERS if f"{tower}/token" in sums}


def measure_equivalent_bias(
    task: Task,
    params: Params,
    learnables: Learnables,
    initial: Learnables,
    batches: Iterable[tuple[np.ndarray, np.ndarray]] = (),
) -> tuple[dict[str, EquivalentBias], int]:
    """Measures the equivalent bias in the towers that a method changes, in memory that does not grow with the images.

    Args:
      task: the method bound to classes.
      params: the frozen weights.
      learnables: as tuned.
      initial: as before training.
      batches: raw images `[B, R, R, 3]` uint8, and which of them count `[B]`; unused where the vision tower is as it
        was and no text depends on an image.

    Returns:
      `EquivalentBias` by tower, and the number of images.

    Raises:
      ClipbiasError: it has no equivalent bias, or there is no image.
    """
    if reason := why_no_equivalent_bias(task, learnables):
        raise ClipbiasError(f"{type(task.method).__name__} has no equivalent bias. {reason}")
    if crops_of(task.method):
        raise ClipbiasError(
            f"{type(task.method).__name__} learns of crops of each image, which are not made here, so its equivalent "
            "bias is not measured."
        )
    sums: BlockSums = {}
    if "text" in changed_towers(task, learnables) and not task.method.conditional:
        sums = text_moments(task, params, learnables, initial)
    if not needs_images(task, learnables):
        return equivalent_biases(sums), 0
    images = 0
    for raw, mask in batches:
        pixels = task.clip.preprocessing.normalize(raw)
        moments = image_moments(task, params, learnables, initial, pixels, jnp.asarray(mask))
        sums = merge(sums, jax.device_get(moments))
        images += int(np.sum(mask))
    if not images:
        raise ClipbiasError("there is no image to measure on; give images of the training set.")
    return equivalent_biases(sums), images


@dataclasses.dataclass(frozen=True)
class MeasuredBiases:
    """The equivalent bias of a study's model in each tower that it changes, and on how many training images."""

    towers: dict[str, EquivalentBias]
    training_images: int


def missing(study: Study, model: Model) -> str | None:
    """One sentence why there is nothing to measure of a study's model, or `None`."""
    if reason := why_no_equivalent_bias(model.task, model.learnables):
        return reason
    if not study.training and needs_images(model.task, model.learnables):
        return "The equivalent bias is measured on training images, and there are none."
    return None


def measure_equivalent_biases(study: Study, models: Sequence[Model]) -> Section[dict[str, MeasuredBiases]]:
    """By model of a study the equivalent bias, on the study's training images."""
    totals: dict[str, Totals] = {}
    requests: dict[str, SumRequest] = {}
    for model in models:
        task = model.task
        totals[model.key] = {}
        if "text" in changed_towers(task, model.learnables) and not task.method.conditional:
            learnables = study.learnables[model.key]
            totals[model.key] = text_moments(task, study.params, learnables, task.init(model.seed))
        if needs_images(task, model.learnables):
            requests[model.key] = SumRequest(
                f"equivalent-bias-{model.key}",
                f"{model.label}: equivalent bias",
                study.training_images,
                _measuring_step(study, model),
                split=study.training,
                crops=model.crops,
            )
    sums = yield list(requests.values())
    measured = {}
    for model in models:
        of_images = sums[requests[model.key].name] if model.key in requests else {}
        count = of_images["images"].samples if of_images else 0
        towers = equivalent_biases(totals[model.key] | of_images)
        measured[model.key] = MeasuredBiases(towers=towers, training_images=count)
    return measured


def _measuring_step(study: Study, model: Model) -> Step:
    learnables = study.learnables[model.key]
    initial = model.task.init(model.seed)

    def step(batch: Batch) -> dict[str, Any]:
        pixels = study.normalize(batch["images"])
        moments = image_moments(model.task, study.params, learnables, initial, pixels, batch["mask"])
        return moments | {"images": _moments(batch["mask"], batch["mask"])}

    return step


_moments = jax.jit(Moments.of)
