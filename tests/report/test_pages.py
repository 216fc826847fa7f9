"""The report as a reader opens it: one file, everything in it, nothing unescaped."""

import base64
import colorsys
import re

import pytest

from clipbias.errors import ClipbiasError
from clipbias.explain.results import save_results
from clipbias.report import pages, style, write_overview, write_report
from clipbias.report.study_figures import faithfulness_figure
from clipbias.report.study_page import value_and_interval
from clipbias.report.study_results import StudyResults
from tests.documents import ROOT
from tests.report.markup import Page
from tests.report.synthetic import synthetic_results

HOSTILE = "<img src=x onerror=\"alert('1')\"> & co"


def only(*names):
    """A study with no arrays but those of the named sections: pages without the cost of all figures."""
    results = synthetic_results()
    results.arrays = {key: value for key, value in results.arrays.items() if key.split("/")[0] in names}
    results.scalars = {
        key: value for key, value in results.scalars.items() if key in names or not isinstance(value, dict)
    } | {key: results.scalars[key] for key in ("dataset", "clip", "config")}
    return results


@pytest.fixture
def drawn(monkeypatch):
    """Pages without the cost of saving figures, which other tests look at; the figures by name, as they were drawn."""
    figures = {}

    def unsaved(figure, folder):
        figures[figure.name] = figure
        return pages.Picture(figure.title, figure.caption, "", b"", 1, ())

    monkeypatch.setattr(pages, "save_picture", unsaved)
    return figures


@pytest.fixture
def written(tmp_path):
    def write(results):
        save_results(tmp_path / "results", results)
        path = write_report(tmp_path / "results", tmp_path / "report")
        return path, Page(path.read_text("utf-8"))

    return write


def test_a_number_keeps_its_percent_sign_on_its_line():
    page = pages.render("tables", title="", svg=None, tables=(), failures=(), empty="Of it 88 % stay, or more %.")
    assert "<p>Of it 88\u00a0% stay, or more %.</p>" in page


def test_contents_lead_to_every_section(written, drawn):
    _, page = written(only("faithfulness", "verdict"))
    anchors = [link.removeprefix("#") for link in page.links if link.startswith("#")]
    assert anchors == [
        *("verdict_effects", "verdict_kept", "verdict_ivlp", "verdict_bias", "measured"),
        *("models", "faithfulness", "missing", "config"),
    ]
    assert set(anchors) <= set(page.identifiers)


def test_pictures_are_inlined_and_the_files_lie_beside(written):
    path, page = written(only("faithfulness"))
    images = [link for link in page.links if link.startswith("data:")]
    png, pdf, numbers = (path.parent / "figures" / f"faithfulness.{kind}" for kind in ("png", "pdf", "csv"))
    assert [base64.b64decode(image.split(",")[1]) for image in images] == [png.read_bytes()]
    assert pdf.is_file() and numbers.is_file()
    others = [link for link in page.links if not link.startswith(("data:", "#"))]
    assert others == [f"figures/faithfulness.{kind}" for kind in ("pdf", "png", "csv")]


def test_nothing_comes_from_the_network(written, drawn):
    path, page = written(only("verdict", "explore", "predictions", "factorial"))
    assert page.tags.count("script") == 2 and page.inline_scripts == 2
    assert not {"link", "iframe"} & set(page.tags)
    assert "http" not in path.read_text("utf-8") and "url(" not in path.read_text("utf-8")


def test_verdict_models_and_config_are_told(written, drawn):
    results = only("verdict")
    _, page = written(results)
    verdict = results.scalars["verdict"]["ivlp"]
    for words in (
        verdict["conclusion"],
        *verdict["sentences"],
        verdict["rows"][0]["sentence"],
        "0.710 (0.627 to 0.793)",  # 0.71 ± 1.96 · 6 %
        "72.00 ± 6.35",  # 36 of 50, binomial standard error
        "a photo of a {}.",
        '"normalisation": "sum"',
    ):
        assert words in page.text


