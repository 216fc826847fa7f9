"""The report as a reader opens it: one file, everything in it, nothing unescaped, every table's numbers."""

import base64
import collections
import dataclasses
import re

import pytest

from clipbias.analysis.observations import ClaimOutcome, Observation, Observations
from clipbias.analysis.pictures import Similarity
from clipbias.analysis.results import Missing, VerdictLabels, What, Where
from clipbias.analysis.results_file import load_results, save_results
from clipbias.analysis.verdict import judge
from clipbias.analysis.verdict_sentences import headline
from clipbias.intervals import Estimate
from clipbias.report import pages, study_page, write_overview, write_report
from clipbias.report.drawings import all_drawings
from clipbias.report.study_page import class_table, observations_table, word_table
from clipbias.report.verdict import facts
from tests.documents import ROOT
from tests.report.markup import Page
from tests.report.synthetic import OBSERVED, only_sections, synthetic_results

HOSTILE = "<img src=x onerror=\"alert('1')\"> & co"


def only(*names, **sizes):
    """A study of the named sections alone: pages without the cost of all figures."""
    return only_sections(synthetic_results(**sizes), *names)


def unsaved(monkeypatch):
    """Pages without the cost of saving figures, which other tests look at; the figures by name, as they were drawn.

    `None` by a number is in the place of a figure without content.
    """
    figures = {}

    def taken(some, folder):
        listed = [figure for each in some for figure in (each if isinstance(each, list) else [each])]
        figures.update({figure.name if figure else len(figures): figure for figure in listed})
        return [pages.Picture(figure.title, figure.caption, "", b"", 1, ()) for figure in listed if figure]

    monkeypatch.setattr(pages, "save_pictures", taken)
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


def test_everything_after_the_first_page_is_folded(whole):
    """In the order of the page's description, which names every section."""
    page, _, results, _ = whole
    # A section may have no synthetic results.
    computed = [each.section for each in all_drawings() if each.section.name in results.sections]
    assert page.folded == ["causal", *(section.name for section in computed), "config"] and page.unfolded == []
    described = re.findall(r"^- \*\*(.*?)\*\*", (ROOT / "docs" / "report.md").read_text("utf-8"), re.MULTILINE)
    assert described == ["All methods", *(each.section.title for each in all_drawings()), "How it was made"]


def test_every_figure_is_drawn(whole):
    _, _, results, figures = whole
    assert None not in figures.values(), "the synthetic results leave a figure out"
    computed = [each for each in all_drawings() if each.section.name in results.sections]
    assert len(figures) >= 2 + sum(len(drawing.figures) for drawing in computed)


def test_nothing_comes_from_the_network(whole):
    page, path, *_ = whole
    assert page.tags.count("script") == 2 and all(link.startswith(("data:", "#")) for link in page.links)
    assert not {"link", "iframe"} & set(page.tags)
    assert "http" not in path.read_text("utf-8") and "url(" not in path.read_text("utf-8")


def test_verdict_models_and_config_are_told(whole):
    page, _, results, _ = whole
    sentences = [method.sentence for method in results.methods]
    (replaced,) = results.sections["replacement"].methods
    largest = max(results.methods, key=lambda method: method.numbers.accuracy.gain.value)
    assert page.text.partition("44.0 %.")[2].strip().startswith(headline(largest))
    for words in (*sentences, replaced.sentence, "72.0 ± 6.2", "a photo of a {}.", '"split": "test"'):
        assert words in page.text
    assert [page.text.count(sentence) for sentence in sentences] == [1] * len(sentences)


@pytest.mark.parametrize("where", [each for each in Where if each is not Where.NO_GAIN])
@pytest.mark.parametrize("what", What)
def test_a_headline_says_what_the_labels_say(whole, where, what):
    method = dataclasses.replace(whole[2].methods[0], name="IVLP", labels=VerdictLabels(where, what))
    text = headline(method)
    assert text.startswith(f"IVLP raises accuracy by {method.numbers.accuracy.gain.value:.1f} points")
    assert (", not by looking elsewhere" in text) == (where is Where.NOT_ATTENTION)
    assert ("the same correction to all pictures" in text) == (what is What.SAME and where is not Where.OUTSIDE)
    assert ("a different correction to each picture" in text) == (what is What.DEPENDS and where is not Where.OUTSIDE)


def test_a_headline_without_a_sure_gain_claims_none(whole):
    method = whole[2].methods[0]
    accuracy = method.numbers.accuracy
    unsure = dataclasses.replace(accuracy, gain=Estimate(1.5, -0.5, 3.0))
    numbers = dataclasses.replace(method.numbers, accuracy=unsure)
    for without, words in (
        ({"numbers": numbers}, "no surely larger share of the pictures right: +1.5 points."),
        ({"numbers": None}, "was not tested"),
        ({"labels": None}, "are too few"),
    ):
        assert words in headline(dataclasses.replace(method, **without))


