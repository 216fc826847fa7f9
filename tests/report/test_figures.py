"""The figures show the numbers of the results: panels, lines, bars, boxes, captions and CSV rows."""

import functools

import numpy as np
import pytest
from clipbias.report.attention_figures import text_attention_figure, vision_attention_figure
from clipbias.report.decomposition_figures import decomposition_figure
from clipbias.report.faithfulness_figures import MAP_NAMES, area_table, faithfulness_figure
from clipbias.report.relevancy_groups import MARKERS, relevancy_groups_figure
from matplotlib.colors import to_hex
from matplotlib.text import Text

from clipbias.explain.results import GROUPS, MAPS
from clipbias.report import style
from clipbias.report.map_figures import examples_figure, similarity_figures
from clipbias.report.overlay import HEAT
from clipbias.report.relevancy_figures import text_relevancy_figure, vision_relevancy_figure
from clipbias.report.study_results import StudyResults
from tests.report.synthetic import synthetic_results

EVERY = (
    *(text_relevancy_figure, vision_relevancy_figure, relevancy_groups_figure),
    *(text_attention_figure, vision_attention_figure),
    *(decomposition_figure, similarity_figures, faithfulness_figure, examples_figure),
)


@pytest.fixture(scope="module")
def study():
    return StudyResults(synthetic_results())


@pytest.fixture(scope="module")
def drawn(study):
    """Draws each figure of the study once for all tests that look at it."""

    @functools.cache
    def draw_once(draw):
        made = draw(study)
        return made if isinstance(made, list) else [made]

    return draw_once


def without(prefix):
    results = synthetic_results()
    results.arrays = {name: values for name, values in results.arrays.items() if not name.startswith(prefix)}
    results.scalars.pop(prefix.split("/")[0], None)
    return StudyResults(results)


def numbers(drawing, **wanted):
    """The rows of a drawing's table whose columns have the wanted values, as mappings."""
    rows = [dict(zip(drawing.columns, row, strict=True)) for row in drawing.rows]
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def y_values(axes, colour):
    return [np.asarray(line.get_ydata(), float) for line in axes.lines if line.get_color() == colour]


def test_text_relevancy_draws_both_models_and_an_inset_without_sos(study, drawn):
    (drawing,) = drawn(text_relevancy_figure)
    line_panel, bars = drawing.figure.axes[:2]
    for side, colour in (("zero_shot", style.ZERO_SHOT), ("tuned", style.TUNED)):
        mean = study.average(f"relevancy/ivlp/corrected/text/{side}").mean
        shown = y_values(line_panel, colour)[0]
        np.testing.assert_array_equal(shown, mean[: len(shown)])
        assert not mean[len(shown) :].any()
        inset = line_panel.child_axes[0]
        np.testing.assert_array_equal(y_values(inset, colour)[0], mean[1 : len(shown)])
    assert_bars(bars, study, "text_kinds")
    assert [text.get_text() for text in bars.get_xticklabels()] == ["SOS", "prompts", "words", "category", "“.”"]


def assert_bars(axes, study, part):
    """Zero-shot's bars, hatched and blue, and the tuned model's."""
    for bars, side, colour in zip(
        axes.containers[1::2], ("zero_shot", "tuned"), (style.ZERO_SHOT, style.TUNED), strict=True
    ):
        expected = study.average(f"relevancy/ivlp/corrected/{part}/{side}").mean
        np.testing.assert_allclose([bar.get_height() for bar in bars], expected, rtol=1e-6)
        assert {to_hex(bar.get_facecolor()) for bar in bars} == {to_hex(colour)}


def test_text_relevancy_needs_no_inset_where_sos_is_like_the_others():
    results = synthetic_results()
    for side in ("zero_shot", "tuned"):
        results.arrays[f"relevancy/ivlp/corrected/text/{side}/mean"][:6] = [0.1, 0.05, 0.3, 0.25, 0.2, 0.1]
    drawing = text_relevancy_figure(StudyResults(results))
    ivlp, _, bias, _ = drawing.figure.axes[:4]
    assert not ivlp.child_axes and bias.child_axes
    assert [text.get_text() for text in ivlp.texts] == ["prompts"]
    assert "leaves out the SOS token" in drawing.caption


def test_relevancy_captions_state_the_samples_and_the_normalisation(drawn):
    for drawing in (*drawn(text_relevancy_figure), *drawn(vision_relevancy_figure)):
        assert "zero-shot CLIP gets wrong and the tuned model right" in drawing.caption
        assert "IVLP: 27 images" in drawing.caption
        assert "divided by its sum, prompts included" in drawing.caption
        assert "Zero-shot's text is “a photo of a {}.”." in drawing.caption


