"""Settings that several commands have."""

import dataclasses
from typing import Annotated

from clipbias.checks import Choices, Count, Positive
from clipbias.clip.precision import DTYPE_CHOICES
from clipbias.data.pipeline import OnImageError
from clipbias.errors import ClipbiasError
from clipbias.settings import group, setting
from clipbias.training.device import Compute
from clipbias.tuning.conformal import AnswerOptions


@dataclasses.dataclass(frozen=True)
class WorkdirSettings:
    """Where a command writes."""

    workdir: str | None = setting(None, "Folder for everything that is written; --workdir takes precedence over it.")


@dataclasses.dataclass(frozen=True)
class InputSettings(WorkdirSettings):
    """How classes and images are given to the model."""

    template: str | None = setting(
        None, "Prompt template with {} for the class name; None takes the dataset's; an adapter has its own."
    )
    descriptions: str | None = setting(
        None,
        "JSON file of texts by class name in place of the template; for classifiers of frozen texts and for teachers; "
        "{dataset} in its path stands for the dataset's name.",
    )
    on_image_error: OnImageError | None = setting(
        None,
        'Images that cannot be read: "raise" an error, or "skip" (and count) them; None takes that of the work '
        'folder\'s last command, and in a new folder "raise".',
    )
    dtype: Annotated[str, Choices(DTYPE_CHOICES)] | None = setting(
        None,
        'Compute type: "float32", "bfloat16", "auto" or others (docs/devices.md); "tensorfloat32" is for GPUs, '
        '"bfloat16_3x" for TPUs, "auto" the fastest of the device that trains what float32 trains; None takes that of '
        "the adapter's training, and without one float32.",
    )


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The devices as a mesh."""

    run: Positive | None = setting(
        1, "Devices along the mesh's axis of independent runs (seeds, learning rates); None takes all that are left."
    )
    data: Positive | None = setting(
        None, "Devices along the mesh's axis of images and classes; None takes all that are left."
    )


@dataclasses.dataclass(frozen=True)
class DatasetSettings(InputSettings):
    """Where the images of datasets are, and the devices that they are spread over."""

    data_dir: str | None = setting(None, "Root folder of the images (not needed by the demo datasets).")
    split_source: str | None = setting(
        None,
        'TFDS: "coop" imposes the benchmark\'s splits, "builder" keeps TFDS\'s own; None takes the source\'s default.',
    )
    split_dir: str | None = setting(None, "TFDS: folder of the split_zhou_*.json files.")
    mesh: MeshSettings = group(MeshSettings, flat=False)


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """Tuned adapters, and the model that they are of."""

    adapters: str | None = setting(
        None,
        "Adapter files, folders of them or of runs, or patterns, separated by commas; runs are those of `train` or "
        "`table1`, a pattern is such as workdir/demo/adapters/bias-*. Commands that take one adapter refuse several; "
        "None stands for zero-shot CLIP where that makes sense.",
    )
    own_methods: str | None = setting(
        None,
        "Files or modules of methods of your own that adapters use, separated by commas. Nothing that only an adapter "
        "names is run.",
    )
    model: str | None = setting(
        None,
        '"demo", a hub name, or a local folder or file (docs/models.md); a hub name is such as '
        '"openai/clip-vit-base-patch16"; None takes the model of the adapters, and without any "demo".',
    )


@dataclasses.dataclass(frozen=True)
class AnswerSettings:
    """Prediction sets and "none of these" of a calibrated adapter."""

    answers: AnswerOptions = group(AnswerOptions)


@dataclasses.dataclass(frozen=True)
class SweepSettings(DatasetSettings):
    """What `train`, `table1` and `lab` share."""

    model: str = setting(
        "openai/clip-vit-base-patch16",
        '"demo", a hub name, or a local folder or file (docs/models.md); a hub name is such as '
        '"openai/clip-vit-base-patch16".',
    )
    start_seed: Count | None = setting(
        None,
        "Of the initial trainable parameters and the order of images; None takes the seed of the few-shot split.",
    )
    rates_file: str | None = setting(
        None,
        "JSON file of learning rates by method, of those that train by the common recipe; a selection writes such a "
        "file (`rates.json` in its work folder, docs/runs.md). A `learning_rate` of the command line replaces it.",
    )
    given: tuple[str, ...] = setting(
        (),
        "Recipe settings and method options that the command line names. The program notes them; such recipe settings "
        "hold for every method, in place of its authors' recipe.",
    )
    compute: Compute = group(Compute)
    dry_run: bool = setting(False, "Print shapes, parameters and the memory of each program, and stop.")
    topology: str | None = setting(
        None,
        'With `dry_run`: devices that are not there, such as "v5e:4x4" or "h100:1x1x8"; their own compilers then tell '
        "what programs need (docs/before_you_rent.md); None takes those of this machine.",
    )

    def __post_init__(self) -> None:
        if "learning_rate" in self.given and self.rates_file is not None:
            raise ClipbiasError(
                f"the learning rate is given, and so are those of {self.rates_file}; leave out --config.learning_rate "
                "or --config.rates_file."
            )
        if self.topology is not None and not self.dry_run:
            raise ClipbiasError(f"nothing can be run on {self.topology}; add --config.dry_run, or leave topology out.")
