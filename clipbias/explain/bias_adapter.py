"""A constant in a method's place: the frozen model with its equivalent bias, as an adapter.

The frozen model reads what the method's texts are before training, so that nothing but the bias is added to it, and has
CLIP's own head.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np

from clipbias.checks import check_choice, check_int
from clipbias.clip import Clip, load
from clipbias.constants import TOWERS
from clipbias.data import Split
from clipbias.data.pipeline import test_batches
from clipbias.errors import ClipbiasError
from clipbias.explain.equivalent_bias import EquivalentBias, measure_equivalent_bias, reference_adaptation
from clipbias.tuning import Learnables, Task, make_method
from clipbias.tuning.adapter import Adapter, load_adapter

# What an adapter can hold, and the method that it is then one of.
METHODS = {"vector": "bias", "kind": "bias_by_kind"}
# Notes of an adapter that hold for its replacement, too.
_KEPT = ("dataset", "shots", "seed")


def equivalent_bias(
    adapter: Adapter | str | os.PathLike,
    images: np.ndarray | Split | Iterable[np.ndarray] | None,
    kind: str = "vector",
    *,
    clip: Clip | None = None,
    own_methods: Sequence[str] = (),
    batch_size: int = 32,
) -> Adapter:
    """The equivalent bias of a tuned method as an adapter: saved, loaded, folded and exported as any other.

    It is the frozen model with `c_l` after every block `l` (see `explain.equivalent_bias`): the mean over images of the
    tuned block's output minus the frozen block's on the same tokens. Changes outside the blocks are not in it: pixels,
    embeddings, the LayerNorms before and after, projections, class features, a head of the method's own.

    Args:
      adapter: of any method that changes tokens or weights inside the blocks; or where `load_adapter` finds one.
      images: to average over, of the training set, never of the test set: raw pixels uint8 `[n, R, R, 3]`, several such
        arrays one after another, or a `Split`. `None` will do where the method leaves the vision tower as it is.
      kind: "vector", one per layer, makes an adapter of bias tuning (method "bias"); "kind", one for `[cls]` and one
        for patches, one for EOS and one for the other tokens of a text, one of "bias_by_kind".
      clip: the model that the adapter was trained on; loaded where it is `None`.
      own_methods: files or modules that an adapter of a method of one's own may take it from.
      batch_size: images at a time.

    Returns:
      An adapter for the same classes. Its notes tell what it was made of.

    Raises:
      ClipbiasError: the method's texts depend on the image, it changes nothing inside the blocks, the texts that it
        starts from are not those of bias tuning, or the images are not what the model takes.
    """
    check_choice("kind", kind, tuple(METHODS))
    check_int("batch_size", batch_size, lowest=1)
    adapter = adapter if isinstance(adapter, Adapter) else load_adapter(adapter)
    clip = load(adapter.base) if clip is None else clip
    task, learnables = adapter.bind(clip, own_methods=own_methods)
    initial = task.init(int(adapter.notes.get("seed") or 0))
    batches = raw_batches(images, clip.preprocessing.side, batch_size)
    biases, count = measure_equivalent_bias(task, clip.params, learnables, initial, batches)
    return as_bias_adapter(adapter, task, initial, biases, kind, images=count)


def as_bias_adapter(
    adapter: Adapter, task: Task, initial: Learnables, biases: Mapping[str, EquivalentBias], kind: str, *, images: int
) -> Adapter:
    """What was measured of an adapter's method, as one of bias tuning.

    Args:
      adapter: the tuned one.
      task: of its method, bound to its classes or others.
      initial: its learnables before training.
      biases: by tower.
      kind: "vector" or "kind".
      images: how many were averaged over.

    Raises:
      ClipbiasError: the texts that the method starts from are not those of bias tuning.
    """
    method = make_method(METHODS[kind], **{f"{tower}_tower": tower in biases for tower in TOWERS})
    own = Task(task.clip, method, task.class_names, template=task.template, descriptions=adapter.descriptions)
    _check_texts(task, initial, own, adapter.method)
    notes = {name: adapter.notes[name] for name in _KEPT if name in adapter.notes}
    made_of = {"method": adapter.method, "options": dict(adapter.options), "images": images}
    return dataclasses.replace(
        adapter,
        learnables={f"{tower}_bias": getattr(bias, kind) for tower, bias in biases.items()},
        method=METHODS[kind],
        options=own.options(),
        class_names=own.class_names,
        descriptions=own.descriptions,
        notes={**notes, "equivalent_bias": made_of},
    )


def _check_texts(task: Task, initial: Learnables, own: Task, method: str) -> None:
    """Raises `ClipbiasError` unless the frozen model that the method starts from reads the texts of `own`."""
    start = reference_adaptation(task, initial).text_context
    if start is not None:
        context, ids, rows = (np.asarray(x) for x in (start, task.tokens.ids, task.tokens.context_rows))
        texts, positions = np.nonzero(rows >= 0)
        at = rows[texts, positions]
        found = context[at] if context.ndim == 2 else context[texts // (len(task.texts) // len(context)), at]
        words = np.asarray(task.clip.params["text"]["token_embedding"], np.float32)[ids[texts, positions]]
        if not np.array_equal(found, words):
            raise ClipbiasError(
                f"{method!r} starts from a random context and not from words, so its equivalent bias cannot be added "
                "to a plain CLIP that reads words."
            )
    if not np.array_equal(task.tokens.ids, own.tokens.ids):
        raise ClipbiasError(
            f"{method!r} starts from texts such as {task.texts[0]!r}, and {METHODS['vector']!r} always reads "
            f"{own.texts[0]!r}, so its equivalent bias cannot be an adapter of that method."
        )


def raw_batches(
    images: np.ndarray | Split | Iterable[np.ndarray] | None, size: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches uint8 `[B, R, R, 3]`, all of one size, and which of their images there are `[B]`."""
    if isinstance(images, Split):
        for batch in test_batches(images, image_size=size, batch_size=min(batch_size, max(len(images), 1))):
            yield batch["images"], batch["mask"]
        return
    if images is None:
        return
    single = isinstance(images, np.ndarray | jax.Array)
    for array in [images] if single else images:
        pixels = np.asarray(array)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
            raise ClipbiasError(
                f"images are {pixels.dtype} {pixels.shape}; give raw pixels, uint8 [n, {size}, {size}, 3], as this "
                "model takes them."
            )
        rows = min(batch_size, max(len(pixels), 1)) if single else batch_size
        for start in range(0, len(pixels), rows):
            chunk = pixels[start : start + rows]
            missing = rows - len(chunk)
            yield np.pad(chunk, ((0, missing), (0, 0), (0, 0), (0, 0))), np.arange(rows) < len(chunk)
