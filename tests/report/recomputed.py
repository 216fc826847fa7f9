"""A study's verdict computed anew from its arrays, in plain loops, to hold what the report shows against."""

import functools
import itertools

import numpy as np

SCALES = {"calibrated": ("calibrated", 1.0), "accuracy": ("correct", 100.0)}
ENDS = ("value", "low", "high")
SHARES = ("share", "share_low", "share_high")


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


def drawn(values, extra=0.0):
    """Of values `[seeds, images]` the mean, then the means of all resamples, which may vary by something besides."""
    count = values.shape[1]
    crossed = (values @ times_drawn(count) / count + extra).mean(0)
    for seed, of_seed in enumerate(values):
        crossed = crossed + pull_of_seeds(len(values))[:, seed] * (of_seed.mean() - values.mean())
    return np.array([values.mean(), *crossed])


def by_name(names, arrays, outcome):
    """By the names of the columns of arrays `[images, K]`, one for each seed, what `drawn` gives."""
    images = len(arrays[0])
    extra = np.zeros((2000, len(names)))
    if outcome == "accuracy":  # the number of right answers varies by half an image
        extra = 100 / images * 0.5 * np.random.default_rng(0).normal(size=extra.shape)
    return {name: drawn(np.stack([array[:, k] for array in arrays]), extra[:, k]) for k, name in enumerate(names)}


def number(values, gains=None):
    """Mean and 95 % interval of what `drawn` gave; as shares of a gain too, where that is surely not 0."""
    mean, draws = values[0], values[1:]
    numbers_of_mean = {"value": mean, "low": np.quantile(draws, 0.025), "high": np.quantile(draws, 0.975)}
    if gains is None:
        return numbers_of_mean
    if np.quantile(gains[1:], 0.025) <= 0 <= np.quantile(gains[1:], 0.975):
        return numbers_of_mean | dict.fromkeys(SHARES)
    sign = np.sign(gains[0])
    ratios = []
    for part, gain in zip(draws, gains[1:], strict=True):
        # A resample without the gain: the share is as large as shares may get, on the part's side.
        ratios.append(min(max(part / gain, -10), 10) if sign * gain > 0 else 10 * np.sign(part * sign))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return numbers_of_mean | {"share": mean / gains[0], "share_low": low, "share_high": high}


def mixture_outcomes(results, key, outcome, tower):
    """What each image becomes, by mixture."""
    test = results.factorial.models[key.removesuffix(":random")]
    name, scale = SCALES[outcome]
    outcomes = test.random.outcomes if key.endswith(":random") else test.outcomes
    array = np.asarray(getattr(outcomes, name), np.float64) * scale
    return {stream: array[:, test.towers.index(tower), k] for k, stream in enumerate(test.streams)}


def level_steps(results, keys, outcome, tower):
    """Steps from nothing to all of what is added at P's attention, and their parts of the Shapley value of values."""
    name, scale = SCALES[outcome]
    tests = [results.factorial.models[key].levels[tower] for key in keys]
    arrays = [np.asarray(getattr(each.outcomes, name), np.float64) * scale for each in tests]
    by_stream = by_name(tests[0].streams, arrays, outcome)
    places = sorted({stream[:-1] for stream in by_stream if stream[-1] == "R"}, key=lambda place: place.count("P"))
    names = {"vision": ("constant", "mismatch", "image"), "text": ("constant", "class")}[tower]
    steps = {}
    for place in places:
        levels = [by_stream[place + "R"], by_stream[place + "M"]]
        if tower == "vision":
            levels.append((by_stream[place + "0"] + by_stream[place + "1"] + by_stream[place + "2"]) / 3)
        levels.append(by_stream[place + "P"])
        steps[place] = {
            step: after - before for step, (before, after) in zip(names, itertools.pairwise(levels), strict=True)
        }
    whole = by_stream[places[-1] + "P"] - by_stream[places[-1] + "R"]
    numbers = {step: number(values, whole) for step, values in steps[places[-1]].items()}
    # Values come last of the effects that are P's in so many of all orders.
    orders = {1: {0: 1 / 2, 1: 1 / 2}, 2: {0: 1 / 3, 1: 1 / 6, 2: 1 / 3}}[len(places[0])]
    shapley = {step: number(sum(orders[place.count("P")] * steps[place][step] for place in places)) for step in names}
    numbers["all"] = number(whole)
    if tower == "vision":
        numbers["fitted"] = number(by_stream[places[-1] + "F"] - by_stream[places[-1] + "R"], whole)
    return numbers, shapley


