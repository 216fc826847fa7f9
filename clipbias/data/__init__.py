"""Image sets: where they come from, which images are drawn, and how they reach the accelerator."""

from clipbias.data.dataset import Dataset as Dataset
from clipbias.data.dataset import Split as Split
from clipbias.data.few_shot import few_shot as few_shot
from clipbias.data.sources import load as load
