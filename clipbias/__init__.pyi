from .clip import load as load
from .errors import ClipbiasError as ClipbiasError
from .explain.relevancy import relevancy as relevancy
from .explain.replacement import amounts_to as amounts_to
from .tuning import Adaptation as Adaptation
from .tuning import Task as Task
from .tuning.adapter import load_adapter as load_adapter
from .tuning.adapter import save_adapter as save_adapter
