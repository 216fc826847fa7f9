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
# What was fitted to the models of one method on one dataset, which differ in their seeds.
Stratum = Sequence[FittedReplacements]


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


def _pool_method(name: str, method: str, by_dataset: Mapping[str, Stratum]) -> PooledMethod:
    strata = list(by_dataset.values())
    first = strata[0][0]
    teachers = sum(map(len, strata))
    label = f"{name} ({counted(teachers, 'model')} on {counted(len(strata), 'dataset')})" if teachers > 1 else name
    others = [pool_way(kind, form, strata) for kind in (MEAN, UNTAUGHT) for form in first.forms]
    others.append(pool_way(RETRAINED, "", strata))
    return PooledMethod(
        name=name,
        method=method,
        datasets=tuple(by_dataset),
        teachers=teachers,
        forms={form: _pool_form(label, form, each.words, strata) for form, each in first.forms.items()},
        others=tuple(each for each in others if each is not None),
    )


def _pool_form(label: str, form: str, words: str, strata: Sequence[Stratum]) -> PooledForm:
    fitted = pool_way(FITTED, form, strata)
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


def pool_way(kind: str, form: str, strata: Sequence[Stratum]) -> PooledWay | None:
    """What stands in a method's place, over the models that have it; `None` without such a model."""
    strata = _with_way(kind, form, strata)
    if not strata:
        return None
    pooled = _pool(strata, [(kind, form)])
    results = [result for stratum in strata for result in stratum]
    numbers = [each.numbers for result in results for each in _comparisons(result, kind, form).values()]
    change = Sample(
        pooled["accuracy 0"].mean - pooled["accuracy"].mean, pooled["accuracy 0"].draws - pooled["accuracy"].draws
    )
    return PooledWay(
        kind=kind,
        form=form,
        numbers=float(np.mean(numbers)),
        teachers=len(results),
        share=_ratio(pooled["gain 0"], pooled["gain"]),
        difference=estimate(float(change.mean), change.draws),
        moved=_ratio(pooled["same 0"], pooled["moved"]),
    )


def _less_agreement(form: str, other: tuple[str, str], strata: Sequence[Stratum]) -> Estimate | None:
    """A fitted form's agreement on moved decisions less another way's, over the models that have both."""
    strata = _with_way(*other, strata)
    if not strata:
        return None
    pooled = _pool(strata, [(FITTED, form), other])
    less = Sample(pooled["same 0"].mean - pooled["same 1"].mean, pooled["same 0"].draws - pooled["same 1"].draws)
    return _ratio(less, pooled["moved"])


def _ratio(part: Sample, whole: Sample) -> Estimate | None:
    """`None` where the interval of the whole includes 0."""
    return share(float(part.mean), part.draws, float(whole.mean), whole.draws).share


def _comparisons(result: FittedReplacements, kind: str, form: str) -> dict[str, Comparison]:
    """The ways of a kind and form, by their names."""
    if kind == FITTED:
        return {way(kind, form): result.forms[form].comparison}
    if kind == MEAN:
        return {way(kind, form): result.means[form]} if form in result.means else {}
    others = result.retrainings if kind == RETRAINED else result.untaught.get(form, {})
    return {way(kind, key): comparison for key, comparison in others.items()}


def _with_way(kind: str, form: str, strata: Sequence[Stratum]) -> list[Stratum]:
    having = [[result for result in stratum if _comparisons(result, kind, form)] for stratum in strata]
    return [stratum for stratum in having if stratum]


def _pool(strata: Sequence[Stratum], places: Sequence[tuple[str, str]]) -> dict[str, Sample]:
    """Means over the datasets' models and images by name, see `_measure`."""
    means = []
    draws = []
    for number, stratum in enumerate(strata):
        samples = [_measure(result, places, seed=number) for result in stratum]
        means.append(np.mean([each.mean for each in samples], axis=0))
        draws.append(cross([each.mean for each in samples], [each.draws for each in samples], seed=number))
    numbers = range(len(places))
    names = ["gain", *(f"gain {number}" for number in numbers), "moved", "accuracy"]
    names += [f"{name} {number}" for name in ("accuracy", "same") for number in numbers]
    mean = np.mean(means, axis=0)
    drawn = np.mean(draws, axis=0)
    return {name: Sample(mean[place], drawn[:, place]) for place, name in enumerate(names)}


def _measure(result: FittedReplacements, places: Sequence[tuple[str, str]], *, seed: int) -> Sample:
    """Of one model, means over images of columns.

    They are: the gain in nats of the tuned model, then of each place, a mean over its ways; whether tuning moved the
    decision; whether the tuned model is right, then each place; whether each place makes a moved decision.
    """
    columns = [[result.ways.index(name) for name in _comparisons(result, *place)] for place in places]
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
    mean = np.concatenate([gains.mean(0), counted.mean])
    return Sample(mean, np.concatenate([resample(gains, seed=seed), counted.draws], axis=1))
