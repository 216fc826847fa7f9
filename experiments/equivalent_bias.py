"""Saves the bias that is equivalent to a tuned adapter, as a study measured it, as an adapter of its own."""

from pathlib import Path

import numpy as np

from clipbias.constants import TOWERS
from clipbias.errors import ClipbiasError
from clipbias.explain.bias_adapter import METHODS, as_bias_adapter
from clipbias.explain.conclusions import no_gain, percent
from clipbias.explain.effects import OUTCOME_NAMES
from clipbias.explain.equivalent_bias import EquivalentBias
from clipbias.explain.model import Model
from clipbias.explain.results import Findings
from clipbias.training.progress import say
from clipbias.tuning.adapter import Adapter, write_adapter
from experiments import common

FOLDER = "equivalent_bias"
WORDS = {"vector": "a bias of one vector per layer", "kind": "a bias of two vectors per layer"}


def save_equivalent_biases(findings: Findings, model: Model, adapter: Adapter, folder: Path) -> None:
    """Writes `equivalent_bias/<key>-vector.safetensors` and `…-kind.safetensors`, and prints what each keeps.

    Prints one line where a method has no equivalent bias.

    Args:
      findings: of a study with the section `constants`.
      model: the tuned model in the study.
      adapter: the model's adapter.
      folder: of the study.
    """
    facts = findings.scalars["constants"][model.key]
    try:
        if reason := facts.get("missing"):
            raise ClipbiasError(reason)
        biases = measured_biases(findings, model.key)
        for kind in METHODS:
            images = facts["training_images"]
            initial = model.task.init(model.seed)
            bias = as_bias_adapter(model.task, initial, biases, kind, notes=adapter.notes, images=images)
            write_adapter(folder / FOLDER / f"{model.key}-{kind}.safetensors", bias)
            common.tell(kept_sentence(findings, model, kind))
    except ClipbiasError as error:
        say(f"{model.label}: no equivalent bias is saved. {error}")


def measured_biases(findings: Findings, key: str) -> dict[str, EquivalentBias]:
    """The measured bias of a model by tower, as it stands in a study's arrays, which have no form by token."""
    biases = {}
    for tower in TOWERS:
        forms = {form: findings.arrays.get(f"constants/{key}/{tower}/{form}") for form in METHODS}
        if all(array is not None for array in forms.values()):
            biases[tower] = EquivalentBias(**forms, token=np.empty(0, np.float32))  # type: ignore[arg-type]
    return biases


def kept_sentence(findings: Findings, model: Model, kind: str) -> str:
    """How much of a model's gain its equivalent bias keeps, with intervals."""
    parts = []
    for outcome, numbers in findings.scalars["constants"][model.key]["numbers"].items():
        nothing, kept = no_gain(numbers["gain"], outcome), numbers["kept"][kind]
        keeps = f"it keeps {percent(kept)} of the gain in {OUTCOME_NAMES[outcome]}"
        parts.append(f"{OUTCOME_NAMES[outcome]} has no sure gain" if nothing else keeps)
    return f"{model.label} as {WORDS[kind]}: {'; '.join(parts)}."
