"""What the writers share: the record of each one's own forward pass, checked against the NumPy reference."""

import numpy as np
import safetensors.numpy

from tests.reference import formats, numpy_clip, weights

EXPECTED = formats.FORMATS / "expected.safetensors"
ROUNDING = 5e-6  # of float32 in towers of two layers, relative to the largest number


def record(writer: str, settings: dict, images: np.ndarray, texts: np.ndarray) -> None:
    """Adds a writer's features, `[3, d]` each, to the expected outputs. Raises where the reference finds others."""
    inputs = formats.inputs(settings)
    state = weights.double(formats.state(settings))
    references = {
        "image_features": (images, numpy_clip.encode_image(state, settings, inputs["images"]).features),
        "text_features": (texts, numpy_clip.encode_text(state, settings, inputs["tokens"]).features),
    }
    outputs = safetensors.numpy.load_file(EXPECTED) if EXPECTED.exists() else {}
    outputs |= inputs
    for name, (theirs, reference) in references.items():
        difference = float(np.abs(theirs - reference).max() / np.abs(reference).max())
        print(f"{writer}: {name} equal the NumPy reference to {difference:.1e}")
        if difference > ROUNDING:
            raise AssertionError(f"{writer} computes other {name} than the NumPy reference.")
        outputs[f"{writer}.{name}"] = np.array(theirs, np.float32, order="C")
    safetensors.numpy.save_file(outputs, EXPECTED)


def report_sizes() -> None:
    """Prints every file and its size."""
    for path in sorted(formats.FORMATS.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size:8d} {path.relative_to(formats.FORMATS)}")
