"""Classifies images with zero-shot CLIP or a tuned adapter."""

import dataclasses

from ml_collections import ConfigDict

from clipbias.checks import Positive
from clipbias.data.pipeline import BATCH_SIZE, OnImageError
from clipbias.settings import setting, to_config
from configs._common import AdapterSettings, AnswerSettings, InputSettings


@dataclasses.dataclass(frozen=True)
class PredictSettings(AdapterSettings, AnswerSettings, InputSettings):
    """The settings of `predict`."""

    images: str | None = setting(
        None, "Image files and folders, separated by commas; folders are searched through and through."
    )
    classes: str | None = setting(
        None, "Class names separated by commas, or a text file with one per line; None takes the adapter's."
    )
    texts: str | None = setting(
        None,
        'Texts in place of class names, such as "a dog on grass,two cats"; no template is added to them; or a text '
        "file with one per line.",
    )
    zero_shot: bool = setting(True, "Whether zero-shot CLIP is shown beside an adapter.")
    top: Positive = setting(5, "How many classes are shown.")
    output: str | None = setting(
        None,
        "A CSV file that gets a line per picture, such as answers.csv; it is written while they are classified, and "
        "the same command continues it (docs/answers.md). None writes predictions.json at the end.",
    )
    relevancy: bool = setting(False, "Whether the relevancy of every image's most likely class is drawn, too.")
    batch_size: Positive = setting(BATCH_SIZE, "Images at a time.")
    on_image_error: OnImageError = setting(
        "skip", 'For an image that cannot be read: "skip" says so in its line, "raise" stops.'
    )


def get_config() -> ConfigDict:
    return to_config(PredictSettings, workdir="workdir/predict")
