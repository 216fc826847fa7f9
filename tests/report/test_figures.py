"""The figures of a study show the numbers of its arrays: panels, lines, points, captions and CSV rows."""

import dataclasses
import functools
import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from clipbias.explain.results import GROUPS, MAPS
from clipbias.report import style
from clipbias.report.overlay import HEAT
from clipbias.report.relevancy_figures import (
    dataset_figures,
    examples_figure,
    relevancy_groups_figure,
    similarity_figures,
    text_relevancy_figure,
    vision_relevancy_figure,
)
from clipbias.report.study_figures import (
    MAP_NAMES,
    area_table,
    decomposition_figure,
    faithfulness_figure,
    text_attention_figure,
    vision_attention_figure,
)
from tests import helpers
from tests.report.synthetic import synthetic_results

EVERY = (
    *(text_relevancy_figure, vision_relevancy_figure, relevancy_groups_figure),
    *(text_attention_figure, vision_attention_figure),
    *(decomposition_figure, similarity_figures, faithfulness_figure, examples_figure),
)


NAMES = [draw.__name__ for draw in EVERY]


@pytest.fixture(scope="module")
def study():
    return synthetic_results()


@pytest.fixture(scope="module")
def drawn(study):
    """Draws each figure of the study once for all tests that look at it."""

    @functools.cache
    def draw_once(draw):
        made = draw(study)
        return made if isinstance(made, list) else [made]

    return draw_once


def relevancy_of(study, key="ivlp", group="corrected"):
    return study.relevancy[key].groups[group]


def both(average):
    return average.mean, average.standard_error


def numbers(drawing, **conditions):
    """The rows of a figure's numbers whose columns have the wanted values."""
    frame = drawing.numbers
    for name, value in conditions.items():
        frame = frame[frame[name] == value]
    return frame


def grid(drawing, *shape):
    return np.reshape(drawing.figure.axes[: math.prod(shape)], shape)


def line_of(axes, label):
    """The line with a label, [2, n], and its intervals' ends, [n, 2], or none."""
    for container in axes.containers:
        if container.get_label() == label:
            line, _, bars = container.lines
            ends = [segment[:, 1] for part in bars for segment in part.get_segments()]
            return np.asarray(line.get_data(), float), np.array(ends)
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(line.get_data(), float), None


def level(axes):
    """Where the dotted line is that a curve is compared with, or nothing."""
    return [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]


def assert_line(axes, label, mean, error=None):
    """A line with its means and intervals of 1.96 standard errors."""
    (_, shown), ends = line_of(axes, label)
    np.testing.assert_allclose(shown, mean, rtol=1e-6)
    if error is not None:
        limits = np.stack([mean - 1.96 * error, mean + 1.96 * error], axis=1)
        np.testing.assert_allclose(ends, limits, rtol=1e-5, atol=1e-7)


def assert_bars(axes, study, part):
    """Pairs of bars by kind of token: zero-shot's and the tuned model's."""
    for side, colour in (("zero_shot", style.ZERO_SHOT), ("tuned", style.TUNED)):
        bars = [bar for bar in axes.patches if to_hex(bar.get_facecolor()) == to_hex(colour)]
        expected = getattr(getattr(relevancy_of(study), part), side).mean
        np.testing.assert_allclose([bar.get_width() for bar in bars], expected, rtol=1e-6)
        texts = [text.get_text() for text in axes.texts]
        assert {f"{value:.2f}" for value in expected} <= set(texts)


def test_text_relevancy_draws_both_models_without_sos_and_sums_with_it(study, drawn):
    (drawing,) = drawn(text_relevancy_figure)
    tokens, kinds = drawing.figure.axes[:2]
    for side, label in (("zero_shot", "zero-shot"), ("tuned", "tuned")):
        mean, error = both(getattr(relevancy_of(study).text, side))
        length = np.flatnonzero(mean).max() + 1
        assert_line(tokens, label, mean[1:length], error[1:length])
        np.testing.assert_array_equal(line_of(tokens, label)[0][0], range(1, length))
    assert_bars(kinds, study, "text_kinds")
    assert [text.get_text() for text in kinds.get_yticklabels()] == ["SOS", "prompts", "words", "category", "“.”"]
    assert [patch.get_x() for patch in tokens.patches] == [0.5, 1.5]  # the prompts


