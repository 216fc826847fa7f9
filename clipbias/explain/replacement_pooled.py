"""What one method can be exchanged for, over several seeds and datasets together.

Within a dataset seeds and images are crossed (`cross`), since all seeds share the test images. Datasets are strata:
each is resampled by itself, and all count alike. Shares and agreements are ratios of means over all of them.
Temperatures are those of each study. As everywhere (`effects`), resamples of numbers of images vary by half an image
more.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from clipbias.explain.effects import REFERENCE, TUNED, Sample, mean_counts
from clipbias.explain.replacement import FITTED, MEAN, RETRAINED, UNTAUGHT, conclude, conclusion_sentence, way
from clipbias.explain.results import Comparison, FittedReplacements, StudyResults, present
from clipbias.explain.uncertainty import Estimate, cross, estimate, excludes, resample, share
from clipbias.sentences import counted

# A loss of accuracy, as a share of images, within which a form is not inferior.
NOT_INFERIOR = 0.01
# What stands in a model's place: its kind and form.
Place = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class _Measured:
    """What was fitted to one model, and means over images.

    Attributes:
      means: of the tuned model by name, and of everything that stands in its place by name and place.
    """

    result: FittedReplacements
    means: Mapping[str | tuple[str, Place], Sample]


# Models of one method on one dataset, which differ in their seeds.
Stratum = Sequence[_Measured]


@dataclasses.dataclass(frozen=True)
class PooledWay:
    """What stands in a method's place, over all its seeds and datasets.

    Attributes:
      kind: `FITTED`, `MEAN`, `UNTAUGHT` or `RETRAINED`; form: its name, "" of a retraining.
      numbers: how many it stores, a mean where that grows with the classes.
      teachers: how many models it stands beside.
      share: of the gain in calibrated log-likelihood; `None` where that is not sure.
      difference: of its accuracy from the tuned models', a share of images.
      moved: the share of the decisions that tuning moved which it makes too; `None` where there are none.
    """

    kind: str
    form: str
    numbers: float
    teachers: int
    share: Estimate | None
    difference: Estimate
    moved: Estimate | None


@dataclasses.dataclass(frozen=True)
class PooledForm:
    """A form that was fitted to a method's models.

    Attributes:
      words: what it is.
      way: what it does.
      beside_retraining, beside_untaught: its agreement on moved decisions less that of the retrainings, and less that
        of the form trained on labels; `None` without such models.
      not_inferior: whether a loss of accuracy of `NOT_INFERIOR` lies below the interval of the difference.
      conclusion: a key of `replacement.CONCLUSIONS`; sentence: what is concluded, in words.
    """

    words: str
    way: PooledWay
    beside_retraining: Estimate | None
    beside_untaught: Estimate | None
    not_inferior: bool
    conclusion: str
    sentence: str


@dataclasses.dataclass(frozen=True)
class PooledMethod:
    """One method, over its seeds and datasets.

    Attributes:
      name: how it is called; method: as the registry names it.
      teachers: how many models forms were fitted to.
      datasets: their names.
      forms: by name.
      others: what else stands beside the models.
    """

    name: str
    method: str
    teachers: int
    datasets: tuple[str, ...]
    forms: dict[str, PooledForm]
    others: tuple[PooledWay, ...]

    @property
    def ways(self) -> tuple[PooledWay, ...]:
        """All that stands in the method's place."""
        return (*(form.way for form in self.forms.values()), *self.others)


def pool_replacements(studies: Sequence[StudyResults]) -> list[PooledMethod]:
    """One per method, in the order in which the studies name them."""
    groups: dict[tuple[str, str], dict[str, list[FittedReplacements]]] = {}
    for study in studies:
        names = {model.key: (model.name, model.method) for model in study.tuned}
        for key, result in present(study.replacement).items():
            groups.setdefault(names[key], {}).setdefault(study.dataset.name, []).append(result)
    return [_pool_method(name, method, by_dataset) for (name, method), by_dataset in groups.items()]


def _pool_method(name: str, method: str, by_dataset: Mapping[str, Sequence[FittedReplacements]]) -> PooledMethod:
    strata = [[_measure(result, seed=n) for result in results] for n, results in enumerate(by_dataset.values())]
    first = strata[0][0].result
    teachers = sum(map(len, strata))
    label = f"{name} ({counted(teachers, 'model')} on {counted(len(strata), 'dataset')})" if teachers > 1 else name
    others = [_pool_way((kind, form), strata) for kind in (MEAN, UNTAUGHT) for form in first.forms]
    others.append(_pool_way((RETRAINED, ""), strata))
    return PooledMethod(
        name=name,
        method=method,
        datasets=tuple(by_dataset),
        teachers=teachers,
        forms={form: _pool_form(label, form, each.words, strata) for form, each in first.forms.items()},
        others=tuple(each for each in others if each is not None),
    )


