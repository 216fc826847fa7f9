"""Saves the bias that is equivalent to a tuned adapter, as a study measured it, as an adapter of its own."""

from pathlib import Path
from typing import Any

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.explain.amounts import TOWERS, Amount
from clipbias.explain.model import Model
from clipbias.explain.replacement import METHODS, as_adapter
from clipbias.explain.results import Findings
from clipbias.explain.uncertainty import kept
from clipbias.training.progress import say
from clipbias.tuning.adapter import Adapter, write_adapter
from experiments import common

FOLDER = "equivalent_bias"
WORDS = {"vector": "a bias of one vector per layer", "kind": "a bias of two vectors per layer"}


def save_equivalent_biases(findings: Findings, model: Model, adapter: Adapter, folder: Path) -> None:
    """Writes `equivalent_bias/<key>-vector.safetensors` and `…-kind.safetensors`, and prints what each keeps.

    Where a method has no equivalent bias, that is said in one line.

    Args:
      findings: of a study with the section `amounts`.
      model: the tuned model in the study.
      adapter: the model's adapter.
      folder: of the study.
    """
    facts = findings.scalars["amounts"][model.key]
    try:
        if reason := facts.get("missing"):
            raise ClipbiasError(reason)
        amounts = measured_amounts(findings, model.key)
        for kind in METHODS:
            images = facts["training_images"]
            bias = as_adapter(adapter, model.task, model.task.init(model.seed), amounts, kind, images=images)
            write_adapter(folder / FOLDER / f"{model.key}-{kind}.safetensors", bias)
            common.tell(kept_sentence(findings, model, kind))
    except ClipbiasError as error:
        say(f"{model.label}: no equivalent bias is saved. {error}")


def measured_amounts(findings: Findings, key: str) -> dict[str, Amount]:
    """The measured bias of a model by tower, as it stands in a study's arrays, which have no form by token."""
    found = {}
    for tower in TOWERS:
        forms = {form: findings.arrays.get(f"amounts/{key}/{tower}/{form}") for form in METHODS}
        if all(array is not None for array in forms.values()):
            found[tower] = Amount(**forms, token=np.empty(0, np.float32))  # type: ignore[arg-type]
    return found


def kept_sentence(findings: Findings, model: Model, kind: str) -> str:
    """How much of a model's gain its equivalent bias keeps, with intervals."""
    forms = findings.scalars["amounts"][model.key]["forms"]
    rows = {name: findings.arrays[f"amounts/{model.key}/{name}"] for name in ("log_likelihood", "correct")}
    shares = kept(rows, forms)
    parts = []
    for outcome, name in (("log_likelihood", "log-likelihood"), ("accuracy", "accuracy")):
        number: dict[str, Any] = shares[outcome][kind]
        if number["share"] is None:
            parts.append(f"{name} gains nothing that is certain (the gain's 95 % interval includes 0)")
            continue
        low, share, high = (100 * number[key] for key in ("share_low", "share", "share_high"))
        parts.append(f"it keeps {share:.0f} % of the gain in {name} (95 % interval {low:.0f} to {high:.0f} %)")
    return f"{model.label} as {WORDS[kind]}: {'; '.join(parts)}."
