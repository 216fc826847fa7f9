"""A study of nothing but what a reader explores, and ways to use its page and to know what it must say."""

import numpy as np
import pytest

from tests.report.synthetic import synthetic_results

KEPT = ("explore", "predictions", "factorial")
GRID, LAYERS, SLOTS = 4, 3, 2


def only_explored(**sizes):
    found = synthetic_results(pictures=3, grid=GRID, image_size=32, layers=LAYERS, vision_prompts=SLOTS, **sizes)
    found.arrays = {name: array for name, array in found.arrays.items() if name.split("/")[0] in KEPT}
    always = ("dataset", "clip", "config")
    found.scalars = {k: v for k, v in found.scalars.items() if k in (*KEPT, *always) or not isinstance(v, dict)}
    return found


def read(browser):
    return browser.evaluate("document.getElementById('explore-read').textContent")


def unfold(browser):
    browser.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")


def tab_to(browser, identifier):
    """Reaches an element with Tab alone."""
    at = f"[document.activeElement.id, document.activeElement.dataset.place].includes('{identifier}')"
    for _ in range(80):
        if browser.evaluate(at):
            return
        browser.press("Tab")
    pytest.fail(f"Tab never reaches {identifier}")


def pick(browser, name, value):
    """Changes a choice as a reader does."""
    browser.evaluate(
        f"(() => {{ const e = document.getElementById('explore-{name}'); e.value = '{value}';"
        " for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind)); })()"
    )


def near(said, expected):
    """Equal up to how the page rounds a number, to three digits."""
    return float(said) == pytest.approx(expected, rel=6e-3, abs=1e-9)


class Expected:
    """What the page must say, from the results' arrays."""

    def __init__(self, results):
        self.arrays = results.arrays

    def pair(self, image, label):
        rows = (self.arrays["explore/pairs"] == (image, label)).all(1)
        return int(np.flatnonzero(rows)[0])

    def value(self, model, name, *place):
        """A map's value at a patch, the last of the place."""
        path, rest = f"explore/{model}/{name}", place[:-1]
        unit = np.float64(self.arrays[f"{path}_scale"][rest]) / 255
        lowest = self.arrays.get(f"{path}_lowest")
        return float(self.arrays[path][place] * unit + (0 if lowest is None else lowest[rest]))

    def share(self, model, pair, relevancy):
        return 100 * relevancy / self.arrays[f"explore/{model}/relevancy_sum"][pair]