def test_vision_relevancy_zooms_into_the_prompts_and_maps_the_patches(study, drawn):
    (drawing,) = drawn(vision_relevancy_figure)
    panel, before, after, bars = drawing.figure.axes[:4]
    mean = study.average("relevancy/ivlp/corrected/vision/tuned").mean
    original = study.average("relevancy/ivlp/corrected/vision/zero_shot").mean
    np.testing.assert_array_equal(y_values(panel, style.TUNED)[0], mean)
    np.testing.assert_array_equal(y_values(panel, style.ZERO_SHOT)[0], original)
    np.testing.assert_array_equal(y_values(panel.child_axes[0], style.TUNED)[0][-2:], mean[-2:])
    np.testing.assert_array_equal(np.asarray(after.images[0].get_array()).ravel(), mean[: study.patches])
    np.testing.assert_array_equal(np.asarray(before.images[0].get_array()).ravel(), original)
    assert_bars(bars, study, "vision_kinds")
    assert before.images[0].norm.vmax == after.images[0].norm.vmax
    kinds = {
        row["index"]: row["kind"] for row in numbers(drawing, model="ivlp", group="all", side="tuned", level="token")
    }
    assert [kinds[index] for index in (0, 8, 9, 10)] == ["patches", "patches", "prompts", "prompts"]


def test_groups_of_images_are_beside_each_other(study, drawn):
    (drawing,) = drawn(relevancy_groups_figure)
    text, vision, changes = drawing.figure.axes[:3]
    containers = iter(text.containers + vision.containers)
    for part in ("text_kinds", "vision_kinds"):
        for group in GROUPS:
            for side, colour in (("zero_shot", style.ZERO_SHOT), ("tuned", style.TUNED)):
                points = next(containers).lines[0]
                expected = study.average(f"relevancy/ivlp/{group}/{part}/{side}").mean
                np.testing.assert_array_equal(points.get_ydata(), expected)
                assert (points.get_color(), points.get_marker()) == (colour, MARKERS[group])
    expected = [study.average(f"relevancy/ivlp/{g}/{name}").mean[0] for g in GROUPS for name in ("order", "variation")]
    np.testing.assert_array_equal([points.lines[0].get_ydata()[0] for points in changes.containers], expected)
    assert "IVLP: corrected 27 images, both right 11 images, all 50 images;" in drawing.caption
    row = numbers(drawing, model="bias", group="all", side="tuned", part="text", kind="words")[0]
    assert row["mean"] == study.average("relevancy/bias/all/text_kinds/tuned").mean[2]


def test_a_model_without_samples_is_left_out_and_named():
    results = synthetic_results()
    results.arrays = {name: value for name, value in results.arrays.items() if not name.startswith("relevancy/bias")}
    for group in GROUPS:
        results.scalars["relevancy"]["bias"][group] = {"count": 0}
    drawing = text_relevancy_figure(StudyResults(results))
    assert "No such image for Bias tuning." in drawing.caption
    assert not numbers(drawing, model="bias")


def test_text_attention_has_the_original_above_and_a_box_per_layer(study, drawn):
    (drawing,) = drawn(text_attention_figure)
    grid = np.reshape(drawing.figure.axes, (3, 6))
    assert [axes.get_title() for axes in grid[0]] == ["SOS", "prompts", "words", "category", "“.”", "EOS"]
    labels = {"zero_shot": "Zero-shot", "ivlp": "IVLP", "bias": "Bias tuning"}
    for line, (key, label) in zip(grid, labels.items(), strict=True):
        assert line[0].get_ylabel().startswith(label)
        shares = study.average(f"text_attention/{key}").mean
        for kind, axes in enumerate(line):
            medians = [
                line.get_ydata()[0]
                for line in axes.lines
                if line.get_linewidth() == 1.4 and len(set(line.get_ydata())) == 1
            ]
            expected = np.median(shares[:, :, kind], axis=1)
            np.testing.assert_allclose(medians, expected if expected.any() else [], rtol=1e-6)
    assert [text.get_text() for axes in (grid[0][1], grid[1][2], grid[2][1]) for text in axes.texts] == ["none"] * 3
    assert "averaged over 4 classes" in drawing.caption and "sum to 1" in drawing.caption
    assert "Zero-shot “a photo of a {}.”" in drawing.caption


