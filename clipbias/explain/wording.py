"""Numbers of a study in words: changes with their intervals, shares, reasons."""

from collections.abc import Callable, Iterable

from clipbias.explain.uncertainty import Estimate

# Outcomes by name, their units, and digits.
OUTCOMES = ("accuracy", "log_likelihood")
UNITS = {"accuracy": ("points", 1), "log_likelihood": ("nats", 3)}


def with_interval(number: Estimate, text: Callable[[float], str]) -> str:
    """`5.3 (3.1 to 7.5)`: a number with its interval, where it has any."""
    if number.low is None or number.high is None:
        return text(number.value)
    return f"{text(number.value)} ({text(number.low)} to {text(number.high)})"


def change(number: Estimate, outcome: str) -> str:
    """A change with its interval, without its unit."""
    return with_interval(number, f"{{:+z.{UNITS[outcome][1]}f}}".format)


def amount(number: Estimate, outcome: str) -> str:
    """A change with its unit and interval."""
    value, _, interval = change(number, outcome).partition(" ")
    return " ".join(filter(None, [value, UNITS[outcome][0], interval]))


def percent(share: Estimate | None) -> str:
    """A share of a gain with its interval, in whole percent."""
    if share is None:
        return "an unknown part"
    value, _, interval = with_interval(in_points(share), "{:z.0f}".format).partition(" ")
    return f"{value} % {interval}".rstrip()


def in_points(share: Estimate) -> Estimate:
    """A share of images in percent."""
    low, high = (None if end is None else 100 * end for end in (share.low, share.high))
    return Estimate(100 * share.value, low, high)


def by_reason(reasons: Iterable[tuple[str, str | None]]) -> list[str]:
    """`A, B: why`, one line for each reason, of pairs of a label and a reason; without one there is nothing to say."""
    labels: dict[str, list[str]] = {}
    for label, reason in reasons:
        if reason:
            labels.setdefault(reason, []).append(label)
    return [f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in labels.items()]