def test_a_sure_gain_in_accuracy_without_labels_has_no_why(whole):
    results = whole[2]
    method = dataclasses.replace(results.methods[0], labels=VerdictLabels(Where.NO_GAIN, None))
    points = method.numbers.accuracy.gain.value
    assert headline(method) == f"{method.name} raises accuracy by {points:.1f} points."
    assert facts(results, results.methods[0]) and facts(results, method) == []


def test_gains_over_other_words_than_those_of_zero_shot_say_so(drawn, tmp_path):
    """Of the method that starts from them alone; the overview has the words, too, and how many images were tested."""
    results = only("causal")
    assert results.other_references == []
    other = [
        dataclasses.replace(model, reference="a cat." if model.name == "IVLP" else "a photo of a cat.")
        for model in results.models
    ]
    dataset = dataclasses.replace(results.dataset, images=results.dataset.images + 9)
    results = judge(dataclasses.replace(results, models=tuple(other), dataset=dataset, methods=()))
    (tested,) = [method for method in results.methods if method.name == "IVLP"]
    (words,) = results.other_references
    assert words.startswith("Gains of IVLP are over") and "such as “a cat.”" in words
    reference = f"({tested.numbers.accuracy.reference.value:.1f} % of {tested.images} images)"
    assert f"{reference}; zero-shot CLIP reads “a photo of a cat.”." in words
    assert results.sentence.endswith(words)
    save_results(tmp_path / "study", results)
    for page in (
        write_report(tmp_path / "study", tmp_path / "page"),
        write_overview([tmp_path / "study"], tmp_path / "overview"),
    ):
        text = Page(page.read_text("utf-8")).text
        assert words in text and f"labels are of {tested.images} of them." in text


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
    results = only("causal")
    tests = results.sections["causal"].models
    tests["bias"] = dataclasses.replace(tests["bias"], why="It has no second run.")
    tests["ivlp"] = dataclasses.replace(tests["ivlp"], why_no_ablations={"text": "Texts depend."})
    numbers = results.sections["causal"].numbers
    nats = numbers["ivlp"].log_likelihood
    means = {"all images": nats.image.means["all images"]}  # by class there are too few
    few = dataclasses.replace(nats, image=dataclasses.replace(nats.image, means=means, explained={}))
    numbers["ivlp"] = dataclasses.replace(numbers["ivlp"], log_likelihood=few)
    sections = results.sections | {
        "relevancy": {"bias": Missing("No map follows its logit.")},
        "similarity": Similarity(None, None, None, {}),
    }
    _, page = written(judge(dataclasses.replace(results, sections=sections)))
    assert "Relevancy, Bias tuning: No map follows its logit." in page.text
    assert "Bias tuning: It has no second run." in page.text and "IVLP: Texts depend." in page.text
    assert "IVLP: Means over classes would take more" in page.text
    assert "Faithfulness: not computed; --config.sections=faithfulness computes it." in page.text
    assert "Similarity: no model has vision prompts." in page.text


def test_a_study_without_a_verdict_says_so_and_has_no_figures(written):
    path, page = written(only())
    assert "img" not in page.tags and not (path.parent / "figures").exists()
    assert "Causal: not computed; --config.sections=causal computes it." in page.text
    assert "Why IVLP differs from CLIP on demo/digits was not tested" in page.text


def test_every_text_is_escaped(written, drawn):
    results = only("causal", "text_attention")
    results.config["note"] = HOSTILE
    dataset = dataclasses.replace(results.dataset, name=HOSTILE)
    zero_shot, ivlp, bias = results.models
    models = (zero_shot, dataclasses.replace(ivlp, label=HOSTILE), bias)
    methods = tuple(dataclasses.replace(each, label=HOSTILE, sentence=HOSTILE) for each in results.methods)
    path, page = written(dataclasses.replace(results, dataset=dataset, models=models, methods=methods))
    assert page.tags.count("img") == 3  # the verdict, the reading curve, and the figure that was asked for
    assert "<img src=x" not in path.read_text("utf-8")