def alone(results, keys, outcome):
    """What attention gives alone, and tokens."""
    each = [mixture_outcomes(results, key, outcome, "both") for key in keys]
    streams = list(each[0])
    by_stream = by_name(streams, [np.stack(list(mixture.values()), 1) for mixture in each], outcome)
    letters = len(streams[0])
    reference, tuned = (by_stream[letter * letters] for letter in "RP")
    corners = {"attention alone": "P" + "R" * (letters - 1), "tokens alone": "R" + "P" * (letters - 1)}
    return {name: number(by_stream[corner] - reference, tuned - reference) for name, corner in corners.items()}


def added(results, keys, outcome):
    """What is added to image tokens, its mean and the best constant."""
    numbers, _ = level_steps(results, keys, outcome, "vision")
    names = {"all that is added": "all", "mean of what is added": "constant", "best constant": "fitted"}
    return {name: numbers[step] for name, step in names.items()}


def effects(results, keys, outcome, tower="both"):
    """The gain, the mean contribution of every effect over all orders of adding them, and interactions."""
    keys = [keys] if isinstance(keys, str) else keys
    test = results.factorial.models[keys[0].removesuffix(":random")]
    names = test.effects
    streams = test.streams
    each = [mixture_outcomes(results, key, outcome, tower) for key in keys]
    by_stream = by_name(streams, [np.stack([mixture[stream] for stream in streams], 1) for mixture in each], outcome)

    def at(on):
        return by_stream["".join("P" if k in on else "R" for k in range(len(names)))]

    everything = set(range(len(names)))
    gain = at(everything) - at(set())
    by_effect = {"gain": number(gain)}
    for place, name in enumerate(names):
        added = []
        for order in itertools.permutations(range(len(names))):
            on = set(order[: order.index(place)])
            added.append(at(on | {place}) - at(on))
        by_effect[name] = number(np.mean(added, axis=0), gain)
    for size in range(2, len(names) + 1):
        for members in itertools.combinations(range(len(names)), size):
            term = 0.0
            for count in range(size + 1):
                for some in itertools.combinations(members, count):
                    term = term + (-1) ** (size - count) * at(set(some))
            by_effect[" × ".join(names[k] for k in members)] = number(term, gain)
    return by_effect


def mixture(results, keys, outcome, stream):
    """One mixture against the reference, with its share of the gain."""
    streams = results.factorial.models[keys[0]].streams
    each = [mixture_outcomes(results, key, outcome, "both") for key in keys]
    by_stream = by_name(streams, [np.stack([of_seed[name] for name in streams], 1) for of_seed in each], outcome)
    return number(by_stream[stream] - by_stream[streams[0]], by_stream[streams[-1]] - by_stream[streams[0]])


def temperature_alone(results, keys):
    """What the reference gains in raw log-likelihood by its temperature, and as a share of the raw gain."""
    arrays = {"calibrated": [], "log_likelihood": []}
    for key in keys:
        test = results.factorial.models[key]
        for name, of_seeds in arrays.items():
            outcomes = np.asarray(getattr(test.outcomes, name), np.float64)[:, test.towers.index("both")]
            of_seeds.append(outcomes[:, [0, 2 ** len(test.effects) - 1]])
    calibrated, raw = (by_name(("frozen", "tuned"), of_seeds, "calibrated") for of_seeds in arrays.values())
    return number(calibrated["frozen"] - raw["frozen"], raw["tuned"] - raw["frozen"])


def constants(results, keys, outcome):
    """By "kept:NAME" and "lost:NAME" what constants keep, and what is lost without them."""
    keys = [keys] if isinstance(keys, str) else keys
    tests = results.constants.models
    name, scale = SCALES[outcome]
    forms = tests[keys[0]].forms
    arrays = [np.asarray(getattr(tests[key].outcomes, name), np.float64) * scale for key in keys]
    by_form = by_name(forms, arrays, outcome)
    gain = by_form["tuned"] - by_form["reference"]
    by_name_of_form = {}
    for form, values in by_form.items():
        if form.startswith("kept:"):
            by_name_of_form[form] = number(values - by_form["reference"], gain)
        elif form.startswith("lost:"):
            by_name_of_form[form] = number(by_form["tuned"] - values, gain)
    return by_name_of_form


def ends(numbers, names=ENDS, scale=1.0):
    return [numbers[name] * scale for name in names]


def columns(number):
    """A package's estimate as `number` gives it."""
    share = number.share
    return {"value": number.value, "low": number.low, "high": number.high} | (
        dict.fromkeys(SHARES) if share is None else dict(zip(SHARES, (share.value, share.low, share.high), strict=True))
    )
