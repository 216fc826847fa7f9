"""What predicts the shares that constants keep: the regression against its textbook form, and the forms it rests on."""

import json

import numpy as np
import pandas as pd
import pytest

import clipbias
from clipbias import data
from tests.documents import ROOT
from tools import what_predicts
from tools.what_predicts import FACTORS, form_logits, regress


def table(noise: float, rows: int = 200) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    columns = {name: draw.choice([1, 2, 4], rows) for name in FACTORS}
    columns["dataset"] = draw.choice(["demo/digits", "demo/fashion"], rows)
    frame = pd.DataFrame(columns)
    shares = 0.6 - 0.2 * np.log2(frame["prompts"]) + 0.1 * (frame["dataset"] == "demo/fashion")
    return frame.assign(**{"calibrated sure": True, "calibrated kept": shares + noise * draw.normal(size=rows)})


def test_coefficients_are_those_of_the_normal_equations_with_their_errors() -> None:
    frame = table(0.15)
    frame.loc[:9, "calibrated sure"] = False
    frame.loc[:9, "calibrated kept"] = 100.0
    fit = regress(frame, "calibrated kept")
    used = frame[10:]
    x = np.stack(
        [np.ones(190), *(np.log2(used[name]) for name in FACTORS), used["dataset"] == "demo/fashion"], axis=1
    ).astype(float)
    y = used["calibrated kept"].to_numpy()
    inverse = np.linalg.inv(x.T @ x)
    expected = inverse @ x.T @ y
    rest = y - x @ expected
    errors = np.sqrt(np.diag(inverse) * (rest @ rest) / (190 - x.shape[1]))
    numbers = list(fit["coefficients"].values())
    np.testing.assert_allclose([number["value"] for number in numbers], expected, atol=1e-10)
    halves = [(number["high"] - number["low"]) / 2 for number in numbers]
    np.testing.assert_allclose(halves, 1.96 * errors, rtol=0.25)
    assert fit["adapters"] == 190 and fit["mean"] == pytest.approx(y.mean())
    assert fit["explained"] == pytest.approx(1 - (rest @ rest) / ((y - y.mean()) ** 2).sum())


def test_what_was_planted_is_recovered() -> None:
    whole = regress(table(0.0), "calibrated kept")
    coefficients = whole["coefficients"]
    assert coefficients["prompts"]["value"] == pytest.approx(-0.2) and coefficients["demo/fashion"][
        "value"
    ] == pytest.approx(0.1)
    assert all(abs(coefficients[name]["value"]) < 1e-9 for name in FACTORS[1:])
    assert "prompts        -0.20 (-0.20 to -0.20)" in what_predicts.words(
        regress(table(0.0), "calibrated kept"), "kept"
    )


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:the (tuned model|training loss)")
def test_a_learned_constant_is_kept_and_lost_whole() -> None:
    demo = clipbias.load("demo")
    dataset = data.load("demo/digits")
    model = clipbias.fit(demo, "bias_by_kind", dataset, shots=1, epochs=2, learning_rate=1.0, progress=False)
    task = model.task
    learnables = model.learnables
    test = dataset.split("test").subset(np.arange(0, 1120, 56))
    frozen, with_constant, lost, tuned = np.moveaxis(
        form_logits(task, learnables, task.init(), dataset.split("train"), test), 1, 0
    )
    np.testing.assert_allclose(with_constant, tuned, atol=1e-3)
    np.testing.assert_allclose(lost, frozen, atol=1e-3)
    images = demo.preprocess([test.image(index) for index in range(len(test))])
    np.testing.assert_allclose(tuned, task.logits(demo.params, learnables, images), atol=1e-3)
    assert np.abs(tuned - frozen).max() > 0.1


def test_the_page_says_what_was_found() -> None:
    images = ROOT / "docs" / "images"
    frame = pd.read_csv(images / "predictors.csv")
    fits = json.loads((images / "predictors.json").read_text(encoding="utf-8"))
    page = " ".join((ROOT / "docs" / "report.md").read_text(encoding="utf-8").split())
    assert len(frame) == 72 and set(frame["classes"]) == {10, 60}
    for share, numbers in fits.items():
        again = regress(frame, share)
        for name, fit in numbers["coefficients"].items():
            for end, value in fit.items():
                np.testing.assert_allclose(again["coefficients"][name][end], value, atol=1e-9)

    def said(share: str, name: str, sign: int = 1) -> str:
        fit = fits[share]["coefficients"][name]
        low, high = sorted((sign * fit["low"], sign * fit["high"]))
        return f"{sign * fit['value']:.2f} ({low:.2f} to {high:.2f})"

    kept_share, lost = "calibrated kept", "calibrated lost"
    assert f"{fits[kept_share]['adapters']} of them have a sure gain" in page
    assert f"lower the kept share by {said(kept_share, 'depth', -1)}" in page
    assert f"change it by {said(kept_share, 'prompts')}" in page
    clothes, emoji = (said(lost, f"demo/{name}", -1) for name in ("fashion", "emoji"))
    assert f"by {clothes} less on clothes and by {emoji} less on emoji" in page
    sure = {name for name, fit in fits[kept_share]["coefficients"].items() if fit["low"] > 0 or fit["high"] < 0}
    assert sure == {"depth"}
    accuracy = said("accuracy kept", "depth", -1).replace(" (", ", ").rstrip(")")
    assert f"with {fits['accuracy kept']['adapters']} adapters, the same holds for layers ({accuracy})" in page
    assert all(fits["accuracy lost"]["coefficients"][f"demo/{name}"]["high"] < 0 for name in ("fashion", "emoji"))
