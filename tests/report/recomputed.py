"""A study's verdict computed anew from its images' outcomes, in plain loops, to hold what the report shows against."""

import functools

import numpy as np

SCALES = {"calibrated": ("calibrated", 1.0), "accuracy": ("correct", 100.0)}
ENDS = ("value", "low", "high")
SHARES = ("share", "share_low", "share_high")
# By quantity of a verdict: two ways, the second less the first, and the quantity that it is a share of.
PAIRS = {
    "gain": ("reference", "tuned", None),
    "attention alone": ("reference", "attention alone", "gain"),
    "tokens alone": ("reference", "tokens alone", "gain"),
    "all that is added": ("image tokens: nothing", "tuned", "gain"),
    "mean by kind": ("image tokens: nothing", "image tokens: mean by kind", "all that is added"),
    "mean by position": ("image tokens: nothing", "image tokens: mean by position", "all that is added"),
    "another image's": ("image tokens: nothing", "image tokens: another image's", "all that is added"),
    "exchange": ("image tokens: another image's", "tuned", "all that is added"),
}


@functools.cache
def times_drawn(count):
    """How often each of 2,000 resamples draws an image, [images, 2000]."""
    rows = np.random.default_rng(0).integers(0, count, (2000, count))
    return np.stack([np.bincount(row, minlength=count) for row in rows], axis=1).astype(np.float64)


@functools.cache
def pull_of_seeds(count):
    """How far each resample is drawn to each seed, [2000, seeds]: the same sum over seeds is Student's t."""
    if count == 1:
        return np.zeros((2000, 1))
    generator = np.random.default_rng([0, 1])
    normal = generator.normal(size=(2000, count))
    student = normal / np.sqrt(generator.chisquare(count - 1, (2000, 1)) / (count - 1))
    return student / np.sqrt(count - 1) / np.sqrt(count)


def drawn(values):
    """Of values `[seeds, images]` the mean, then the means of all resamples."""
    crossed = (values @ times_drawn(values.shape[1]) / values.shape[1]).mean(0)
    for seed, of_seed in enumerate(values):
        crossed = crossed + pull_of_seeds(len(values))[:, seed] * (of_seed.mean() - values.mean())
    return np.array([values.mean(), *crossed])


def number(values, whole=None):
    """Mean and 95 % interval of what `drawn` gave; as shares of a whole too, where that is surely not 0."""
    of_mean = dict(zip(ENDS, (values[0], *np.quantile(values[1:], [0.025, 0.975])), strict=True))
    if whole is None or np.prod(np.quantile(whole[1:], [0.025, 0.975])) <= 0:
        return of_mean
    sign = np.sign(whole[0])
    ratios = []
    for part, all_of_it in zip(values[1:], whole[1:], strict=True):
        # A resample without the whole: the share is as large as shares may get, on the part's side.
        ratio = part / all_of_it if sign * all_of_it > 0 else sign * part * np.inf
        ratios.append(np.clip(ratio, -10, 10))
    return of_mean | dict(zip(SHARES, (values[0] / whole[0], *np.quantile(ratios, [0.025, 0.975])), strict=True))


def quantities(results, keys, outcome):
    """By quantity its numbers, of a method's models."""
    name, unit = SCALES[outcome]
    tests = [results.causal.models[key] for key in keys]
    values = [unit * np.asarray(getattr(test.outcomes, name), np.float64) for test in tests]

    def of_way(way):
        at = [k for k, each in enumerate(tests[0].ways) if each == way]
        return np.stack([rows[:, at].mean(1) for rows in values])

    samples = {quantity: drawn(of_way(after) - of_way(before)) for quantity, (before, after, _) in PAIRS.items()}
    return {quantity: number(samples[quantity], samples.get(whole)) for quantity, (*_, whole) in PAIRS.items()}
