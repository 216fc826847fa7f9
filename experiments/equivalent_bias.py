"""Saves the bias that is equivalent to a tuned adapter, as a study measured it, as an adapter of its own."""

from pathlib import Path

from clipbias.errors import ClipbiasError
from clipbias.explain.bias_adapter import METHODS, as_bias_adapter
from clipbias.explain.conclusions import keeps
from clipbias.explain.model import Model
from clipbias.explain.results import StudyResults
from clipbias.training.progress import say
from clipbias.tuning.adapter import Adapter, write_adapter
from experiments import common

FOLDER = "equivalent_bias"
WORDS = {"vector": "a bias of one vector per layer", "kind": "a bias of two vectors per layer"}


def save_equivalent_biases(results: StudyResults, model: Model, adapter: Adapter, folder: Path) -> None:
    """Writes `equivalent_bias/<key>-vector.safetensors` and `…-kind.safetensors`, and prints what each keeps.

    Prints one line where a method has no equivalent bias.

    Args:
      results: of a study with the section `constants`.
      model: the tuned model in the study.
      adapter: the model's adapter.
      folder: of the study.
    """
    test = results.constant_test(model.key)
    if test is None:
        say(f"{model.label}: no equivalent bias is saved. {results.why_missing('constants')[model.key]}")
        return
    initial = model.task.init(model.seed)
    try:
        for kind in METHODS:
            bias = as_bias_adapter(
                model.task, initial, test.biases, kind, notes=adapter.notes, images=test.training_images
            )
            write_adapter(folder / FOLDER / f"{model.key}-{kind}.safetensors", bias)
            common.tell(f"{model.label} as {WORDS[kind]}: {keeps(test.summary, kind)}.")
    except ClipbiasError as error:
        say(f"{model.label}: no equivalent bias is saved. {error}")