def _pool_form(label: str, form: str, words: str, strata: Sequence[Stratum]) -> PooledForm:
    fitted = _pool_way((FITTED, form), strata)
    assert fitted is not None, "the form was fitted to these models"
    retrained = _less_agreement(form, (RETRAINED, ""), strata)
    untaught = _less_agreement(form, (UNTAUGHT, form), strata)
    conclusion = conclude(fitted.share, [retrained] if retrained else [], [untaught] if untaught else [])
    return PooledForm(
        words=words,
        way=fitted,
        beside_retraining=retrained,
        beside_untaught=untaught,
        not_inferior=excludes(fitted.difference, -NOT_INFERIOR) > 0,
        conclusion=conclusion,
        sentence=conclusion_sentence(label, words, conclusion, fitted.share, fitted.moved),
    )


def _pool_way(place: Place, strata: Sequence[Stratum]) -> PooledWay | None:
    """What stands in a method's place, over the models that have it; `None` without such a model."""
    strata = _with_place(place, strata)
    if not strata:
        return None
    results = [model.result for stratum in strata for model in stratum]
    numbers = [each.numbers for result in results for each in _comparisons(result, place).values()]
    change = _less(_pool(strata, ("accuracy", place)), _pool(strata, "accuracy"))
    return PooledWay(
        kind=place[0],
        form=place[1],
        numbers=float(np.mean(numbers)),
        teachers=len(results),
        share=_ratio(_pool(strata, ("gain", place)), _pool(strata, "gain")),
        difference=estimate(float(change.mean), change.draws),
        moved=_ratio(_pool(strata, ("same", place)), _pool(strata, "moved")),
    )


def _less_agreement(form: str, other: Place, strata: Sequence[Stratum]) -> Estimate | None:
    """A fitted form's agreement on moved decisions less that of something else, over the models that have both."""
    strata = _with_place(other, strata)
    if not strata:
        return None
    less = _less(_pool(strata, ("same", (FITTED, form))), _pool(strata, ("same", other)))
    return _ratio(less, _pool(strata, "moved"))


def _less(first: Sample, second: Sample) -> Sample:
    return Sample(first.mean - second.mean, first.draws - second.draws)


def _ratio(part: Sample, whole: Sample) -> Estimate | None:
    """`None` where the interval of the whole includes 0."""
    return share(float(part.mean), part.draws, float(whole.mean), whole.draws).share


def _comparisons(result: FittedReplacements, place: Place) -> dict[str, Comparison]:
    """What a place stands for, by the names of `result.ways`."""
    kind, form = place
    if kind == FITTED:
        return {way(kind, form): result.forms[form].comparison}
    if kind == MEAN:
        return {way(kind, form): result.means[form]} if form in result.means else {}
    others = result.retrainings if kind == RETRAINED else result.untaught.get(form, {})
    return {way(kind, key): comparison for key, comparison in others.items()}


def _with_place(place: Place, strata: Sequence[Stratum]) -> list[Stratum]:
    having = [[model for model in stratum if ("gain", place) in model.means] for stratum in strata]
    return [stratum for stratum in having if stratum]


def _pool(strata: Sequence[Stratum], name: str | tuple[str, Place]) -> Sample:
    """A mean over the datasets' models and images, `[]`, with its resamples `[R]`."""
    means = []
    draws = []
    for number, stratum in enumerate(strata):
        samples = [model.means[name] for model in stratum]
        means.append(np.mean([each.mean for each in samples]))
        crossed = cross([each.mean[None] for each in samples], [each.draws[:, None] for each in samples], seed=number)
        draws.append(crossed[:, 0])
    return Sample(np.mean(means), np.mean(draws, axis=0))


def _measure(result: FittedReplacements, *, seed: int) -> _Measured:
    """Means over images of one model.

    They are: the gain in nats; whether tuning moved the decision; whether the model is right; and of each place, a mean
    over what it stands for, the gain, whether it is right and whether it makes a moved decision.
    """
    every = [(FITTED, form) for form in result.forms]
    every += [(kind, form) for kind in (MEAN, UNTAUGHT) for form in result.forms]
    places = [place for place in [*every, (RETRAINED, "")] if _comparisons(result, place)]
    columns = [[result.ways.index(name) for name in _comparisons(result, place)] for place in places]
    reference, tuned = (result.ways.index(name) for name in (REFERENCE, TUNED))
    nats = result.outcomes.calibrated.astype(np.float64)
    nats -= nats[:, [reference]]
    decided = result.decisions
    moved = decided[:, tuned] != decided[:, reference]
    same = (decided == decided[:, [tuned]]) & moved[:, None]
    correct = result.outcomes.correct
    gains = np.stack([nats[:, tuned], *(nats[:, at].mean(1) for at in columns)], axis=1)
    counts = [moved, correct[:, tuned], *(of[:, at].mean(1) for of in (correct, same) for at in columns)]
    counted = mean_counts(np.stack(counts, axis=1), seed=seed)
    names: list[str | tuple[str, Place]] = ["gain", *(("gain", place) for place in places), "moved", "accuracy"]
    names += [(name, place) for name in ("accuracy", "same") for place in places]
    mean = np.concatenate([gains.mean(0), counted.mean])
    draws = np.concatenate([resample(gains, seed=seed), counted.draws], axis=1)
    return _Measured(result, {name: Sample(mean[at], draws[:, at]) for at, name in enumerate(names)})
