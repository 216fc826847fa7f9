"""A tuned classifier as an ONNX file, for programs without Python: images in, logits out.

It is the function of `program.py` with its weights as constants, and is checked: ONNX Runtime must give JAX's logits.
"""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np

from clipbias.data import demo
from clipbias.data.pipeline import test_batches
from clipbias.errors import ClipbiasError, sentence
from clipbias.export.program import classify, describe, program_weights
from clipbias.io import atomic_path, write_text
from clipbias.tuning import Learnables, Task

CLASSIFIER = "classifier.onnx"
LABELS = "labels.json"
ONNX_PACKAGES = ("onnx", "onnxruntime")
# Largest allowed difference between logits of ONNX Runtime and JAX, relative to the largest logit.
TOLERANCE = 1e-4
# An ONNX file is a protocol buffer, which holds less than 2 GiB.
MOST_BYTES = 2**31 - 2**20
# Pictures of the check.
CHECKED = 16


def write_onnx(folder: Path, task: Task, learnables: Learnables) -> None:
    """Writes the classifier and `labels.json`. Raises `ClipbiasError` if it cannot be converted or differs from JAX."""
    if missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]:
        raise ClipbiasError(f"an ONNX file needs {', '.join(missing)}; install them: pip install 'clipbias[onnx]'.")
    weights = program_weights(task, learnables)
    # Before the conversion, which takes minutes for a large model.
    if (size := sum(weight.nbytes for weight in weights.values())) > MOST_BYTES:
        raise ClipbiasError(
            f"the weights have {size / 1e9:.1f} GB, and an ONNX file holds at most 2; export the adapter as a program."
        )
    # Written to a temporary name and renamed, so that a file that fails the check below is removed with its folder.
    content = convert(task, weights)
    with atomic_path(folder / CLASSIFIER) as temporary:
        temporary.write_bytes(content)
    # A converter may be wrong for one operation, and a runtime for one device: only numbers prove the file.
    difference, scale = compare(content, task, learnables)
    if not difference <= TOLERANCE * scale:
        raise ClipbiasError(
            f"ONNX Runtime's logits differ from JAX's by {difference:.2g} where they reach {scale:.3g}; nothing was "
            "written. Export the adapter as a program."
        )
    check = {"pictures": CHECKED, "largest_difference": difference, "largest_logit": scale}
    write_text(folder / LABELS, json.dumps({**describe(task), "check": check}, indent=2) + "\n")


def convert(task: Task, weights: dict[str, np.ndarray]) -> bytes:
    """Returns the ONNX file: `images` uint8 `[B, R, R, 3]` to `logits` float32 `[B, C]` for every batch size `B`."""
    from clipbias.export.jaxpr_to_onnx import to_onnx  # its packages are an extra

    size = task.clip.config.vision.image_size
    try:
        return to_onnx(functools.partial(classify, task, weights), (size, size, 3)).SerializeToString()
    except Exception as error:  # a method of a user's may compute anything
        reason = str(error) if isinstance(error, NotImplementedError) else sentence(error)
        raise ClipbiasError(
            f"{task.method_name!r} cannot become an ONNX file: {reason}; export it as a program."
        ) from error


def compare(content: bytes, task: Task, learnables: Learnables) -> tuple[float, float]:
    """Returns the largest difference of ONNX Runtime's logits to JAX's on real pictures, and JAX's largest logit."""
    # All pictures together and one alone, since both batch sizes must work.
    import onnxruntime

    split = demo.load("demo/emoji").split("test")
    places = np.linspace(0, len(split) - 1, CHECKED).astype(int)
    (batch,) = test_batches(split.subset(places), resizing=task.clip.preprocessing.resizing, batch_size=CHECKED)
    images = np.asarray(batch["images"])
    normalised = task.clip.preprocessing.normalize(images)
    expected = np.asarray(jax.jit(task.logits)(task.clip.params, learnables, normalised))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    whole, first = (session.run(["logits"], {"images": part})[0] for part in (images, images[:1]))
    difference = max(np.abs(whole - expected).max(), np.abs(first - expected[:1]).max())
    return float(difference), float(np.abs(expected).max())
