"""A study's verdict computed anew from its arrays, in plain loops, to hold what the report shows against."""

import itertools

import numpy as np

SCALES = {"log_likelihood": ("log_likelihood", 1.0), "accuracy": ("correct", 100.0)}


def rows_of_draws(count):
    """Which images each of 2,000 resamples draws."""
    return np.random.default_rng(0).integers(0, count, (2000, count))


def number(values, gains=None):
    """Mean and 95 % interval of one value per image; as shares of a gain too, where that is not 0 within its own."""
    draws = values[rows_of_draws(len(values))].mean(1)
    found = {"value": values.mean(), "low": np.quantile(draws, 0.025), "high": np.quantile(draws, 0.975)}
    if gains is None:
        return found
    gain_draws = gains[rows_of_draws(len(gains))].mean(1)
    if np.quantile(gain_draws, 0.025) <= 0 <= np.quantile(gain_draws, 0.975):
        return found | {"share": None, "share_low": None, "share_high": None}
    sign, ratios = np.sign(gains.mean()), []
    for part, gain in zip(draws, gain_draws, strict=True):
        # A resample without the gain: the share is as large as shares may get, on the part's side.
        ratios.append(min(max(part / gain, -10), 10) if sign * gain > 0 else 10 * np.sign(part * sign))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return found | {"share": values.mean() / gains.mean(), "share_low": low, "share_high": high}


def mixture_outcomes(results, key, outcome, tower):
    """What each image becomes, by mixture."""
    facts, (name, scale) = results.scalars["factorial"][key], SCALES[outcome]
    array = np.asarray(results.arrays[f"factorial/{key}/{name}"], np.float64) * scale
    place = list(facts["towers"]).index(tower)
    return {stream: array[:, place, k] for k, stream in enumerate(facts["streams"])}


def effects(results, key, outcome, tower):
    """Reference, gain and the mean contribution of every effect over all orders of adding them."""
    facts = results.scalars["factorial"][key]
    by_stream, names = mixture_outcomes(results, key, outcome, tower), facts["effects"]
    first, last = by_stream["R" * len(names)], by_stream["P" * len(names)]
    found = {"reference": number(first), "gain": number(last - first)}
    for place, name in enumerate(names):
        added = []
        for order in itertools.permutations(range(len(names))):
            on = set(order[: order.index(place)])
            before, after = (
                "".join("P" if k in there else "R" for k in range(len(names))) for there in (on, on | {place})
            )
            added.append(by_stream[after] - by_stream[before])
        found[name] = number(np.mean(added, axis=0), last - first)
    return found


def kept(results, key, outcome):
    """Gains of the constants and of the method itself, by form."""
    forms, (name, scale) = results.scalars["amounts"][key]["forms"], SCALES[outcome]
    array = np.asarray(results.arrays[f"amounts/{key}/{name}"], np.float64) * scale
    gain = {form: array[:, k] - array[:, 0] for k, form in enumerate(forms) if k}
    return {form: number(values, gain["tuned"]) for form, values in gain.items()}
