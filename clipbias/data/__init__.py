"""Image sets: where they come from, which images are drawn, and how they reach the accelerator."""

from clipbias.data.dataset import Dataset, Split
from clipbias.data.few_shot import few_shot
from clipbias.data.pipeline import test_batches
from clipbias.data.protocols import make_protocol
from clipbias.data.sources import from_arrays, load, names

__all__ = ["Dataset", "Split", "few_shot", "from_arrays", "load", "make_protocol", "names", "test_batches"]
