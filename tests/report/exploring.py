"""A study of nothing but what a reader explores, and ways to use its page and to know what it must say."""

import numpy as np
import pytest

from tests.report.synthetic import only_sections, synthetic_results

GRID = 4
LAYERS = 3
SLOTS = 2


def only_explored(**sizes):
    results = synthetic_results(pictures=3, grid=GRID, image_size=32, layers=LAYERS, vision_prompts=SLOTS, **sizes)
    return only_sections(results, "explore", "causal")


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


def near(text, expected):
    """Equal up to how the page rounds a number, to three digits."""
    return float(text) == pytest.approx(expected, rel=6e-3, abs=1e-9)


class Expected:
    """What the page must say, from the results' arrays."""

    def __init__(self, results):
        self.explore = results.explore
        self.predictions = results.predictions

    def pair(self, image, label):
        rows = (self.explore.pairs == (image, label)).all(1)
        return int(np.flatnonzero(rows)[0])

    def value(self, model, name, *place):
        """A map's value at a patch, the last of the place."""
        maps = self.explore.models[model]
        rest = place[:-1]
        unit = np.float64(getattr(maps, f"{name}_scale")[rest]) / 255
        lowest = getattr(maps, f"{name}_lowest", None)
        return float(getattr(maps, name)[place] * unit + (0 if lowest is None else lowest[rest]))

    def share(self, model, pair, relevancy):
        return 100 * relevancy / self.explore.models[model].relevancy_sum[pair]
