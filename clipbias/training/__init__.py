"""Training and evaluating: the mesh, the step, the loop, checkpoints, sweeps of runs and their results.

Names are imported when first used, so that what reads results alone loads no model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