def test_vision_attention_has_a_column_per_variant_and_a_dot_per_head(study, drawn):
    (drawing,) = drawn(vision_attention_figure)
    grid = np.reshape(drawing.figure.axes, (3, 4))
    titles = [axes.get_title().strip() for axes in grid[0]]
    assert titles == ["Zero-shot", "IVLP\nW/O Prompt", "IVLP\nW Prompt", "Bias tuning"]
    variants = ("zero_shot/clip", "ivlp/without_prompt", "ivlp/with_prompt", "bias/clip")
    for row, quantity in zip(grid, ("distance", "entropy", "cls_entropy"), strict=True):
        for axes, variant in zip(row, variants, strict=True):
            dots = [line.get_ydata() for line in axes.lines if line.get_marker() == "o"]
            expected = study.average(f"vision_attention/{variant}/{quantity}").mean
            np.testing.assert_array_equal(np.stack(dots, axis=1), expected)
    assert "ln 10 = 2.3026" in drawing.caption and "mean over 50 images" in drawing.caption
    row = numbers(drawing, model="zero_shot", variant="clip", quantity="distance", layer=2, head=1)[0]
    assert row["mean"] == study.average("vision_attention/zero_shot/clip/distance").mean[1, 0]


def test_decomposition_has_a_row_per_tower_and_names_the_bias_it_compares_with(study, drawn):
    (drawing,) = drawn(decomposition_figure)
    labels = [axes.get_ylabel() for axes in drawing.figure.axes]
    assert "IVLP, vision" in labels and "IVLP, text" in labels
    legends = [axes.get_legend().get_texts()[0].get_text() for axes in drawing.figure.axes if axes.get_legend()]
    assert legends == ["with Bias tuning"] * 2
    rows = numbers(drawing, tower="vision", quantity="bias_cosine/bias")
    expected = study.array("decomposition/ivlp/vision/bias_cosine/bias")
    np.testing.assert_array_equal([row["mean"] for row in rows], expected)
    panels = np.reshape([axes for axes in drawing.figure.axes if axes.get_label() != "<colorbar>"], (2, 5))
    for tower, (mass_panel, by_query, size, constancy, cosines) in zip(("vision", "text"), panels, strict=True):
        path = f"decomposition/ivlp/{tower}"
        mean = study.average(f"{path}/prompt_mass").mean
        heads = np.stack([line.get_ydata() for line in mass_panel.lines if line.get_marker() == "o"], axis=1)
        np.testing.assert_array_equal(heads, mean)
        lines = [values for values in y_values(mass_panel, style.TUNED) if len(values) == len(mean)]
        expected = study.average(f"{path}/readout_mass").mean.mean(1)
        np.testing.assert_allclose(lines[-2:], [mean.mean(1), expected], rtol=1e-6)
        expected = study.average(f"{path}/mass_by_query").mean.mean(1)
        np.testing.assert_array_equal(by_query.images[0].get_array(), expected)
        np.testing.assert_array_equal(y_values(size, style.TUNED)[0], study.average(f"{path}/norm_share").mean)
        for axes, names in ((constancy, ("constancy", "bias_likeness")), (cosines, ("bias_cosine/bias",))):
            drawn_lines = [values for values in y_values(axes, style.TUNED) if len(values) == 3]
            expected = []
            for name in names:  # the line, then the lower and upper ends of its bars
                values, error = study.array(f"{path}/{name}"), study.array(f"{path}/error/{name}")
                expected += [values, values - error, values + error]
                rows = numbers(drawing, tower=tower, quantity=name)
                np.testing.assert_array_equal([row["standard_error"] for row in rows], error)
            np.testing.assert_allclose(drawn_lines, expected, rtol=1e-6)
    shaded = [[(patch.get_x(), patch.get_width()) for patch in row[3].patches] for row in panels]
    assert shaded == [[(2.5, 1.0)], []]  # vision prompts reach the second of three layers, text prompts the last
    mass = study.average("decomposition/ivlp/text/prompt_mass")
    row = numbers(drawing, tower="text", quantity="prompt_mass", layer=3, head=2)[0]
    assert (row["mean"], row["standard_error"]) == (mass.mean[2, 1], mass.standard_error[2, 1])


def test_the_size_of_what_prompts_add_is_a_share_of_both_parts(study, drawn):
    """A ratio would have no bound: where a head looks at prompts only, the input part is nearly nothing."""
    (drawing,) = drawn(decomposition_figure)
    panels = np.reshape([axes for axes in drawing.figure.axes if axes.get_label() != "<colorbar>"], (2, 5))
    assert [axes.get_ylim() for axes in panels[:, 2]] == [(0, 1.03)] * 2
    assert [axes.get_yscale() for axes in panels[:, 2]] == ["linear"] * 2


def assert_scale(figure):
    """A bar whose colours, from 0 to 1, are those of the maps."""
    (bar,) = figure.axes
    colours = bar.collections[-1]
    assert colours.get_cmap().name == HEAT and bar.get_xlim() == (0, 1) and "least (0)" in bar.get_xlabel()


