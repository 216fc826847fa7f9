"""Training and evaluating: the mesh, the step, the loop, checkpoints, grids of runs and their results.

Names are imported when first used, so that what reads results alone loads no model.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what the table below imports when it is used
    from clipbias.training.grid import Grid as Grid
    from clipbias.training.loop import Run as Run
    from clipbias.training.loop import Trained as Trained
    from clipbias.training.loop import train as train
    from clipbias.training.mesh import make_mesh as make_mesh
    from clipbias.training.mesh import start_distributed as start_distributed
    from clipbias.training.packs import Pack as Pack
    from clipbias.training.packs import make_packs as make_packs
    from clipbias.training.results import Results as Results
    from clipbias.training.settings import GridSettings as GridSettings
    from clipbias.training.settings import Recipe as Recipe

_HOME = {
    "Grid": "grid",
    "GridSettings": "settings",
    "Pack": "packs",
    "Recipe": "settings",
    "Results": "results",
    "Run": "loop",
    "Trained": "loop",
    "make_mesh": "mesh",
    "make_packs": "packs",
    "start_distributed": "mesh",
    "train": "loop",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"clipbias.training.{_HOME[name]}"), name)
    raise AttributeError(f"module 'clipbias.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