def test_overview_orders_the_datasets(drawn, tmp_path):
    """And has each dataset's sentences, the paper's panels, and what can stand for methods."""
    results = only("causal", "relevancy", "replacement")
    made = [tmp_path / name for name in ("eurosat", "imagenet", "dtd")]
    accuracies = []
    for better, folder in enumerate(made):
        dataset = dataclasses.replace(results.dataset, name=folder.name)
        models = tuple(
            dataclasses.replace(each, accuracy=each.accuracy - 7 * better * (1 + place) + 0.3 * place)
            for place, each in enumerate(results.models)
        )
        accuracies.append([model.accuracy for model in models])
        save_results(folder, judge(dataclasses.replace(results, dataset=dataset, models=models, methods=())))
    (made[0] / "report.html").write_text("")
    (made[1] / "report").mkdir()
    (made[1] / "report" / "report.html").write_text("")
    page = Page(write_overview(made, tmp_path / "overview").read_text("utf-8"))
    assert "3 datasets: ImageNet, DTD, EuroSAT." in page.text
    means = [f"{sum(column) / 3:.1f}" for column in zip(*accuracies, strict=True)]
    assert " ".join(["Average", *means]) in " ".join(page.text.split())
    reports = ["../imagenet/report/report.html", "../eurosat/report.html"]
    assert [link for link in page.links if link.endswith(".html")] == reports
    panels = [f"fig{n}_{part}_relevancy_{key}" for key in ("ivlp", "bias") for n, part in ((2, "text"), (3, "vision"))]
    assert list(drawn) == ["verdict", "reading", *panels, "replacements"]
    for study in map(load_results, made):
        assert all(method.sentence in page.text for method in study.methods)
    (method,) = results.sections["replacement"].methods
    assert page.text.count(method.sentence) == 3  # with the verdicts on each dataset


def test_classes_by_counting(monkeypatch):
    results = synthetic_results(pictures=1)
    predicted = results.predictions.models
    labels = results.predictions.labels.tolist()
    zero_shot = predicted["zero_shot"].tolist()
    table = class_table(results)
    totals = []
    for row in table.body:
        label = int(row[0].removeprefix("class "))
        members = [i for i, other_label in enumerate(labels) if other_label == label]
        right = [zero_shot[i] == label for i in members]
        assert row[1:3] == [str(len(members)), f"{100 * sum(right) / len(members):.1f}"]
        (taken, count), *_ = collections.Counter(zero_shot[i] for i in members if zero_shot[i] != label).most_common(1)
        assert row[3] == f"class {taken} ({count} of {len(members)})"
        totals.append(0.0)
        for key, cell in zip(("ivlp", "bias"), row[4:], strict=True):
            steps = [int(predicted[key][i] == label) - int(zero_shot[i] == label) for i in members]
            mean = sum(steps) / len(steps)
            error = (sum((x - mean) ** 2 for x in steps) / (len(steps) - 1) / len(steps)) ** 0.5
            assert cell == f"{100 * mean:+.1f} ± {100 * error:.1f} ({steps.count(1)}, {steps.count(-1)})"
            totals[-1] += mean
    assert len(totals) == 4 and totals == sorted(totals)
    monkeypatch.setattr(study_page, "CLASS_ROWS", 2)
    cut = class_table(results)
    assert cut.body == [table.body[0], table.body[-1]] and "of 4 classes the 1 at either end" in cut.note


def test_nearest_words_have_a_row_per_prompt_until_there_are_too_many(monkeypatch):
    study = synthetic_results(pictures=1)
    ivlp = study.sections["words"]["ivlp"]
    first, second = ivlp.prompts[1].distances
    table = word_table(study)
    assert len(table.body) == 2
    assert list(table.body[1]) == ["IVLP", "2", f"photo ({first:.3g}), tex- ({second:.3g})", "0.5"]
    monkeypatch.setattr(study_page, "WORD_ROWS", 1)
    cut = word_table(study)
    assert len(cut.body) == 1 and "1 more prompt in results.json" in cut.caption
    del study.sections["words"]["ivlp"]
    assert word_table(study) is None and word_table(only_sections(study)) is None


def test_observations_have_a_row_for_each_claim_and_method():
    change = Observation(
        "Fig. 2", "SOS falls", "IVLP", "a change", "points", Estimate(-0.04, -1.26, 0.2), 40, ClaimOutcome.UNDECIDED
    )
    correlation = dataclasses.replace(
        OBSERVED, unit="", number=Estimate(-0.3349, -0.4, -0.2), outcome=ClaimOutcome.DOES_NOT
    )
    few = dataclasses.replace(change, number=Estimate(2.0))
    nothing = dataclasses.replace(change, number=None, samples=0)
    results = only("predictions")
    results.sections["observations"] = Observations({}, (OBSERVED, change, correlation, few, nothing))
    table = observations_table(results)
    numbers = ["78.0 (77.0 to 79.3) %", "+0.0 (-1.3 to +0.2) points", "-0.33 (-0.40 to -0.20)", "+2.0 points", "–"]
    assert [row[3] for row in table.body] == numbers
    assert [row[4] for row in table.body[:3]] == ["holds", "undecided", "does not"]
    results.sections["observations"] = Observations({}, ())
    assert observations_table(results) is None
