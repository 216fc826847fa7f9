"""Wrong pictures of a plot, class names of the page, names of uploads, settings, and arguments of tools."""

from typing import Any

import numpy as np

import clipbias
from clipbias.app import ZERO_SHOT, Bench
from clipbias.settings import from_config
from configs import table1
from tests.wrong_inputs.place import Case, Place, case, pure

LEVELS = np.zeros((2, 20, 16, 3), np.uint8)


bench = case(lambda place, names: Bench(place.clip, {}).bind(ZERO_SHOT, names))


@case
def plotted(place: Place, pictures: Any, **options: Any) -> None:
    place.tuned("ivlp").plot(pictures, **options)


@case
def sweeping(place: Place, **settings: Any) -> None:
    """Settings of `table1`."""
    config = table1.get_config("imbalanced")
    config.update(settings)
    from_config(table1.Table1Settings, config)


CASES: list[Case] = [
    plotted("pictures: 2, maps: 1", LEVELS, maps=np.ones((1, 16))),
    plotted("pictures: 2, titles: 1", LEVELS, titles=["a"]),
    bench("there are 0 class names; write from 1 to 1000, one per line", "  \n"),
    ("does not fit 'demo'", lambda place: Bench(clipbias.load("demo"), {"a": place.tuned()})),
    pure("the model is .*; give what clipbias.fit or", clipbias.push_to_hub, "me/task", "bias"),
    *(
        ("is no name of a repository", lambda place, name=name: clipbias.push_to_hub(name, place.tuned("zero_shot")))
        for name in ("small", "me/small@main", "")
    ),
    sweeping("concentration is 0.0; it must be a finite number of at least 0.01", concentration=0.0),
    sweeping(
        "the rates of a.json were selected elsewhere; give --config.rates_file=None",
        hold_out_shot=True,
        rates_file="a.json",
    ),
]
