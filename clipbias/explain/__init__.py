"""Why an adaptation works: relevancy, attention statistics, decomposition, a causal test and its verdict.

Two doors lead in. `clipbias.relevancy` and `explanations` map what an image's class is based on. `run_study` computes a
`Study` of tuned models over a dataset, and `load_results` reads it again.

Names are imported when first used, so that a report reads results without loading a model.
"""

import sys
import types
from typing import Any

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


class _Package(types.ModuleType):
    """A package that may be called: `clipbias.explain` is the name of this one, and of what users call."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """As `clipbias.studies.explain`."""
        from clipbias import studies

        return studies.explain(*args, **options)


sys.modules[__name__].__class__ = _Package