def test_conclusions_come_first_and_what_is_missing_says_why(written, drawn):
    results = only("verdict", "factorial")
    results.scalars["figures"] = ["relevancy", "factorial", "verdict", "similarity"]
    results.scalars["verdict"]["bias"] |= {"missing": "It has no second run.", "effects": None, "kept": {}}
    results.scalars["verdict"]["ivlp"]["conclusion"] = "This favours (c): both carry much of the gain."
    results.scalars["relevancy"] = {"bias": {"missing": "No map follows its logit."}}
    _, page = written(results)
    assert page.text.index("(c)") == page.text.index("(c) both")  # no letter before what it stands for
    assert "Relevancy, Bias tuning: No map follows its logit." in page.text
    conclusion = results.scalars["verdict"]["ivlp"]["conclusion"]
    assert 0 < page.text.index(conclusion) < page.text.index("What carries the gain")
    assert "Bias tuning: It has no second run." in page.text
    assert "Bias tuning: No constant was measured; --config.figures=amounts has it." in page.text
    assert "Faithfulness: it was not asked for; --config.figures=faithfulness has it." in page.text
    assert "Similarity: no model has vision prompts." in page.text


def test_the_page_about_the_report_has_its_headings(written, drawn):
    results = synthetic_results(pictures=1)
    for name in list(results.under("faithfulness/")):
        if name.startswith("faithfulness/"):
            del results.arrays[name]
    results.scalars["agreement"] = [{"models": ["ivlp", "bias"], "overlap": {"values": True}, "agree": True}]
    path, _ = written(results)
    shown = re.findall(r"<h2>(.*?)</h2>", path.read_text("utf-8"))
    told = re.findall(r"^### (.*)", (ROOT / "docs" / "report.md").read_text("utf-8"), re.MULTILINE)
    assert list(dict.fromkeys(title.partition(":")[0] for title in shown)) == [
        title for title in told if title != "Whether the maps point at what matters"
    ]
    assert faithfulness_figure(StudyResults(synthetic_results())).title in told


def test_a_study_without_a_verdict_says_so(written):
    _, page = written(only())
    assert "No verdict: it was not asked for" in page.text


def test_seeds_that_disagree_are_told(written, drawn):
    results = only("verdict")
    overlap = {"attention": True, "values": False}
    results.scalars["agreement"] = [
        {"models": ["ivlp", "bias"], "overlap": overlap, "agree": False},
        {"models": ["ivlp", "bias"], "overlap": {"attention": True}, "agree": True},
    ]
    _, page = written(results)
    assert "IVLP and Bias tuning contradict each other about values" in page.text
    assert "IVLP and Bias tuning agree" in page.text


def test_every_text_is_escaped(written, drawn):
    results = only("verdict", "faithfulness")
    results.scalars["dataset"]["name"] = HOSTILE
    results.scalars["config"]["note"] = HOSTILE
    results.scalars["models"][1]["label"] = HOSTILE
    results.scalars["verdict"]["ivlp"]["conclusion"] = HOSTILE
    results.scalars["verdict"]["ivlp"]["rows"][0]["sentence"] = HOSTILE
    results.scalars["verdict"]["ivlp"]["sentences"][0] = HOSTILE
    path, page = written(results)
    assert page.tags.count("img") == 3  # two figures of the verdict and the one that was asked for
    assert "<img src=x" not in path.read_text("utf-8")


def test_a_study_of_nothing_has_a_page_without_figures(written):
    path, page = written(only())
    assert "img" not in page.tags and not (path.parent / "figures").exists()


def test_missing_results_are_one_sentence(tmp_path):
    with pytest.raises(ClipbiasError, match=r"holds no results\.json"):
        write_report(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("value", "ends", "unit", "text"),
    [
        (None, (None, None), "px", "–"),
        (0.71234, (0.69, 0.73), "", "0.712 (0.690 to 0.730)"),
        (-0.5, (None, None), "nats", "-0.500 nats"),
        (71.26, (70, 72), "px", "71.3 px (70.0 to 72.0)"),
        (-0.0012, (-0.0021, -0.0003), "nats", "-0.00120 nats (-0.00210 to -0.00030)"),
    ],
)
def test_a_value_and_its_interval(value, ends, unit, text):
    assert value_and_interval({"value": value, "unit": unit, "low": ends[0], "high": ends[1]}) == text


