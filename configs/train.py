"""One training run.

    python -m experiments.train --config=configs/train.py:ivlp --config.dataset=eurosat --config.data_dir=/data

The part after the colon is a method by its name, "bias" without one, or a file of your own; its options are under
`config.method_options`. Own images, one sub-folder per class:

    python -m experiments.train --config=configs/train.py --config.model=demo --config.dataset=folder \\
        --config.data_dir=/path/to/images --config.template="a photo of a {}."
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from ml_collections import ConfigDict, config_dict

from clipbias.checks import Count, Positive, Range
from clipbias.settings import group, setting, to_config
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import option_types
from configs._common import SweepSettings


@dataclasses.dataclass(frozen=True)
class OpenRecipe(Recipe):
    """The recipe of `train`, which may leave the learning rate open."""

    learning_rate: Annotated[float, Range(0, 3e38)] | None = setting(  # type: ignore[assignment]
        None,
        "Learning rate after the warm-up, from which it falls along a cosine. None takes the "
        f"recipe's, {Recipe.learning_rate:g}; for pictures of your own (folder, csv) it compares four rates on "
        "held-out images and takes the best (docs/runs.md).",
    )

    def with_default_rate(self) -> Recipe:
        """The same with a learning rate: the common recipe's where it is open."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Recipe(**values | ({"learning_rate": Recipe.learning_rate} if self.learning_rate is None else {}))


@dataclasses.dataclass(frozen=True)
class TrainSettings(SweepSettings):
    """The settings of `train`."""

    recipe: OpenRecipe = group(OpenRecipe)
    dataset: str = setting("demo/digits", "The dataset, by name (docs/datasets.md).")
    shots: Positive | None = setting(16, "Training images per class; None takes all.")
    seed: Count = setting(1, "Of the few-shot split, and of the start (`start_seed`).")
    method: str = setting("bias", "The method, by name or by the path of a file of your own (docs/methods.md).")
    calibrate: bool | None = setting(
        None,
        'Calibrate the adapter on validation images that select nothing; for prediction sets and "none of these" '
        "(docs/answers.md); None does so for pictures of your own (folder, csv).",
    )
    method_options: Mapping[str, object] = setting(
        {},
        "The method's options by name. One that is not set is the authors' for the dataset, else the method's default.",
    )


def get_config(method: str = "bias") -> ConfigDict:
    options = {name: config_dict.placeholder(kind) for name, kind in option_types(method).items()}
    return to_config(TrainSettings, method=method, method_options=options)
