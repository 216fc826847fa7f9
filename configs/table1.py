"""Table 1 of the paper: six methods and zero-shot, eleven datasets, 4, 8 and 16 shots, three seeds.

    python -m experiments.table1 --config=configs/table1.py --config.data_dir=/data --workdir=/results/table1

Bias tuning at its parameter budget is compared with IVLP at the same budget in a row of its own, `ivlp_matched`; beside
them, not in the paper, are bias tuning by kind of token and IVLP at that budget, `ivlp_matched_2`. The presets are the
literature's protocols, such as

    python -m experiments.table1 --config=configs/table1.py:base_to_new --config.data_dir=/data
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from ml_collections import ConfigDict

from clipbias.checks import Choices, Count, Positive, Range, check_choice
from clipbias.data import catalog
from clipbias.data.confusion import CLASS_MEASURES
from clipbias.data.protocols import CONCENTRATION, IMBALANCED, PROTOCOLS
from clipbias.errors import ClipbiasError
from clipbias.settings import group, setting, to_config
from clipbias.training.rates import PER_CELL, PER_METHOD, UNSELECTED_RATES
from clipbias.training.spec import TEST, VALIDATION
from clipbias.tuning.recipe import Recipe
from configs._common import SweepSettings

PRESETS = {
    "few_shot": "eleven datasets, 4, 8 and 16 shots",
    IMBALANCED: "as many images, of some classes more than of others, 16 shots on average",
    "base_to_new": "half of the classes learned, both halves tested, 16 shots",
    "cross_dataset": "learned on ImageNet, tested on the ten others too, 16 shots",
    "domain_generalization": "learned on ImageNet, tested on ImageNet-V2, Sketch, A and R with their classes, 16 shots",
}


METHODS = (
    "zero_shot",
    "vpt",
    "coop",
    "ivlp",
    "ivlp_matched",
    "ivlp_matched_2",
    "maple",
    "taskres",
    "bias",
    "bias_by_kind",
)


@dataclasses.dataclass(frozen=True)
class GridSettings(SweepSettings):
    """What `table1` and `lab` combine, and how much of it a job takes."""

    recipe: Recipe = group(Recipe)
    methods: tuple[str, ...] = setting(
        METHODS, "The methods, by name or by the path of a file of your own (docs/methods.md)."
    )
    method_options: Mapping[str, object] = setting(
        {}, "Options by method name, or by method@dataset for one dataset only."
    )
    datasets: tuple[str, ...] = setting(catalog.ELEVEN, "The datasets, by name (docs/datasets.md).")
    seeds: tuple[Count, ...] = setting(
        (1, 2, 3),
        "Of the few-shot split, and of the start (`start_seed`); tables average over them.",
    )
    runs_per_program: Positive | None = setting(
        None,
        "Runs trained side by side in one program; None takes all seeds and learning rates of one method, dataset and "
        "number of shots.",
    )
    on_missing: Annotated[str, Choices(("raise", "skip"))] = setting(
        "raise", 'Where a dataset cannot be used: "raise" before any training, or "skip" its runs.'
    )
    part: str | None = setting(
        None,
        '"2/4" runs the second of four parts; other jobs may run the others meanwhile in the same work folder; None '
        "runs all.",
    )


@dataclasses.dataclass(frozen=True)
class Table1Settings(GridSettings):
    """The settings of `table1`."""

    shots: tuple[Positive, ...] | None = setting(
        (4, 8, 16), 'Training images per class; None takes all, with the protocol "full".'
    )
    protocol: Annotated[str, Choices(tuple(PROTOCOLS))] = setting(
        "few_shot",
        'How images are split and evaluated; "few_shot", "imbalanced", "full" (with --config.shots=None), '
        '"pseudo_labels", "base_to_new", "cross_dataset" or "domain_generalization".',
    )
    concentration: Annotated[float, Range(0.01, 1e6)] = setting(
        CONCENTRATION,
        'Dirichlet parameter of the protocol "imbalanced"; it shares out the images: the lower, the more imbalanced.',
    )
    targets: tuple[str, ...] | None = setting(
        None,
        'Datasets that "cross_dataset" and "domain_generalization" evaluate on besides; None takes the literature\'s.',
    )
    learning_rates: tuple[Annotated[float, Range(0)], ...] = setting(
        (),
        "Learning rates that are compared on validation images to select from; () takes `learning_rate` for every "
        "method.",
    )
    choose: Annotated[str, Choices((PER_METHOD, PER_CELL, UNSELECTED_RATES))] = setting(
        PER_METHOD,
        'What a learning rate is selected for: each "method", each "cell", or "none"; a method has one for all '
        'datasets and shots, a cell is a method, dataset and number of shots; with "none" all are tested instead, each '
        "with rows of its own.",
    )
    hold_out_shot: bool = setting(
        False,
        "Select on a training image of each class in place of validation images; it trains nothing (HOSO).",
    )
    score_on: Annotated[str, Choices((TEST, VALIDATION))] = setting(
        TEST,
        '"test", or "validation" to select learning rates alone; `rates.json` has them, and jobs may share '
        "the work in parts.",
    )
    measures: tuple[Annotated[str, Choices(CLASS_MEASURES)], ...] = setting(
        (),
        'Further tables, of scores that count classes alike; "balanced_accuracy", "macro_f1", or "worst_accuracy", '
        "that of the least recognised class.",
    )
    calibrate: bool = setting(
        False,
        "Calibrate the adapters of runs that select nothing on validation images; for prediction sets "
        "(docs/answers.md).",
    )
    compare: bool = setting(
        False, "Show finished runs beside published results, and run nothing; those of the work folder."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if "learning_rate" in self.given and self.learning_rates:
            raise ClipbiasError("learning_rate is one for all, learning_rates are to be compared; leave out either.")
        if self.hold_out_shot and self.rates_file is not None:
            raise ClipbiasError(
                f"hold_out_shot selects on one image of each class, and the rates of {self.rates_file} were selected "
                "elsewhere; give --config.rates_file=None, and --config.learning_rates to select from."
            )


def get_config(protocol: str = "few_shot") -> ConfigDict:
    check_choice("the preset", protocol, tuple(PRESETS))
    config = to_config(
        Table1Settings,
        epochs=10,  # the paper's, whatever the number of images
        method_options={"taskres@oxford_flowers": {"alpha": 1.0}},
        protocol=protocol,
        workdir="workdir/table1",
    )
    if protocol != "few_shot":
        config.shots = (16,)
        config.workdir = f"workdir/{protocol}"
    if protocol == IMBALANCED:
        config.measures = CLASS_MEASURES
    if protocol in ("cross_dataset", "domain_generalization"):
        config.datasets = ("imagenet",)
    if protocol in ("base_to_new", "cross_dataset"):  # a residual per class has nothing to say about new classes
        config.methods = tuple(method for method in METHODS if method != "taskres")
        config.method_options = ConfigDict()
    return config
