"""What a study finds: `explain` writes these dataclasses, `report` reads them.

Layers are counted from 0. A section that was not requested is `None`; a model that a section leaves out has `Missing`
in its place. Letters of shapes: `n` images of the split, `K` pictures or mixtures, `L` layers, `H` heads, `M` patches,
`V` vision prompts, `N` tokens, `C` classes, `D` width, `R` pixels along a side.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
