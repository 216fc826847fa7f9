"""The figures of a study: each one's frame is computed anew in plain loops, and what is drawn is the frame.

Then maps over single pictures: the heat, and the prompts' share.
"""

import dataclasses
import functools
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from clipbias.analysis.attention import AttentionVariant
from clipbias.analysis.dataset_sections import GROUPS
from clipbias.analysis.faithfulness import MAPS
from clipbias.report import study_figures, style
from clipbias.report.overlay import Overlay, heat_map, overlay_figure
from tests.report.synthetic import synthetic_results

TEXT = ("SOS", "prompts", "words", "category", "“.”", "EOS")
TYPES = ("sos", "prompt", "words", "category", "dot", "eos")
THINGS = {"text": "text tokens", "vision": "patches and vision prompts"}
SIDES = {"zero_shot": "zero-shot", "tuned": "tuned"}


def each(numbers, *axes, **labels):
    """A row for each number of an array, or of a mean with its standard error."""
    mean = np.asarray(getattr(numbers, "mean", numbers) if not isinstance(numbers, np.ndarray) else numbers, float)
    for place in np.ndindex(mean.shape):
        error = 1.959963984540054 * numbers.standard_error[place] if hasattr(numbers, "standard_error") else math.nan
        value = mean[place]
        yield {**labels, **{name: i + 1 for name, i in zip(axes, place, strict=True)}, "value": value} | {
            "low": value - error,
            "high": value + error,
        }


def relevancy_rows(study, part, groups=("corrected",)):
    for key, result in study.sections["relevancy"].items():
        for group in groups:
            averaged = result.groups[group]
            for side in SIDES:
                place = {"model": key, "group": group, "side": side}
                row = getattr(getattr(averaged, part), side)
                last = np.flatnonzero(row.mean).max()
                for line in each(row, "index", **place):
                    at = line["index"] - 1
                    if part == "vision":
                        prompt = at >= study.clip.patches
                        named = {"type": "prompts" if prompt else "patches", "panel": "prompts" if prompt else "tokens"}
                    else:
                        types = getattr(result, side).index_types
                        named = {"type": types[at] if at < len(types) else "", "panel": "tokens"}
                    if part == "vision" or at <= last:
                        yield {**line, **named, "index": at}
                names = TEXT if part == "text" else ("patches", "prompts")
                for line in each(getattr(getattr(averaged, f"{part}_types"), side), "index", **place):
                    yield {**line, "type": names[line["index"] - 1], "panel": "types", "index": -1}


def group_rows(study):
    for part, panel in THINGS.items():
        for row in relevancy_rows(study, part, GROUPS):
            if row["panel"] == "types":
                yield {**row, "panel": panel}
    for key, result in study.sections["relevancy"].items():
        for group, averaged in result.groups.items():
            place = {"model": key, "group": group, "side": "", "panel": "change of patches"}
            yield from each(averaged.order, "index", type="rank correlation", **place)
            yield from each(averaged.variation, "index", type="total variation", **place)


def decomposition_rows(study):
    panels = {"a  mass on prompts": ("prompt_mass", "pooled_mass"), "b  relative size": ("norm_share",)}
    panels |= {"c  constancy": ("constancy", "bias_likeness")}
    for tower, result in study.sections["decomposition"]["ivlp"].towers.items():
        place = {"model": "ivlp", "tower": tower, "depth": result.depth}
        for panel, series in panels.items():
            for name in series:
                axes = ("layer", "head") if "mass" in name else ("layer",)
                yield from each(getattr(result, name), *axes, panel=panel, series=name, **place)
        cosine = {"panel": "d  cosine to a bias", "series": "bias_cosine/bias"}
        yield from each(result.bias_cosine["bias"], "layer", **cosine, **place)


def text_attention_rows(study):
    for key, result in study.sections["text_attention"].items():
        for row in each(result.shares, "layer", "head", "type", model=key):
            yield {**row, "type": TYPES[row["type"] - 1]}


def vision_attention_rows(study):
    for key, result in study.sections["vision_attention"].items():
        for variant in ("clip", "without_prompt", "with_prompt"):
            for quantity in ("distance", "entropy", "cls_entropy") if getattr(result, variant) else ():
                place = {"model": key, "variant": variant, "quantity": quantity}
                yield from each(getattr(getattr(result, variant), quantity), "layer", "head", **place)


def correlation_rows(study):
    for key, result in study.sections["similarity"].models.items():
        yield from each(result.rank_correlation, "layer", model=key)


