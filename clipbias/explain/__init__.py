"""Why an adaptation works: relevancy, attention statistics, decomposition, interventions and a verdict.

Three doors lead in. `clipbias.relevancy` and `explanations` map what an image's class is based on. `run_study` computes
a `Study` of tuned models over a dataset, and `load_results` reads it again. `interpret.interpret` tells what adapters
learned from their arrays alone. The observers and `intervention` are arguments of `encode_image` and `encode_text`.

Names are imported when first used, so that a report reads results without loading a model.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what the table below imports when it is used
    from clipbias.explain.attention import observe_distance_and_entropy as observe_distance_and_entropy
    from clipbias.explain.attention import observe_text_shares as observe_text_shares
    from clipbias.explain.decomposition import observe_parts as observe_parts
    from clipbias.explain.interventions import intervention as intervention
    from clipbias.explain.options import StudyOptions as StudyOptions
    from clipbias.explain.perturbation import perturbed_predictions as perturbed_predictions
    from clipbias.explain.relevancy import explanations as explanations
    from clipbias.explain.results import load_results as load_results
    from clipbias.explain.run import run_study as run_study
    from clipbias.explain.similarity import observe_similarity as observe_similarity
    from clipbias.explain.streaming import Relevancy as Relevancy
    from clipbias.explain.study import Model as Model
    from clipbias.explain.study import Study as Study

_HOME = {
    "Model": "study",
    "Relevancy": "streaming",
    "Study": "study",
    "StudyOptions": "options",
    "explanations": "relevancy",
    "intervention": "interventions",
    "load_results": "results",
    "observe_distance_and_entropy": "attention",
    "observe_parts": "decomposition",
    "observe_similarity": "similarity",
    "observe_text_shares": "attention",
    "perturbed_predictions": "perturbation",
    "run_study": "run",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"clipbias.explain.{_HOME[name]}"), name)
    raise AttributeError(f"module 'clipbias.explain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
