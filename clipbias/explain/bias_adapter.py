"""A constant in a method's place: the frozen model with its equivalent bias, as an adapter.

The frozen model reads what the method's texts are before training, so that nothing but the bias is added to it, and has
CLIP's own head.
"""

from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np

from clipbias.checks import check_choice, check_int
from clipbias.data import Split
from clipbias.data.pipeline import test_batches
from clipbias.data.transforms import Resizing
from clipbias.errors import ClipbiasError
from clipbias.explain.block_changes import reference_adaptation
from clipbias.explain.equivalent_bias import measure_equivalent_bias
from clipbias.explain.results import EquivalentBias
from clipbias.tuning import Learnables, Task, make_method
from clipbias.tuning.adapter import Adapter, make_adapter, start_seed

# What an adapter can hold, and the method that it is then one of.
METHODS = {"vector": "bias", "kind": "bias_by_kind"}
# Notes of an adapter that hold for its replacement, too.
_KEPT = ("dataset", "shots", "train_images", "images_per_class", "seed", "start_seed")


def equivalent_bias(
    task: Task,
    learnables: Learnables,
    images: np.ndarray | Split | Iterable[np.ndarray] | None,
    form: str,
    *,
    notes: Mapping[str, object],
    batch_size: int,
) -> Adapter:
    """The equivalent bias of a tuned method as an adapter, see `clipbias.equivalent_bias`."""
    check_choice("form", form, tuple(METHODS))
    check_int("batch_size", batch_size, lowest=1)
    initial = task.init(start_seed(notes))
    batches = raw_batches(images, task.clip.preprocessing.resizing, batch_size)
    biases, count = measure_equivalent_bias(task, task.clip.params, learnables, initial, batches)
    return as_bias_adapter(task, initial, biases, form, notes=notes, images=count)


def as_bias_adapter(
    task: Task,
    initial: Learnables,
    biases: Mapping[str, EquivalentBias],
    form: str,
    *,
    notes: Mapping[str, object],
    images: int,
) -> Adapter:
    """The measured bias of a tuned method as an adapter of bias tuning.

    Args:
      task: of the method, bound to its classes or others.
      initial: its learnables before training.
      biases: by tower.
      form: "vector" or "kind".
      notes: of the tuned adapter.
      images: how many were averaged over.

    Raises:
      ClipbiasError: the texts that the method starts from are not those of bias tuning.
    """
    method = make_method(METHODS[form], vision_tower="vision" in biases, text_tower="text" in biases)
    bias_task = Task(task.clip, method, task)
    _check_texts(task, initial, bias_task, task.method_name)
    source = {"method": task.method_name, "options": task.options(), "images": images}
    return make_adapter(
        bias_task,
        {f"{tower}_bias": getattr(bias, form) for tower, bias in biases.items()},
        notes={name: notes[name] for name in _KEPT if name in notes} | {"equivalent_bias": source},
    )


def _check_texts(task: Task, initial: Learnables, bias_task: Task, method: str) -> None:
    """Raises `ClipbiasError` unless the frozen model that the method starts from reads the texts of `bias_task`."""
    start = reference_adaptation(task, initial).text_context
    if start is not None:
        context, ids, rows = (np.asarray(x) for x in (start, task.tokens.ids, task.tokens.context_rows))
        texts, positions = np.nonzero(rows >= 0)
        at = rows[texts, positions]
        start_rows = context[at] if context.ndim == 2 else context[texts // (len(task.texts) // len(context)), at]
        words = np.asarray(task.clip.params["text"]["token_embedding"], np.float32)[ids[texts, positions]]
        if not np.array_equal(start_rows, words):
            raise ClipbiasError(
                f"{method!r} starts from a random context and not from words, so its equivalent bias cannot be added "
                "to a plain CLIP that reads words."
            )
    if not np.array_equal(task.tokens.ids, bias_task.tokens.ids):
        raise ClipbiasError(
            f"{method!r} starts from texts such as {task.texts[0]!r}, and {METHODS['vector']!r} always reads "
            f"{bias_task.texts[0]!r}, so its equivalent bias cannot be an adapter of that method."
        )


def raw_batches(
    images: np.ndarray | Split | Iterable[np.ndarray] | None, resizing: Resizing, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches uint8 `[B, R, R, 3]`, all of one size, and which of their images there are `[B]`."""
    if isinstance(images, Split):
        for batch in test_batches(images, resizing=resizing, batch_size=min(batch_size, max(len(images), 1))):
            yield batch["images"], batch["mask"]
        return
    if images is None:
        return
    size = resizing.side
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