def faithfulness_rows(study):
    for key, result in study.sections["faithfulness"].models.items():
        for direction in ("positive", "negative"):
            for target in ("predicted", "true"):
                for name in MAPS:
                    place = {"model": key, "direction": direction, "target": target, "map": name}
                    curve = result.maps[name][direction][target].accuracy
                    for fraction, accuracy in zip(study.sections["faithfulness"].fractions, curve, strict=True):
                        yield {**place, "removed": 100 * fraction, "value": 100 * accuracy}


def side_label(row):
    return SIDES[row["side"]]


def mean_label(row):
    return f"{'zero-shot' if row['model'] == 'zero_shot' else 'tuned'}, mean over heads"


SERIES = {
    "prompt_mass": "mean over queries",
    "pooled_mass": "query that is pooled",
    "norm_share": "size",
    "constancy": "constant token by token",
    "bias_likeness": "constant as one vector",
    "bias_cosine/bias": "cosine to Bias tuning",
}
# By figure: its rows, the columns whose values have a row and a column of panels, and the label of a row's line.
FIGURES = {
    "text_relevancy": (lambda study: relevancy_rows(study, "text"), ["model"], ["panel"], side_label),
    "vision_relevancy": (lambda study: relevancy_rows(study, "vision"), ["model"], ["panel"], side_label),
    "relevancy_groups": (group_rows, ["model"], ["panel"], None),
    "decomposition": (decomposition_rows, ["model", "tower"], ["panel"], lambda row: SERIES[row["series"]]),
    "text_attention": (text_attention_rows, [], ["model"], lambda row: TEXT[TYPES.index(row["type"])]),
    "vision_attention": (vision_attention_rows, ["model", "variant"], ["quantity"], mean_label),
    "correlation": (correlation_rows, [], ["model"], None),
    "faithfulness": (
        faithfulness_rows,
        ["model"],
        ["direction", "target"],
        lambda row: study_figures.MAP_NAMES[row["map"]],
    ),
}
OTHERS = ("similarity_figures", "examples_figure")
EVERY = [*(f"{name}_figure" for name in FIGURES), *OTHERS]


@pytest.fixture(scope="module")
def study():
    return synthetic_results()


@pytest.fixture(scope="module")
def drawn(study):
    """Draws each figure of the study once for all tests that look at it."""

    @functools.cache
    def draw_once(name):
        made = getattr(study_figures, name)(study)
        return made if isinstance(made, list) else [made]

    return draw_once


@pytest.mark.parametrize("name", FIGURES)
def test_the_frame_is_an_independent_computations(study, drawn, name):
    (drawing,) = drawn(f"{name}_figure")
    expected = pd.DataFrame(FIGURES[name][0](study))[list(drawing.numbers.columns)]
    keys = [column for column in expected if column not in ("value", "low", "high")]
    both = [frame.sort_values(keys).reset_index(drop=True) for frame in (drawing.numbers, expected)]
    pd.testing.assert_frame_equal(*both, check_dtype=False, rtol=1e-5, atol=1e-7)


def line_of(axes, label):
    """The line with a label, [2, n], and its intervals' ends, [n, 2], or none; the only one without a label."""
    for container in axes.containers:
        if label in (None, container.get_label()):
            line, _, bars = container.lines
            return np.asarray(line.get_data(), float), [seg[:, 1] for part in bars for seg in part.get_segments()]
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(line.get_data(), float), None


def ends(part):
    return part[["low", "high"]].to_numpy(float)


def check_bars(axes, part):
    """A bar for each row in the place of its type, in the colour of its side, with its interval."""
    types = [label.get_text() for label in axes.get_yticklabels()]
    for bar, row in zip(axes.patches, part.itertuples(), strict=True):
        assert bar.get_width() == pytest.approx(row.value, rel=1e-6)
        assert types[round(bar.get_y() + bar.get_height() / 2)] == row.type
        assert to_hex(bar.get_facecolor()) == to_hex(style.UNTUNED if row.side == "zero_shot" else style.TUNED)
    whiskers = [bars for container in axes.containers if hasattr(container, "lines") for bars in container.lines[2]]
    np.testing.assert_allclose([bars.get_segments()[0][:, 0] for bars in whiskers], ends(part), rtol=1e-5, atol=1e-7)