def test_similarity_draws_three_rows_per_picture_and_the_correlation(study, drawn):
    maps, correlation = drawn(similarity_figures)
    shown, scale = maps.figure.subfigs
    assert_scale(scale)
    pictures = [axes for block in shown.subfigs for axes in block.axes if axes.images]
    assert len(pictures) == 4 * (1 + 3 * 3)
    titles = {axes.get_title() for axes in pictures}
    assert {"input, 0°", "input, 270°", "layer 1", "layer 2", "layer 3"} <= titles
    for number, block in enumerate(shown.subfigs):
        grid = np.reshape(block.axes, (3, 4))
        for row, name in zip(grid, ("zero_shot_cls", "cls", "prompts"), strict=True):
            for layer, axes in enumerate(row[1:]):
                values = np.asarray(axes.images[-1].get_array())
                np.testing.assert_array_equal(values, study.array(f"similarity/ivlp/{name}")[number, layer])
        labels = [row[1].get_ylabel() for row in grid]
        assert labels == ["original\n[cls]", "prompted\n[cls]", "prompt\nsimilarity"]
    expected = study.average("similarity/ivlp/rank_correlation").mean
    np.testing.assert_array_equal([row["mean"] for row in numbers(correlation)], expected)


def test_similarity_numbers_are_the_maps_at_the_patch_centres():
    results = synthetic_results(grid=3, image_size=12)
    ramp = np.tile(np.arange(12, dtype=np.float32) / 11, (12, 1))
    results.arrays["similarity/ivlp/cls"][...] = ramp
    rows = numbers(similarity_figures(StudyResults(results))[0], map="cls", picture=0, layer=1, row=1)
    np.testing.assert_allclose([11 * row["value"] for row in rows], [1.5, 5.5, 9.5], rtol=1e-6)


def test_faithfulness_draws_every_map_in_four_ways(study, drawn):
    (drawing,) = drawn(faithfulness_figure)
    grid = np.reshape(drawing.figure.axes, (3, 4))
    assert all(len(axes.lines) == len(MAPS) for axes in grid.ravel())
    curve = study.array("faithfulness/ivlp/relevancy/negative/true")
    np.testing.assert_allclose(y_values(grid[1][3], style.RED)[0], 100 * curve)


def test_areas_are_those_of_the_results(study):
    table = area_table(study)
    assert len(table.columns) == 6 and len(table.rows) == 3 * len(MAPS)
    areas = study.section("faithfulness", "bias", "area")
    row = next(row for row in table.rows if [*row[:2]] == ["Bias tuning", "LeGrad"])
    assert row[2] == f"{100 * areas['legrad']['positive']['predicted']:.1f}"


def test_examples_show_every_model_with_its_prediction(study, drawn):
    (drawing,) = drawn(examples_figure)
    titles = [axes.get_title() for axes in drawing.figure.axes]
    logits = study.array("examples/ivlp/logits")[0]
    share = np.exp(logits) / np.exp(logits).sum()
    mark = "✓" if share.argmax() == study.array("examples/labels")[0] else "✗"
    assert f"IVLP {mark}\nclass {share.argmax()}, {100 * share.max():.0f} %" in titles
    row = numbers(drawing, picture=1, model="bias", part="text", index=2)[0]
    assert (row["token"], row["name"]) == ("photo", "test/class_1/0001.png")


@pytest.mark.parametrize("draw", EVERY, ids=[draw.__name__ for draw in EVERY])
def test_no_text_shows_how_it_is_written(drawn, draw):
    """Formulas are not read in these figures, and what steers a terminal is shown as its escape: neither is meant."""
    for drawing in drawn(draw):
        drawing.figure.draw_without_rendering()
        shown = [text.get_text() for text in drawing.figure.findobj(Text)]
        assert shown and not [text for text in shown if "$" in text or "\\" in text]


@pytest.mark.parametrize("draw", EVERY, ids=[draw.__name__ for draw in EVERY])
def test_what_was_not_computed_is_not_drawn(draw):
    section = draw.__name__.removesuffix("_figure").removesuffix("_figures")
    assert not draw(without("relevancy/" if "relevancy" in section else section))


@pytest.mark.parametrize("draw", EVERY, ids=[draw.__name__ for draw in EVERY])
def test_zero_shot_alone_and_single_heads_and_layers_can_be_drawn(draw):
    results = synthetic_results(layers=1, heads=1, grid=2, image_size=8, pictures=1)
    results.scalars["models"] = results.scalars["models"][:2]
    made = draw(StudyResults(results))
    for drawing in made if isinstance(made, list) else [made]:
        with style.styled():
            drawing.figure.canvas.draw()
        assert np.ptp(np.asarray(drawing.figure.canvas.buffer_rgba())) > 0


def test_every_map_has_a_name():
    assert list(MAP_NAMES) == list(MAPS)