def test_relevancy_captions_state_the_samples_and_the_normalisation(drawn):
    for drawing in (*drawn(text_relevancy_figure), *drawn(vision_relevancy_figure)):
        assert "zero-shot gets wrong and the tuned model right" in drawing.caption
        assert "IVLP: 27 images" in drawing.caption
        assert "divided by its sum" in drawing.caption
        assert "Zero-shot's text is “a photo of a {}.”." in drawing.caption


def test_vision_relevancy_has_patches_and_prompts_on_one_scale_and_maps(study, drawn):
    (drawing,) = drawn(vision_relevancy_figure)
    (patches, prompts, kinds, before, after), bias = grid(drawing, 2, 5)
    vision = relevancy_of(study).vision
    tuned, error = both(vision.tuned)
    original = vision.zero_shot
    assert_line(patches, "tuned", tuned[:9], error[:9])
    assert_line(patches, "zero-shot", *both(original))
    assert_line(prompts, "tuned", tuned[9:], error[9:])
    assert patches.get_ylim() == prompts.get_ylim() and not bias[1].axison
    np.testing.assert_allclose(np.asarray(after.images[0].get_array()).ravel(), tuned[:9], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(before.images[0].get_array()).ravel(), original.mean, rtol=1e-6)
    assert before.images[0].norm.vmax == after.images[0].norm.vmax
    assert_bars(kinds, study, "vision_kinds")
    kinds_of = numbers(drawing, model="ivlp", side="tuned")
    assert list(kinds_of["kind"]) == ["patches"] * 9 + ["prompts"] * 2 + ["patches", "prompts"]


def test_groups_of_images_are_beside_each_other(study, drawn):
    (drawing,) = drawn(relevancy_groups_figure)
    text, vision, changes = drawing.figure.axes[:3]
    for axes, part in ((text, "text_kinds"), (vision, "vision_kinds")):
        containers = iter(axes.containers)
        for group in GROUPS:
            for side in ("zero_shot", "tuned"):
                points = next(containers).lines[0]
                expected = getattr(getattr(relevancy_of(study, group=group), part), side).mean
                np.testing.assert_allclose(np.asarray(points.get_xdata(), float), expected, rtol=1e-6)
    for group, container in zip(GROUPS, changes.containers, strict=True):
        relevancy = relevancy_of(study, group=group)
        expected = [relevancy.order.mean[0], relevancy.variation.mean[0]]
        np.testing.assert_allclose(np.asarray(container.lines[0].get_xdata(), float), expected, rtol=1e-6)
    assert "IVLP: corrected 27 images, both right 11 images, all 50 images;" in drawing.caption
    row = numbers(drawing, model="bias", group="all", side="tuned", kind="words").iloc[0]
    mean, error = (values[2] for values in both(relevancy_of(study, "bias", "all").text_kinds.tuned))
    row_ends = [float(row[name]) for name in ("value", "low", "high")]
    np.testing.assert_allclose(row_ends, [mean, mean - 1.96 * error, mean + 1.96 * error], rtol=1e-5)


def test_a_model_without_samples_is_left_out_and_counted():
    results = synthetic_results()
    results.relevancy["bias"] = dataclasses.replace(results.relevancy["bias"], **dict.fromkeys(GROUPS))
    drawing = text_relevancy_figure(results)
    assert "Bias tuning: 0 images" in drawing.caption and numbers(drawing, model="bias").empty


def test_several_datasets_have_a_panel_each(study):
    other = synthetic_results(dataset="demo/fashion", seed=1)
    text, vision = dataset_figures([study, other], "ivlp", "IVLP")
    assert [drawing.name for drawing in (text, vision)] == ["fig2_text_relevancy_ivlp", "fig3_vision_relevancy_ivlp"]
    assert [axes.get_title(loc="left") for axes in text.figure.axes] == [
        "demo/digits (n = 27)",
        "demo/fashion (n = 27)",
    ]
    for axes, results in zip(vision.figure.axes, (study, other), strict=True):
        assert_line(axes, "tuned", *both(relevancy_of(results).vision.tuned))
    assert dataset_figures([study], "nobody", "") == []


