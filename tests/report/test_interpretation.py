"""The page about what was learned, from numbers written by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.report.interpretation import write_interpretation
from clipbias.report.interpretation_figures import norm_figure, projection_figures
from tests.report.markup import Page


def findings(datasets: int = 3, seeds: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    names = [(f"bias-{d}-{s}", f"data/{d}<", s) for d in range(datasets) for s in range(seeds)]
    nearest = [{"id": 3, "word": "<b>photo", "distance": 0.0}, {"id": 4, "word": "pho-", "distance": 1.25}]
    return {
        "format": 1,
        "clip": {"name": "tiny", "fingerprint": "f", "text_layers": 2, "vision_layers": 3, "vocabulary": 100},
        "adapters": [
            {
                "name": name,
                "source": f"{name}.safetensors",
                "method": "bias",
                "dataset": dataset,
                "shots": 4,
                "seed": seed,
                "accuracy": None if seed else 71.5,
                "parameters": {"total": 1234},
            }
            for name, dataset, seed in names
        ],
        "words": [
            {
                "adapter": names[0][0],
                "layer": layer,
                "class": None,
                "prompt": 0,
                "mean_distance": 2.0,
                "nearest": nearest,
            }
            for layer in (0, 1)
        ],
        "norms": [
            {
                "adapter": name,
                "tower": "vision",
                "part": "bias",
                "layer": layer,
                "prompt": None,
                "norm": layer + 1.0 + seed,
                "tokens_norm": 10.0 if layer else None,
            }
            for name, _, seed in names
            for layer in range(3)
        ],
        "projections": [
            {
                "tower": "vision",
                "arrays": "vision_bias [3, 8]",
                "adapters": [name for name, _, _ in names],
                "pca": rng.normal(size=(len(names), 2)).tolist(),
                "explained": [0.7, 0.2],
                "tsne": rng.normal(size=(len(names), 2)).tolist(),
                "perplexity": 1.5,
                "silhouette": {"dataset": 0.5, "method": None, "seed": -0.1},
                "sentence": "6 points separate.",
            }
        ],
        "remarks": ["one: left out."],
    }


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_page_and_its_files(tmp_path: Path) -> None:
    found = findings()
    text = write_interpretation(found, tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "<b>photo" not in text and "&lt;b&gt;photo (0), pho- (1.25)" in text
    assert sum(source.startswith("data:image/png") for source in page.links) == 2
    assert "6 points separate." in text and "one: left out." in text and "6 adapters of tiny" in text
    assert json.loads((tmp_path / "interpretation.json").read_text()) == found
    words = read(tmp_path / "words.csv")
    assert [(row["layer"], row["rank"], row["token"]) for row in words] == [
        ("1", "1", "3"),
        ("1", "2", "4"),
        ("2", "1", "3"),
        ("2", "2", "4"),
    ]
    norms = read(tmp_path / "norms.csv")
    assert len(norms) == 18 and norms[0]["norm"] == "1.0" and norms[0]["tokens_norm"] == ""
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    stems = ("norms", "projection_1_vision")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("pdf", "png", "csv")}


def test_norms_are_averaged_over_the_adapters_of_a_method() -> None:
    (axes,) = norm_figure(findings()).figure.axes
    own, tokens = axes.lines
    np.testing.assert_allclose(own.get_ydata(), [1.5, 2.5, 3.5])
    np.testing.assert_allclose(tokens.get_xdata(), [2, 3])
    assert norm_figure({**findings(), "norms": []}) is None


def test_points_have_a_colour_per_dataset_and_a_marker_per_seed() -> None:
    found = findings(datasets=11, seeds=3)
    (drawing,) = projection_figures(found)
    (axes,) = drawing.figure.axes
    np.testing.assert_allclose([line.get_xydata()[0] for line in axes.lines], found["projections"][0]["pca"])
    assert len({(line.get_color(), line.get_fillstyle()) for line in axes.lines}) == 11
    assert len({line.get_marker() for line in axes.lines}) == 3
    legend = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert legend[0] == "data/0<" and legend[-3:] == ["seed 0", "seed 1", "seed 2"]
    np.testing.assert_allclose(drawing.numbers[["pca_1", "pca_2"]], found["projections"][0]["pca"])
    assert "70 % of variance" in axes.get_xlabel()
