from .loop import Run as Run
from .loop import Trained as Trained
from .loop import train as train
from .mesh import make_mesh as make_mesh
from .spec import RunSpec as RunSpec
from .spec import make_groups as make_groups
from .spec import make_specs as make_specs