def test_text_attention_has_a_line_for_each_kind(study, drawn):
    (drawing,) = drawn(text_attention_figure)
    names = ["SOS", "prompts", "words", "category", "“.”", "EOS"]
    for axes, (key, label) in zip(
        drawing.figure.axes, {"zero_shot": "Zero-shot", "ivlp": "IVLP", "bias": "Bias tuning"}.items(), strict=True
    ):
        assert axes.get_title(loc="left") == label
        mean, error = both(study.text_attention[key].shares)
        shown = [container.get_label() for container in axes.containers]
        assert shown == [name for name in names if name != ("words" if key == "ivlp" else "prompts")]
        for kind, name in enumerate(names):
            if name in shown:  # the mean over heads, and the mean of their intervals
                assert_line(axes, name, mean[:, :, kind].mean(1), error[:, :, kind].mean(1))
    assert "over 4 classes" in drawing.caption and "summed over the tokens" in drawing.caption
    assert "Zero-shot “a photo of a {}.”" in drawing.caption


def test_vision_attention_has_a_row_per_variant_and_a_dot_per_head(study, drawn):
    (drawing,) = drawn(vision_attention_figure)
    panels = grid(drawing, 4, 3)
    labels = [axes.get_ylabel() for axes in panels[:, 0]]
    assert labels == ["Zero-shot", "IVLP W/O Prompt", "IVLP W Prompt", "Bias tuning"]
    attention = study.vision_attention
    variants = [(key, variant) for key, result in attention.items() for variant in result.variants.values()]
    assert len(variants) == 4
    for row, (key, variant) in zip(panels, variants, strict=True):
        for axes, quantity in zip(row, ("distance", "entropy", "cls_entropy"), strict=True):
            mean, error = both(variant.quantities[quantity])
            tuned = key != "zero_shot"
            name = f"{'tuned' if tuned else 'zero-shot'}, mean over heads"
            assert_line(axes, name, mean.mean(1), error.mean(1))
            (dots,) = [line for line in axes.lines if line.get_marker() == "o"]
            np.testing.assert_allclose(dots.get_ydata(), mean.ravel(), rtol=1e-6)
            assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > mean.max()
            assert level(axes) == ([] if quantity == "distance" else [math.log(10)])
            if tuned:
                original = attention["zero_shot"].clip.quantities[quantity].mean
                assert_line(axes, "zero-shot's again", original.mean(1))
    assert "[cls] and 9 patches, ln 10 = 2.3026" in drawing.caption and "mean over 50 images" in drawing.caption


def test_a_tower_without_cls_says_that_a_curve_is_missing():
    results = synthetic_results()
    for key, attention in results.vision_attention.items():
        bare = {name: dataclasses.replace(variant, cls_entropy=None) for name, variant in attention.variants.items()}
        results.vision_attention[key] = dataclasses.replace(attention, no_cls_entropy="There is no [cls].", **bare)
    clip = dataclasses.replace(results.clip, tokens=results.clip.patches)
    drawing = vision_attention_figure(dataclasses.replace(results, clip=clip))
    assert len(drawing.figure.axes) == 4 * 2
    assert "attention over 9 patches, ln 9 = 2.1972" in drawing.caption
    assert drawing.caption.endswith("There is no [cls].")


