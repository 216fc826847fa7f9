"""Adaptation methods: one file each, all turning their learnables into one `Adaptation` of the frozen model.

Names are imported when first used: a recipe or a type of options alone loads no method.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
