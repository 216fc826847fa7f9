"""Why an adaptation works: relevancy, attention statistics, decomposition, a causal test and its verdict.

Two doors lead in. `clipbias.relevancy` and `explanations` map what an image's class is based on. `run_study` computes a
`Study` of tuned models over a dataset, and `load_results` reads it again; `clipbias.explain` does that, and draws it.

Names are imported when first used, so that a report reads results without loading a model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