def test_decomposition_has_a_row_per_tower_and_names_the_bias_it_compares_with(study, drawn):
    (drawing,) = drawn(decomposition_figure)
    for tower, row in zip(("vision", "text"), grid(drawing, 2, 4), strict=True):
        result = study.decomposition["ivlp"].towers[tower]
        mass, size, constancy, cosine = row
        assert mass.get_ylabel() == f"IVLP, {tower}"
        assert [level(axes) for axes in row] == [[0.5], [0.5], [], [0]]
        averages = {"mean over queries": result.prompt_mass, "query that is pooled": result.pooled_mass}
        for label, average in averages.items():
            mean, error = both(average)
            assert_line(mass, label, mean.mean(1), error.mean(1))
        dots = [line for line in mass.lines if line.get_marker() == "o"]
        np.testing.assert_allclose(dots[0].get_ydata(), result.prompt_mass.mean.ravel(), rtol=1e-6)
        assert_line(size, "size", *both(result.norm_share))
        assert_line(constancy, "constant token by token", result.constancy)
        assert_line(constancy, "constant as one vector", result.bias_likeness)
        assert_line(cosine, "cosine to Bias tuning", result.bias_cosine["bias"])
        shaded = [(patch.get_x(), patch.get_width()) for patch in constancy.patches]
        assert shaded == ([(2.5, 1.0)] if tower == "vision" else [])  # vision prompts reach the second of three layers
    mean = study.decomposition["ivlp"].towers["text"].prompt_mass.mean
    row = numbers(drawing, tower="text", series="prompt_mass", layer=3, head=2).iloc[0]
    assert row["value"] == pytest.approx(mean[2, 1])


