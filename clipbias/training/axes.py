"""From the axes of a sweep to its specs."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

from clipbias.checks import shown
from clipbias.clip.precision import named
from clipbias.data import Dataset, held_out, protocols
from clipbias.errors import ClipbiasError
from clipbias.training.rates import Rates
from clipbias.training.spec import TEST, UNSELECTED, RunSpec, stable_hash
from clipbias.training.sweep_context import SweepContext
from clipbias.tuning.feature_method import sampling_of
from clipbias.tuning.method import Method
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import method_options, resolve_method, source_digest


@dataclasses.dataclass(frozen=True)
class SweepAxes:
    """What a sweep combines: each method on each dataset, with each number of shots, seed and learning rate.

    Attributes:
      methods, datasets, shots, seeds: the axes; shots of `None` are all images. A method that takes no image is one run
        per dataset.
      learning_rates: the rates that are compared, for methods trained with the common recipe; empty for one rate.
      options: options by method name, or by `method@dataset`.
      start_seed: see `RunSpec`.
      protocol, targets: see `data.protocols`; empty targets are the literature's.
      concentration: of the protocol "imbalanced".
      hold_out_shot: whether one training image of each class selects settings (`data.held_out.SHOT`).
      score_on: see `RunSpec`.
    """

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    shots: tuple[int | None, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...] = ()
    options: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    start_seed: int | None = None
    protocol: str = "few_shot"
    targets: tuple[str, ...] = ()
    concentration: float = protocols.CONCENTRATION
    hold_out_shot: bool = False
    score_on: str = TEST


def make_specs(context: SweepContext, common: Recipe, axes: SweepAxes, rates: Rates | None = None) -> list[RunSpec]:
    """All combinations, dataset by dataset.

    Args:
      context: the model, and the datasets by name, targets among them; what is not there is left out
        (`on_missing=skip`).
      common: the recipe of all methods that have none of their own.
      axes: what is combined.
      rates: learning rates that were selected before.

    Raises:
      ClipbiasError: there is nothing to combine, an axis has a value twice, or there is no such method or option.
    """
    for name in ("methods", "datasets", "shots", "seeds"):
        if not getattr(axes, name):
            raise ClipbiasError(f"there are no {name}, so there is nothing to run; give some.")
    for name in ("methods", "datasets", "shots", "seeds", "learning_rates"):
        values = getattr(axes, name)
        if repeated := [value for place, value in enumerate(values) if value in values[:place]]:
            raise ClipbiasError(f"{name} has {shown(repeated[0])} twice; name each once.")
    for name in axes.methods:  # a misspelt option is reported before any dataset is looked at
        resolve_method(name, axes.options.get(name, {}))
    specs = []
    datasets = [context.datasets[name] for name in axes.datasets if name in context.datasets]
    for dataset, method in itertools.product(datasets, axes.methods):
        options = {**axes.options.get(method, {}), **axes.options.get(f"{method}@{dataset.name}", {})}
        for shots in axes.shots if resolve_method(method, options).uses_images else (None,):
            made = resolve_method(method, options, dataset=dataset.name, shots=shots)
            recipe = made.recipe_for(common, shots) if made.trains else None
            learning_rates: Sequence[float | None] = (None,)
            if recipe is not None and axes.learning_rates and recipe.learning_rate == common.learning_rate:
                learning_rates = axes.learning_rates
            elif recipe is not None and rates is not None:
                learning_rates = (rates.of(method, dataset.name, shots),)
            selects = len(learning_rates) > 1 or (rates is not None and learning_rates[0] is not None)
            protocol = _protocol(axes, made, shots)
            spec = RunSpec(
                method=method,
                options=method_options(made),
                dataset=dataset.name,
                protocol=protocol,
                targets=protocols.targets_of(axes.protocol, dataset.name, axes.targets),
                shots=shots,
                seed=0,
                recipe=recipe,
                template=dataset.template,
                descriptions=dataset.descriptions.digest if dataset.descriptions else "",
                dtype=named(context.dtype),
                weights=context.clip.fingerprint,
                source=source_digest(method) or "",
                data="",
                on_image_error=context.on_image_error,
                score_on=axes.score_on,
                validation=_policy(axes, dataset, shots) if selects or _validates(made) else UNSELECTED,
                concentration=axes.concentration if protocol == protocols.IMBALANCED and made.uses_images else None,
            )
            data = _contents(context.datasets[name] for name in (dataset.name, *spec.targets))
            specs += [
                dataclasses.replace(
                    spec,
                    data=data,
                    seed=seed,
                    start_seed=None if axes.start_seed == seed or not made.uses_images else axes.start_seed,
                    recipe=recipe and recipe.with_learning_rate(rate),
                )
                for rate in learning_rates
                for seed in (axes.seeds if made.uses_images else (0,))
            ]
    return specs


def _protocol(axes: SweepAxes, method: Method, shots: int | None) -> str:
    """The protocol of a run: "full" where all labelled images are used."""
    if shots is None and method.uses_images and axes.protocol != "pseudo_labels":
        return "full"
    return axes.protocol


def _policy(axes: SweepAxes, dataset: Dataset, shots: int | None) -> str:
    """The validation policy of a run for which something is selected."""
    if not axes.hold_out_shot:
        return protocols.validation_policy(dataset)
    if axes.protocol == "pseudo_labels":
        raise ClipbiasError("pseudo-labelled images have no label to select by; leave out --config.hold_out_shot.")
    if shots == 1:
        raise ClipbiasError(
            "of a single shot none is left to train on when one is held out; take more --config.shots, or leave out "
            "--config.hold_out_shot."
        )
    return held_out.SHOT


def _contents(datasets: Iterable[Dataset]) -> str:
    """A hash of class names, images and labels."""
    return stable_hash(
        [
            [dataset.class_names, {name: split.stored_digest for name, split in dataset.splits.items()}]
            for dataset in datasets
        ]
    )


def _validates(method: Method) -> bool:
    """Whether the method itself selects something on validation images."""
    sampling = sampling_of(method)
    return sampling is not None and sampling.validation