def check_points(axes, part):
    """A container for each group and side, in this order; a point in the place of each type."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    containers = iter(axes.containers)
    for group in GROUPS:
        for side in dict.fromkeys(part["side"]):
            of_both = part[(part["group"] == group) & (part["side"] == side)]
            line, _, (bars,) = next(containers).lines
            np.testing.assert_allclose(np.asarray(line.get_xdata(), float), of_both["value"], rtol=1e-6)
            np.testing.assert_allclose([seg[:, 0] for seg in bars.get_segments()], ends(of_both), rtol=1e-5)
            assert [names[round(y)] for y in line.get_ydata()] == list(of_both["type"])


def check_lines(axes, part, label):
    x = next(name for name in ("layer", "removed", "index") if name in part)
    shown = part[part["type"] != "sos"] if x == "index" else part
    labels = [label(row) if label else None for row in shown.to_dict("records")]
    for name in dict.fromkeys(labels):
        of_line = shown[[each == name for each in labels]]
        mean = of_line.groupby(x)[["value", "low", "high"]].mean() if "low" in of_line else of_line.set_index(x)
        if not mean["value"].any():
            assert name not in axes.get_legend_handles_labels()[1]  # a token type that is not there
            continue
        (xs, ys), whiskers = line_of(axes, name)
        np.testing.assert_allclose(xs, mean.index)
        np.testing.assert_allclose(ys, mean["value"], rtol=1e-6)
        if whiskers is not None and "low" in mean:
            np.testing.assert_allclose(whiskers, ends(mean), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", FIGURES)
def test_what_is_drawn_is_the_frame(drawn, name):
    """Each panel in its place, each line under its name with its intervals."""
    (drawing,) = drawn(f"{name}_figure")
    _, by_row, by_column, label = FIGURES[name]
    frame = drawing.numbers.copy()
    rows, columns = (
        frame[keys].astype(str).agg(" ".join, axis=1) if keys else pd.Series("", frame.index)
        for keys in (by_row, by_column)
    )
    across = len(columns.unique()) + 2 * (name == "vision_relevancy")  # its maps
    seen = 0
    for down, row in enumerate(rows.unique()):
        for place, column in enumerate(columns.unique()):
            part = frame[(rows == row) & (columns == column)]
            if name == "vision_relevancy":
                place = ("tokens", "prompts", "types").index(column)
            axes = drawing.figure.axes[down * across + place]
            assert axes.axison != part.empty
            if name == "relevancy_groups":
                check_points(axes, part)
            elif column == "types":
                check_bars(axes, part)
            elif len(part):
                check_lines(axes, part, label)
            seen += len(part)
    assert seen == len(frame)


def test_models_without_samples_and_towers_without_cls():
    results = synthetic_results()
    relevancy = results.sections["relevancy"]
    relevancy["bias"] = dataclasses.replace(relevancy["bias"], **dict.fromkeys(GROUPS))
    drawing = study_figures.text_relevancy_figure(results)
    assert "Bias tuning: 0 images" in drawing.caption and set(drawing.numbers["model"]) == {"ivlp"}
    seen = results.sections["vision_attention"]
    for key, attention in seen.items():
        bare = {name: AttentionVariant(**{**each, "cls_entropy": None}) for name, each in attention.variants.items()}
        seen[key] = dataclasses.replace(attention, no_cls_entropy="There is no [cls].", **bare)
    clip = dataclasses.replace(results.clip, tokens=results.clip.patches)
    drawing = study_figures.vision_attention_figure(dataclasses.replace(results, clip=clip))
    assert len(drawing.figure.axes) == 4 * 2 and drawing.caption.endswith("There is no [cls].")
    assert "attention over 9 patches, ln 9 = 2.1972" in drawing.caption


def test_several_datasets_have_a_panel_each(study):
    other = synthetic_results(dataset="demo/fashion", seed=1)
    made = study_figures.dataset_figures([study, other], "ivlp", "IVLP")
    for drawing, part in zip(made, ("text", "vision"), strict=True):
        titles = [axes.get_title(loc="left") for axes in drawing.figure.axes]
        assert titles == ["demo/digits (n = 27)", "demo/fashion (n = 27)"]
        for axes, results in zip(drawing.figure.axes, (study, other), strict=True):
            rows = pd.DataFrame(row for row in relevancy_rows(results, part) if row["model"] == "ivlp")
            of_dataset = drawing.numbers[drawing.numbers["dataset"] == results.dataset.name]
            pd.testing.assert_series_equal(
                *(frame["value"].reset_index(drop=True) for frame in (rows, of_dataset)), rtol=1e-6
            )
            check_lines(axes, rows[rows["panel"] != "types"], side_label)
    assert study_figures.dataset_figures([study], "nobody", "") == []


def test_similarity_draws_three_rows_per_picture(study, drawn):
    maps, _ = drawn("similarity_figures")
    panels = np.reshape(maps.figure.axes[:48], (6, 8))
    for picture in range(4):
        block = panels[picture // 2 * 3 :][:3, picture % 2 * 4 :][:, :4]
        for row, name in zip(block, ("zero_shot_cls", "cls", "prompts"), strict=True):
            for layer, axes in enumerate(row[1:]):
                expected = getattr(study.sections["similarity"].models["ivlp"], name)[picture, layer]
                np.testing.assert_array_equal(np.asarray(axes.images[-1].get_array()), expected)
    # Numbers are means over the pixels of patches, eight along a side.
    row = maps.numbers.query("map == 'cls' and picture == 1 and layer == 3 and row == 2 and column == 3").iloc[0]
    pixels = study.sections["similarity"].models["ivlp"].cls[1, 2, 8:16, 16:24]
    assert row["value"] == pytest.approx(pixels.mean(), rel=1e-6) and row["rotation"] == 90


def test_examples_show_every_model_with_its_prediction(study, drawn):
    (drawing,) = drawn("examples_figure")
    titles = [axes.get_title() for axes in drawing.figure.axes]
    logits = study.sections["examples"].models["ivlp"].logits[0]
    share = np.exp(logits) / np.exp(logits).sum()
    mark = "✓" if share.argmax() == study.sections["examples"].labels[0] else "✗"
    assert f"IVLP {mark}\nclass {share.argmax()}, {100 * share.max():.0f} %" in titles
    for key, maps in study.sections["examples"].models.items():  # noqa: B007, PERF102 (a query reads `key`)
        for picture in range(2):
            rows = drawing.numbers.query("model == @key and picture == @picture")
            words = maps.words[picture]
            expected = [*maps.vision[picture], *maps.text[picture, : len(words)]]
            np.testing.assert_array_equal(rows["relevancy"], expected)
            prompts = len(maps.vision[picture]) - 9
            assert list(rows["part"]) == ["patch"] * 9 + ["prompt"] * prompts + ["text"] * len(words)


def test_areas_are_those_of_the_results(study):
    table = study_figures.area_table(study)
    expected = []
    for model in study.models:
        for name in MAPS:
            curves = study.sections["faithfulness"].models[model.key].maps[name]
            areas = [curves[way][to].area for way in ("positive", "negative") for to in ("predicted", "true")]
            expected.append([model.label, study_figures.MAP_NAMES[name], *(f"{100 * area:.1f}" for area in areas)])
    heads = ("Most first, predicted", "Most first, true", "Least first, predicted", "Least first, true")
    assert table.columns == ("Model", "Map", *heads) and [list(row) for row in table.body] == expected


@pytest.mark.parametrize("name", EVERY)
def test_no_text_shows_how_it_is_written_and_what_was_not_computed_is_not_drawn(drawn, name):
    """Formulas are not read in these figures, and what steers a terminal is shown as its escape: neither is meant."""
    for drawing in drawn(name):
        drawing.figure.draw_without_rendering()
        shown = [text.get_text() for text in drawing.figure.findobj(Text)]
        assert shown and not [text for text in shown if "$" in text or "\\" in text]
    assert not getattr(study_figures, name)(dataclasses.replace(synthetic_results(), sections={}))


IMAGE = np.full((12, 12, 3), 128, np.uint8)
RISING = np.linspace(0, 1, 9)


def overlay(vision=(*RISING, 0.5, 0.5), tokens=("SOS", "prompt 1", "cat", "."), title="IVLP"):
    return Overlay(title, np.array(vision), 9, tokens, np.array((9, 1, 3, 0, 0)))


@pytest.mark.parametrize(("prompts", "share"), [((0.5, 0.5), 1 / 5.5), ((5.0,) * 7, 35 / 39.5), ((), None)])
def test_a_map_has_the_patches_and_beside_it_the_prompts_share(prompts, share):
    _, above, *_ = overlay_figure(IMAGE, [overlay((*RISING, *prompts))]).axes
    np.testing.assert_array_equal(above.images[1].get_array(), heat_map(RISING, 12, 9))
    beside = [] if share is None else [f"prompts\n{100 * share:.0f} %"]
    assert [axes.get_xlabel() for axes in above.child_axes] == beside


def test_heat_peaks_where_the_relevancy_lies_and_ignores_prompts_and_a_flat_map_is_cold():
    assert not heat_map(np.ones(4), 8, 4).any()
    vision = np.zeros(9 + 2)
    vision[5], vision[9:] = 1.0, 7.0
    heat = heat_map(vision, 12, 9)
    assert heat.min() == 0 and heat.max() == 1
    rows, columns = np.nonzero(heat == heat.max())
    assert {*rows} <= {5, 6} and {*columns} <= {9, 10, 11}


def test_dollar_signs_are_no_mathematics(tmp_path):
    odd = overlay(title=r"cash $\oops$ 5 %", tokens=("SOS", "$x_", "$$", "^"))
    style.save_png(overlay_figure(IMAGE, [odd]), tmp_path / "out" / "cat.png")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cat.png"]
    assert (tmp_path / "out" / "cat.png").read_bytes()[:4] == b"\x89PNG"