def test_similarity_draws_three_rows_per_picture_and_the_correlation(study, drawn):
    maps, correlation = drawn(similarity_figures)
    *_, bar = maps.figure.axes
    assert bar.collections[-1].get_cmap().name == HEAT and bar.get_xlim() == (0, 1) and "least (0)" in bar.get_xlabel()
    panels = grid(maps, 6, 8)
    assert sum(bool(axes.images) for axes in panels.ravel()) == 4 * (1 + 3 * 3)
    for picture, degrees in enumerate((0, 90, 180, 270)):
        block = panels[picture // 2 * 3 :][:3, picture % 2 * 4 :][:, :4]
        titles = [axes.get_title() for axes in block[0]]
        assert titles == [f"input, {degrees}°", "layer 1", "layer 2", "layer 3"]
        for row, name in zip(block, ("zero_shot_cls", "cls", "prompts"), strict=True):
            for layer, axes in enumerate(row[1:]):
                values = np.asarray(axes.images[-1].get_array())
                expected = getattr(study.similarity.models["ivlp"], name)[picture, layer]
                np.testing.assert_array_equal(values, expected)
    (axes,) = correlation.figure.axes
    expected = study.similarity.models["ivlp"].rank_correlation
    assert level(axes) == [0]
    shown = np.asarray(axes.containers[0].lines[0].get_ydata(), float)
    np.testing.assert_allclose(shown, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(correlation.numbers["value"].tolist(), expected.mean, rtol=1e-6)


@pytest.mark.ci
def test_similarity_numbers_are_means_over_the_pixels_of_patches():
    results = synthetic_results(grid=3, image_size=12)
    ramp = np.tile(np.arange(12, dtype=np.float32) / 11, (12, 1))
    results.similarity.models["ivlp"].cls[...] = ramp
    rows = numbers(similarity_figures(results)[0], map="cls", picture=0, layer=1, row=1)
    np.testing.assert_allclose(11 * rows["value"], [1.5, 5.5, 9.5], rtol=1e-6)


def test_faithfulness_draws_every_map_in_four_ways(study, drawn):
    (drawing,) = drawn(faithfulness_figure)
    panels = grid(drawing, 3, 4)
    ways = [(direction, target) for direction in ("positive", "negative") for target in ("predicted", "true")]
    models = study.faithfulness.models
    for row, model in zip(panels, study.models, strict=True):
        for axes, way in zip(row, ways, strict=True):
            for kind in MAPS:
                curve = 100 * models[model.key].maps[kind][way[0]][way[1]].accuracy
                assert_line(axes, MAP_NAMES[kind], curve)
                assert curve.max() <= axes.get_ylim()[1] and axes.get_ylim()[0] == 0
    assert list(MAP_NAMES) == list(MAPS)


def test_areas_are_those_of_the_results(study):
    table = area_table(study)
    assert len(table.columns) == 6 and len(table.rows) == 3 * len(MAPS)
    legrad = study.faithfulness.models["bias"].maps["legrad"]
    row = next(row for row in table.rows if [*row[:2]] == ["Bias tuning", "LeGrad"])
    assert row[2] == f"{100 * legrad['positive']['predicted'].area:.1f}"


def test_examples_show_every_model_with_its_prediction(study, drawn):
    (drawing,) = drawn(examples_figure)
    titles = [axes.get_title() for axes in drawing.figure.axes]
    logits = study.examples.models["ivlp"].logits[0]
    share = np.exp(logits) / np.exp(logits).sum()
    mark = "✓" if share.argmax() == study.examples.labels[0] else "✗"
    assert f"IVLP {mark}\nclass {share.argmax()}, {100 * share.max():.0f} %" in titles
    row = numbers(drawing, picture=1, model="bias", part="text", index=2).iloc[0]
    assert (row["token"], row["name"]) == ("photo", "test/class_1/0001.png")
    assert row["relevancy"] == study.examples.models["bias"].text[1, 2]
    inches = drawing.figure.get_size_inches()[0]
    assert all(1 < inches * axes.get_position().width < 3 for axes in drawing.figure.axes if axes.get_title())


def apart(some, others):
    """How far each of some numbers is from the nearest of the others, relative to it."""
    others = np.unique(others)
    places = np.clip(np.searchsorted(others, some), 1, len(others) - 1)
    nearest = np.minimum(np.abs(others[places] - some), np.abs(others[places - 1] - some))
    return nearest / np.maximum(np.abs(some), 1e-3)


@pytest.mark.parametrize("draw", [draw for draw in EVERY if draw != examples_figure], ids=lambda draw: draw.__name__)
def test_what_is_drawn_is_what_the_csv_says(drawn, draw):
    """Every value, or of heads their means; but for maps of pixels."""
    for drawing in drawn(draw):
        frame = drawing.numbers
        every = drawing.figure.axes
        if "map" in frame and "rotation" in frame:
            continue
        shown = [np.ravel(np.asarray(line.get_data(), float)) for axes in every for line in axes.lines]
        shown += [(bar.get_width(), bar.get_height()) for axes in every for bar in axes.patches]
        shown += [np.ravel(image.get_array()) for axes in every for image in axes.images]
        keys = [name for name in frame if name not in ("head", "value", "low", "high")]
        values = frame.groupby(keys, dropna=False)["value"].mean().to_numpy(float)
        assert apart(values[np.nonzero(values)], np.concatenate(shown)).max() < 1e-5  # an absent kind of token is 0


@pytest.mark.parametrize("draw", EVERY, ids=NAMES)
def test_no_text_shows_how_it_is_written(drawn, draw):
    """Formulas are not read in these figures, and what steers a terminal is shown as its escape: neither is meant."""
    for drawing in drawn(draw):
        drawing.figure.draw_without_rendering()
        shown = [text.get_text() for text in drawing.figure.findobj(Text)]
        assert shown and not [text for text in shown if "$" in text or "\\" in text]


@pytest.mark.parametrize("draw", EVERY, ids=NAMES)
def test_what_was_not_computed_is_not_drawn(draw):
    section = draw.__name__.removesuffix("_figure").removesuffix("_figures")
    without = {"relevancy" if "relevancy" in section else section: None}
    assert not draw(dataclasses.replace(synthetic_results(), **without))


@pytest.fixture(scope="module")
def smallest():
    """A study of one tuned model of one layer and one head."""
    results = synthetic_results(layers=1, heads=1, grid=2, image_size=8, pictures=1)
    sections = (results.relevancy, results.text_attention, results.vision_attention)
    for models in (*sections, results.faithfulness.models, results.examples.models):
        models.pop("bias")
    return dataclasses.replace(results, models=results.models[:2])


# `test_pages.py` draws all of one layer and one head.
@pytest.mark.parametrize(
    "draw", helpers.short(EVERY, text_relevancy_figure, vision_attention_figure, decomposition_figure), ids=NAMES
)
def test_zero_shot_alone_and_single_heads_and_layers_can_be_drawn(draw, smallest):
    made = draw(smallest)
    for drawing in made if isinstance(made, list) else [made]:
        with style.styled():
            drawing.figure.canvas.draw()
        assert np.ptp(np.asarray(drawing.figure.canvas.buffer_rgba())) > 0
