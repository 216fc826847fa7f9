"""Tables, figures and pages, drawn from arrays and result files alone.

Names are imported when first used, so that runs are listed without JAX and the model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
