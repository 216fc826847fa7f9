"""The report as a reader opens it: one file, everything in it, nothing unescaped."""

import base64
import dataclasses
import re

import pytest

from clipbias.errors import ClipbiasError
from clipbias.explain.answer import conclude_study
from clipbias.explain.results import Missing, Reason, load_results, save_results
from clipbias.report import pages, write_overview, write_report
from tests.documents import ROOT
from tests.report.markup import Page
from tests.report.synthetic import only_sections, synthetic_results

HOSTILE = "<img src=x onerror=\"alert('1')\"> & co"


KEYS = ("ivlp", "ivlp_seed2")


def only(*names, **sizes):
    """A study of the named sections alone: pages without the cost of all figures."""
    return only_sections(synthetic_results(**sizes), *names)


def unsaved(monkeypatch):
    """Pages without the cost of saving figures, which other tests look at; the figures by name, as they were drawn."""
    figures = {}

    def taken(figure, folder):
        figures[figure.name] = figure
        return pages.Picture(figure.title, figure.caption, "", b"", 1, ())

    monkeypatch.setattr(pages, "save_picture", taken)
    return figures


@pytest.fixture
def drawn(monkeypatch):
    return unsaved(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of a study of everything, its path, its results, and its figures."""
    folder = tmp_path_factory.mktemp("whole")
    results = synthetic_results(layers=1, heads=1, pictures=1)
    save_results(folder / "results", results)
    with pytest.MonkeyPatch.context() as monkeypatch:
        figures = unsaved(monkeypatch)
        path = write_report(folder / "results", folder / "report")
    return Page(path.read_text("utf-8")), path, results, figures


@pytest.fixture
def written(tmp_path):
    def write(results):
        save_results(tmp_path / "results", results)
        path = write_report(tmp_path / "results", tmp_path / "report")
        return path, Page(path.read_text("utf-8"))

    return write


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Of it 88 % stay, or more %.", "Of it 88\u00a0% stay, or more %."),
        ("81 % (72 to 91), 1 to 2", "81\u00a0% (72\u00a0to\u00a091), 1 to 2"),
        ("+6.0 (-14.0 to +26.0)", "+6.0 (-14.0\u00a0to\u00a0+26.0)"),
    ],
)
def test_a_number_keeps_its_sign_and_its_interval_on_one_line(text, shown):
    assert f"<p>{shown}</p>" in pages.render("tables", title="", svg=None, tables=(), failures=(), empty=text)


def test_everything_after_the_first_page_is_folded(whole):
    page, path, *_ = whole
    assert page.folded == [
        *("effects", "constants", "words", "replacement", "explore", "classes", "decomposition", "relevancy"),
        *("text_attention", "vision_attention", "similarity", "faithfulness", "examples", "nearest", "config"),
    ]
    assert page.unfolded == []
    shown = re.findall(r"<summary><h2>(.*?)</h2>", path.read_text("utf-8"))
    sections = re.findall(r"^\| \*\*(.*?)\*\* \|", (ROOT / "docs" / "report.md").read_text("utf-8"), re.MULTILINE)
    assert shown == sections


def test_every_figure_is_drawn(whole):
    figures = whole[-1]
    for figure in figures.values():  # a page writes a full stop behind a title
        assert figure.title[-1].isalnum() and not re.search(r"[?!.][.]", figure.caption)
    assert list(figures) == [
        *("verdict_effects", "fig1_decomposition", "fig2_text_relevancy", "fig3_vision_relevancy"),
        "relevancy_groups",
        *("fig4_text_attention", "fig5_vision_attention", "fig6_similarity_ivlp", "fig6_rank_correlation"),
        *("faithfulness", "examples", "answer"),
    ]


def test_nothing_comes_from_the_network(whole):
    page, path, *_ = whole
    assert page.tags.count("script") == 2 and page.inline_scripts == 2
    assert not {"link", "iframe"} & set(page.tags)
    assert "http" not in path.read_text("utf-8") and "url(" not in path.read_text("utf-8")


def test_verdict_models_and_config_are_told(whole):
    page, _, results, _ = whole
    verdict = results.verdict_on(["ivlp"])
    for words in (
        verdict.conclusion,
        *verdict.sentences,
        "72.0 ± 6.2",
        "a photo of a {}.",
        '"normalisation": "sum"',
    ):
        assert words in page.text
    in_words = page.text.partition("Method by method, in words")[2]
    assert [in_words.count(sentence) for sentence in verdict.sentences] == [1] * len(verdict.sentences)


def test_the_first_page_asks_answers_and_shows(whole):
    """In this order: the question, the answer, its reasons, how sure it is, the figure, the table; and not more."""
    page, *_ = whole
    first = page.text.partition("More What carries the gain, in full")[0]
    parts = (
        "Why does tuning help on demo/digits?",
        "beat CLIP mainly",
        "Where CLIP looks:",
        "What is added to CLIP's tokens:",
        "A fixed bias in its place:",
        "How it was found:",
        "How sure:",
        "Attention alone: the tuned model's attention, all else frozen.",
    )
    places = [first.index(part) for part in (*parts, "Accuracy (%) Gain (points)")]
    assert places == sorted(places) and len(first[places[1] :].split()) < 470


def test_pictures_are_inlined_and_the_files_lie_beside(written):
    name = "fig4_text_attention"
    path, page = written(only("text_attention"))
    images = [link for link in page.links if link.startswith("data:")]
    png, pdf, numbers = (path.parent / "figures" / f"{name}.{kind}" for kind in ("png", "pdf", "csv"))
    assert [base64.b64decode(image.split(",")[1]) for image in images] == [png.read_bytes()]
    assert pdf.is_file() and numbers.is_file()
    others = [link for link in page.links if not link.startswith(("data:", "#"))]
    assert others == [f"figures/{name}.{kind}" for kind in ("pdf", "png", "csv")]


def test_what_is_missing_says_why(written, drawn):
    results = only("verdict", "factorial")
    results.factorial.models["bias"] = Missing("It has no second run.")
    sections = ("relevancy", "factorial", "verdict", "similarity")
    relevancy = {"bias": Missing("No map follows its logit.")}
    _, page = written(conclude_study(dataclasses.replace(results, sections=sections, relevancy=relevancy)))
    assert "Relevancy, Bias tuning: No map follows its logit." in page.text
    assert "Bias tuning: It has no second run." in page.text
    assert "IVLP: No constant was measured; --config.sections=constants has it." in page.text
    assert "Faithfulness: not computed; --config.sections=faithfulness has it." in page.text
    assert "Similarity: no model has vision prompts." in page.text


def test_a_study_without_a_verdict_says_so(written):
    _, page = written(only())
    assert "Verdict: not computed; --config.sections=verdict has it." in page.text


@pytest.mark.ci
def test_seeds_are_told_together_and_one_by_one(written, drawn):
    results = only("verdict", "factorial", twins=True)
    _, page = written(results)
    together = results.verdict_on(KEYS)
    first, second = (results.verdict_on([key]) for key in KEYS)
    assert page.text.index(together.sentences[0]) < page.text.index(first.sentences[0])
    assert "IVLP (seed 2)" in page.text and second.sentences[-1] in page.text
    assert results.answer.headline in page.text.partition("How sure:")[0]


def test_every_text_is_escaped(written, drawn):
    results = only("verdict", "factorial", "text_attention")
    results.config["note"] = HOSTILE
    dataset = dataclasses.replace(results.dataset, name=HOSTILE)
    zero_shot, ivlp, bias = results.models
    models = (zero_shot, dataclasses.replace(ivlp, label=HOSTILE), bias)
    verdicts = tuple(dataclasses.replace(each, conclusion=HOSTILE, sentences=(HOSTILE,)) for each in results.verdict)
    answer = dataclasses.replace(results.answer, headline=HOSTILE, reasons=(Reason(HOSTILE, HOSTILE),))
    path, page = written(dataclasses.replace(results, dataset=dataset, models=models, verdict=verdicts, answer=answer))
    assert page.tags.count("img") == 3  # of the first page, of the verdict and the one that was asked for
    assert "<img src=x" not in path.read_text("utf-8")


def test_a_study_of_nothing_has_a_page_without_figures(written):
    path, page = written(only())
    assert "img" not in page.tags and not (path.parent / "figures").exists()


def folders(tmp_path, *datasets, names=("verdict", "factorial", "constants")):
    made = []
    for index, dataset in enumerate(datasets):
        results = only(*names)
        made.append(tmp_path / f"study{index}")
        save_results(made[-1], dataclasses.replace(results, dataset=dataclasses.replace(results.dataset, name=dataset)))
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
    assert "Average" in page.text and "rank correlation" not in page.text
    assert list(drawn) == ["verdict_overview"]
    assert (
        "Nothing follows for other datasets from 3 datasets" in page.text
        and "kept with the mean as two vectors" in page.text
    )


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


@pytest.mark.ci
def test_overview_has_what_can_stand_for_methods(drawn, tmp_path):
    made = folders(tmp_path, "dtd", "eurosat", names=("replacement",))
    page = Page(write_overview(made, tmp_path).read_text("utf-8"))
    (method,) = load_results(made[0]).replacement.methods
    assert all(f"{name}: {method.sentence}" in page.text for name in ("DTD", "EuroSAT"))
    assert list(drawn) == ["replacements"]


def test_overview_without_verdicts_says_so(drawn, tmp_path):
    page = Page(write_overview(folders(tmp_path, "a", names=()), tmp_path).read_text("utf-8"))
    assert "No study here has a verdict" in page.text and not drawn


def test_overview_needs_folders_of_different_datasets(tmp_path):
    with pytest.raises(ClipbiasError, match=r"both hold .* on a"):
        write_overview(folders(tmp_path, "a", "a"), tmp_path)
