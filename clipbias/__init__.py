"""Adapt CLIP with prompts or biases, and see why it works.

    clip = clipbias.load("demo")
    task = clipbias.Task(clip, "bias", class_names)
    learnables = task.init(seed=0)
    logits = task.logits(clip.params, learnables, images)

Names are imported when first used, so that `import clipbias` is quick and touches no device.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what the table below imports when it is used
    from clipbias.clip import load as load
    from clipbias.errors import ClipbiasError as ClipbiasError
    from clipbias.explain.relevancy import relevancy as relevancy
    from clipbias.tuning import Adaptation as Adaptation
    from clipbias.tuning import Task as Task
    from clipbias.tuning.adapter import load_adapter as load_adapter
    from clipbias.tuning.adapter import save_adapter as save_adapter

_HOME = {
    "Adaptation": "clipbias.tuning",
    "ClipbiasError": "clipbias.errors",
    "Task": "clipbias.tuning",
    "load": "clipbias.clip",
    "relevancy": "clipbias.explain.relevancy",
    "load_adapter": "clipbias.tuning.adapter",
    "save_adapter": "clipbias.tuning.adapter",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'clipbias' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
