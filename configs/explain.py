"""A study of why tuning works: zero-shot against tuned adapters on one dataset or several.

python -m experiments.explain --config.adapters=workdir/ivlp,workdir/bias --workdir=workdir/why

A first look at a large model without an accelerator:

python -m experiments.explain --config=configs/explain.py:quick --config.adapters=workdir/ivlp --workdir=workdir/look
"""

import dataclasses

from ml_collections import ConfigDict

from clipbias.analysis.sections import all_sections
from clipbias.analysis.study import StudyOptions
from clipbias.checks import check_choice
from clipbias.settings import group, setting, to_config
from configs._common import AdapterSettings, DatasetSettings

PRESETS = {
    "full": "every section, of all images but where the settings say of how many",
    "quick": "a first look: 24 images, without replacements, which train, and without perturbation, which runs each "
    "image a hundred times",
}


@dataclasses.dataclass(frozen=True)
class ExplainSettings(AdapterSettings, DatasetSettings):
    """The settings of `explain`."""

    dataset: str | None = setting(
        None, "The dataset to explain all adapters on; None explains each on the dataset that it was trained on."
    )
    datasets: tuple[str, ...] | None = setting(
        None,
        "Datasets, each with the adapters that were trained on it. Of several datasets, given here or by the adapters, "
        "each gets a folder and a report, and all together an overview.",
    )
    split: str = setting("test", 'The images to explain on: "train", "val" or "test".')
    sections: str = setting(
        "all",
        f'"all", or sections separated by commas; there are {", ".join(all_sections())}. '
        "Results and report have those of the last call.",
    )
    predictions: str | None = setting(
        None,
        "Folders of runs whose predictions are read, not computed, separated by commas; where they are of the same "
        "model and images; those of the adapters' own runs are looked at anyway.",
    )
    study: StudyOptions = group(StudyOptions)


def get_config(size: str = "full") -> ConfigDict:
    check_choice("the preset", size, tuple(PRESETS))
    config = to_config(ExplainSettings, workdir="workdir/explain")
    if size == "quick":
        config.sections = ",".join(
            name for name in all_sections() if name not in ("faithfulness", "replacement", "rank")
        )
        config.image_limit = 24
        config.training_images = 16
        config.explore_images = 8
    return config