def test_every_figure_is_drawn(written, drawn):
    _, page = written(synthetic_results(layers=1, heads=1, pictures=1))
    for figure in drawn.values():  # a page writes a full stop behind a title
        assert figure.title[-1].isalnum() and not re.search(r"[?!.][.]", figure.caption)
        named = set(re.findall(r"\b(red|orange|yellow|green|blue|purple)\b", figure.caption))
        assert named <= {look(style.ZERO_SHOT), look(style.TUNED), look(style.PURPLE)}
    assert [name for name in page.identifiers if name in drawn] == list(drawn)
    assert list(drawn) == [
        *("verdict_effects", "verdict_kept", "fig1_decomposition", "fig2_text_relevancy", "fig3_vision_relevancy"),
        "relevancy_groups",
        *("fig4_text_attention", "fig5_vision_attention", "fig6_similarity_ivlp", "fig6_rank_correlation"),
        *("faithfulness", "examples"),
    ]


def look(colour):
    """What a reader calls a colour, by its hue."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue = 360 * colorsys.rgb_to_hsv(red, green, blue)[0]
    ends = {15: "red", 45: "orange", 70: "yellow", 165: "green", 260: "blue", 335: "purple", 361: "red"}
    return next(name for end, name in ends.items() if hue < end)


def folders(tmp_path, *datasets, names=("verdict",)):
    made = []
    for index, dataset in enumerate(datasets):
        results = only(*names)
        results.scalars["dataset"]["name"] = dataset
        made.append(tmp_path / f"study{index}")
        save_results(made[-1], results)
    return made


def test_overview_orders_the_datasets_and_averages(drawn, tmp_path):
    made = folders(tmp_path, "eurosat", "imagenet", "dtd")
    (made[0] / "report.html").write_text("")
    (made[1] / "report").mkdir()
    (made[1] / "report" / "report.html").write_text("")
    page = Page(write_overview(made, tmp_path / "overview").read_text("utf-8"))
    assert "3 datasets: ImageNet, DTD, EuroSAT." in page.text
    assert [link for link in page.links if link.endswith(".html")] == [
        "../study1/report/report.html",
        "../study0/report.html",
    ]
    assert "Average" in page.text and "rank correlation" in page.text
    assert list(drawn) == ["verdict_overview"]
    assert "Over 3 datasets IVLP gains" in page.text and "kept by two, by kind of token" in page.text


def test_overview_has_the_papers_panels(drawn, tmp_path):
    write_overview(folders(tmp_path, "a", "b", names=("relevancy",)), tmp_path)
    assert list(drawn) == [
        f"fig{n}_{part}_relevancy_{key}" for key in ("ivlp", "bias") for n, part in ((2, "text"), (3, "vision"))
    ]
    axes = drawn["fig2_text_relevancy_ivlp"].figure.axes
    assert [panel.get_title(loc="left") for panel in axes[:2]] == ["a (n = 27)", "b (n = 27)"]
    for drawing in drawn.values():
        (legend,) = drawing.figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["zero-shot", "tuned"]


def test_overview_without_verdicts_says_so(drawn, tmp_path):
    page = Page(write_overview(folders(tmp_path, "a", names=()), tmp_path).read_text("utf-8"))
    assert "No study here has a verdict" in page.text and not drawn


def test_overview_needs_folders_of_different_datasets(tmp_path):
    with pytest.raises(ClipbiasError, match="none was given"):
        write_overview([], tmp_path)
    with pytest.raises(ClipbiasError, match="both hold a"):
        write_overview(folders(tmp_path, "a", "a"), tmp_path)
