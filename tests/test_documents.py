"""What the README and the pages beside it promise besides commands (`test_commands.py`).

The README's lines of Python are run by `end_to_end/test_wheel.py`, as a user who installed the package does.
"""

import ast
import csv
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping

import numpy as np
import pytest
import yaml
from scipy.stats import spearmanr

from tests.documents import PAGES, ROOT
from tools import make_demo_tables


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_picture_and_function_that_is_linked_exists(page):
    text = page.read_text(encoding="utf-8")
    for link in set(re.findall(r"\]\(((?!http)[^)#]+)", text)):
        assert (page.parent / link).is_file(), link
    for name, link in set(re.findall(r"\[`([\w.]+)`\]\((\S+\.py)\)", text)):
        body = ast.parse((page.parent / link).read_text(encoding="utf-8")).body
        for part in name.split(".") if not name.endswith(".py") else ():
            definitions = [node for node in body if getattr(node, "name", None) == part]
            assert definitions, f"{page.name}: {link} has no {name}"
            body = getattr(definitions[0], "body", [])


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "THIRD_PARTY_NOTICES.md"])
def test_every_path_that_is_named_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:clipbias|tests|tools|docs|\.ci)/[^`\s]*)`", text))
    assert named and not {name for name in named if not (ROOT / name).exists()}


def test_one_version_is_told_everywhere_and_ci_and_images_run_what_the_documents_say():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert cited["version"] == project["version"] == re.search(r"^## ([\d.]+)", changes, re.MULTILINE)[1]
    assert cited["license"] == project["license"] and all((ROOT / name).is_file() for name in project["license-files"])
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["tests"]["steps"][-1] == {"run": ".ci/run"} and (ROOT / ".ci/run").stat().st_mode & 0o111
    for path in (ROOT / "docker").iterdir():
        command = re.search(r"^CMD \[(.*)\]$", path.read_text(encoding="utf-8"), re.MULTILINE)[1]
        assert " ".join(re.findall(r'"([^"]*)"', command)) in (ROOT / "README.md").read_text("utf-8"), path.name


def test_importing_is_light():
    code = "import sys, clipbias; print(sorted({'jax', 'numpy', 'transformers', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# Numbers. The tables of pages are made of CSV files; sentences repeat some of these numbers.


# By numbers: their page, and what names a row of them in a line of the page or above a column.
TABLES = {
    "demo_gains.csv": ("results.md", ("label",)),
    "zoo_gains.csv": ("results.md", ("method",)),
    "verdict.csv": ("results.md", ("method", "dataset")),
    "replacements.csv": ("results.md", ("method", "dataset")),
    "paper.csv": ("paper.md", ("claim", "method", "outcome")),
}


SETS = ("digits", "fashion", "emoji")
WORDS = {"fashion": "clothes", "emoji": "emoji", "digits": "digits"}


def rows_of(name: str) -> list[dict[str, str]]:
    with open(ROOT / "docs/images" / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def is_shown(numbers: list[str], row: dict[str, str]) -> bool:
    """Whether numbers of a page are a value and its interval in a row, rounded to as many digits; shares in percent."""
    for unit, *names in (
        (1, "value", "low", "high"),
        (1, "moved_value", "moved_low", "moved_high"),
        (100, "share", "share_low", "share_high"),
    ):
        cells = [unit * float(row.get(name) or "nan") for name in names]
        pairs = zip(cells, numbers, strict=True)
        if all(float(f"{cell:.{len(number.partition('.')[2])}f}") == float(number) for cell, number in pairs):
            return True
    return False


@pytest.mark.parametrize("name", TABLES)
def test_each_number_of_a_table_is_in_its_csv(name):
    page, keys = TABLES[name]
    path = ROOT / "docs" / page
    text = path.read_text(encoding="utf-8")
    assert text == make_demo_tables.page(path), f"run python -m tools.make_demo_tables docs/{page}"
    section = text.partition(f"<!-- From images/{name}")[2].partition(make_demo_tables.END)[0]
    heads, _, *lines = [line.removesuffix(" |").split(" | ") for line in section.splitlines() if line.startswith("|")]
    cells = [(line, *pair) for line in lines for pair in zip(heads, line, strict=True)]
    cells = [cell for cell in cells if re.match(r"[+-]?\d\S* \(", cell[2])]
    assert len(cells) >= len(lines)
    for line, head, cell in cells:
        rows = [row for row in rows_of(name) if all(row[key] in " ".join((*line, head)) for key in keys)]
        numbers = re.findall(r"[+-]?\d[\d.]*", cell)
        assert any(is_shown(numbers, row) for row in rows), f"{page}: {cell} of {line[0]} is not in {name}"


def judged(axis: str, explainer: str) -> list[dict[str, str]]:
    """The benchmark's models that an explainer is asked about."""
    rows = [row for row in rows_of("mechanisms.csv") if row["counts"] == "True"]
    if axis == "no gain":
        return [row for row in rows if row["truth: where"] == axis]
    rows = [row for row in rows if row[f"truth: {axis}"] and row["truth: where"] != "no gain"]
    return [row for row in rows if "Fig." not in explainer or row["family"].startswith("planted")]


def test_rates_of_known_mechanisms_are_those_counted():
    path = ROOT / "docs" / "mechanisms.md"
    text = path.read_text(encoding="utf-8")
    assert text == make_demo_tables.page(path)
    section = text.partition("<!-- From images/mechanisms.csv")[2].partition(make_demo_tables.END)[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
    assert {line[1] for line in lines} > {"verdict"} and {line[0] for line in lines} == {"where", "what", "no gain"}
    for axis, explainer, models, right, wrong in lines:
        label = "where" if axis == "no gain" else axis
        said = [(row[f"{explainer}: {label}"], row[f"truth: {label}"]) for row in judged(axis, explainer)]
        counts = [sum(a == b for a, b in said), sum(a not in (b, "undecided") for a, b in said)]
        assert int(models) == len(said)
        assert [round(100 * count / len(said)) for count in counts] == [int(cell.split()[0]) for cell in (right, wrong)]


def sentences() -> dict[str, list[str]]:
    """Sentences with numbers, by the page where they stand."""
    demo = {each["method"]: each for each in rows_of("demo_gains.csv")}
    fitted = fits("replacements.csv")
    two, itself = ([fitted[name, kind, "TaskRes"] for name in SETS] for kind in ("fitted", "ceiling"))
    head = [round(float(row["value"])) for row in two]
    moved, own = ([round(float(row["moved_value"])) for row in rows] for rows in (two, itself))
    assert max(demo, key=lambda name: float(demo[name]["value"])) == "taskres"  # the method that is named first
    why = {(row["method"], row["outcome"], row["quantity"]): row for row in rows_of("why.csv")}
    labels = {row["method"]: (row["where"], row["what"]) for row in why.values()}
    assert labels["IVLP"] == ("not attention", "depends on the image") and labels["Bias tuning"][1].startswith(
        "the same"
    )
    gain = float(why["IVLP", "accuracy", "gain"]["value"])
    bias = float(why["Bias tuning", "accuracy", "gain"]["value"])
    explained = 100 * float(why["IVLP", "log_likelihood", "explained by the class"]["share"])
    vectors = fits("why_replacements.csv")["fashion", "fitted", "IVLP"]
    assert vectors["word"] == "has the gain of"
    fewer = -float(vectors["less_ceiling_value"])
    answers = (ROOT / "docs/answers.md").read_text(encoding="utf-8")  # whose numbers `test_held_out.py` computes
    of_all_classes = [(n, re.search(rf"- {n} classes: (\d+) and", answers)) for n in (2, 10)]
    few, many = (int(found[1]) // n for n, found in of_all_classes)
    of_paper, of_all, without = correlations()
    return {
        "README.md": [
            f"TaskRes, a head, gains most ({float(demo['taskres']['value']):.1f} points)",
            f"make {gain:.1f} points more of the pictures right. They do not do it by looking elsewhere. They add",
            "something different to each picture, and the class that CLIP alone predicts explains",
            f"{explained:.0f} % of these differences.",
            "Of 100 predictions that prompts changed, two vectors per layer make",
            f"{fewer:.0f} fewer than new prompts, both trained to imitate them.",
            f"A learned bias, the same for every picture, makes {bias:.1f} points more right.",
            f"A folder of two classes needs {few} pictures per class for this, a folder of ten {many}.",
        ],
        "docs/results.md": [
            f"{of_paper} for the six methods of the paper's Table 1",
            f"{of_all} for the eight methods of this table",
            f"{without} without CLIP-LoRA",
            f"two vectors have {head[0]} % of its gain on digits, {head[1]} % on clothes and {head[2]} % on emoji, and"
            f" make {moved[0]}, {moved[1]} and {moved[2]} % of the predictions that it changed. Fitted in the same way,"
            f" TaskRes makes {own[0]}, {own[1]} and {own[2]} %.",
            *of_reading(),
            *of_other_methods(),
            *of_ranks(),
            of_siglip(),
        ],
    }


def fits(file: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """Two fitted vectors per layer, "fitted", and the method itself, "ceiling": by dataset, these words and method."""
    return {
        (row["dataset"].removeprefix("demo/"), row["kind"], row["method"]): row
        for row in rows_of(file)
        if row["kind"] == "ceiling" or (row["kind"], row["form"]) == ("fitted", "kind")
    }


def of_reading() -> list[str]:
    """What VPT and IVLP read of images of clothes and digits: three sentences."""
    cells = [(f"demo/{name}", method) for name in ("digits", "fashion") for method in ("VPT", "IVLP")]
    kept = {
        (row["dataset"], row["method"], row["step"]): row for row in rows_of("reading.csv") if row["among"] == "all"
    }
    labels = {(row["dataset"], row["method"]): row["what"] for row in rows_of("verdict.csv")}
    assert {labels[cell] for cell in cells} == {"depends on the image"}
    other, clusters, tuned = (
        [kept[*cell, step] for cell in cells] for step in ("another image's", "2 clusters per class", "the tuned class")
    )
    assert all(float(row["low"]) <= 0 for row in other)
    assert all(float(a["value"]) > float(b["value"]) for a, b in zip(clusters, tuned, strict=True))
    explained = [
        {"value": 100 * float(row["share"])}
        for row in rows_of("verdict.csv")
        if (row["dataset"], row["method"]) in cells
        and (row["outcome"], row["quantity"]) == ("log_likelihood", "explained by the class")
    ]
    assert len(explained) == len(cells)

    def span(rows: Iterable[Mapping[str, object]]) -> str:
        ends = sorted(round(float(str(row["value"]))) for row in rows)
        return f"{ends[0]} to {ends[-1]}".replace("-", "−")

    return [
        f"nothing that is surely above 0: {span(other)} % of the effect.",
        f"explains {span(explained)} % of this loss.",
        f"keeps {span(clusters)} % of the effect, more than the mean over the class that the tuned model predicts"
        f" ({span(tuned)} %).",
    ]


def of_other_methods() -> list[str]:
    """Labels of methods with one seed, and their gains in points."""
    gains = {
        (row["method"], row["dataset"].removeprefix("demo/")): row
        for row in rows_of("verdict.csv")
        if (row["outcome"], row["quantity"]) == ("accuracy", "gain")
    }
    lora, prompts = (
        [gains[method, name] for name in ("digits", "fashion", "emoji")] for method in ("CLIP-LoRA", "PromptSRC")
    )
    assert [row["where"] for row in lora] == ["not attention", "not attention", "undecided"]
    assert [row["what"] for row in lora] == ["the same for every image", "undecided", "depends on the image"]
    assert prompts[1]["what"] == "depends on the image"
    without = {cell for cell, row in gains.items() if cell[0] in ("PromptSRC", "CoCoOp") and float(row["low"]) <= 0}
    assert without == {*(("CoCoOp", name) for name in SETS), ("PromptSRC", "digits"), ("PromptSRC", "emoji")}
    heads = [gains[method, name]["where"] for method in ("TaskRes", "Linear probe", "GDA") for name in SETS]
    assert set(heads) == {"outside"}
    points = [f"{float(row['value']):.1f}" for row in (*lora, prompts[1])]
    return [
        f"gains {points[0]} points on digits and {points[1]} on clothes, and not by attention.",
        f"CLIP-LoRA on emoji gains {points[2]} points; what it adds depends on the image, and where it acts is",
        f"PromptSRC gains {points[3]} points on clothes, and what it adds depends on the image.",
    ]


def of_ranks() -> list[str]:
    """Students of the rank curve in nine cells: two vectors, vectors by class, rank 16, and the method itself."""
    made = {
        (row["dataset"], row["method"], row["student"], row["rank"]): row
        for row in rows_of("rank_curve.csv")
        if row["quantity"] == "changed predictions (%)"
    }
    cells = sorted({(dataset, method) for dataset, method, *_ in made})
    assert len(cells) == 9
    two, itself, classes, last = (
        [float(made[*cell, *student]["value"]) for cell in cells]
        for student in (("map", "0.0"), ("ceiling", ""), ("class", ""), ("map", "16.0"))
    )
    more = max(a - b for a, b in zip(classes, two, strict=True))
    # Studies compare on the same images; these intervals of single shares agree with their sentences.
    maps = {key: row for key, row in made.items() if key[2] == "map"}
    assert all(float(row["low"]) < float(made[*key[:2], "ceiling", ""]["value"]) - 5 for key, row in maps.items())
    return [
        f"Two vectors make {min(two):.0f} to {max(two):.0f} % of the predictions that prompts changed; the method",
        f"itself makes {min(itself):.0f} to {max(itself):.0f} %.",
        f"Vectors for each class that CLIP alone predicts make at most {more:.0f} of 100 changed predictions more than",
        f"Rank 16 makes {min(last):.0f} to {max(last):.0f} %; no rank surely comes within 5 of 100",
    ]


def of_siglip() -> str:
    """Labels and changed predictions of the embedded SigLIP, IVLP before VPT."""
    what = {(row["method"], row["dataset"].removeprefix("demo/")): row["what"] for row in rows_of("verdict_siglip.csv")}
    assert {cell for cell, label in what.items() if label != "depends on the image"} == {("VPT", "digits")}
    assert what["VPT", "digits"] == "undecided"
    fitted = fits("replacements_siglip.csv")
    moved, own = (
        {
            name: "{:.0f} and {:.0f} %".format(*(float(fitted[name, kind, m]["moved_value"]) for m in ("IVLP", "VPT")))
            for name in SETS
        }
        for kind in ("fitted", "ceiling")
    )
    first, *others = (f"{moved[name]} on {word} ({{}}{own[name]})" for name, word in WORDS.items())
    cells = ", ".join((first.format("the methods themselves "), *(cell.format("") for cell in others)))
    return f"Of the predictions that IVLP and VPT changed, two vectors make {cells}."


def correlations() -> list[str]:
    """Spearman's, of gains here with published accuracies: the paper's, and all with and without CLIP-LoRA."""
    published = json.loads((ROOT / "clipbias/assets/published.json").read_text(encoding="utf-8"))
    table = published["averages"]
    of_paper = {name: row[table["shots"].index(16)] for name, row in table["accuracy"].items()}
    listed: dict[str, list[float]] = {}
    for source in published["sixteen_shots"]:
        for name, accuracies in source["accuracy"].items():
            listed.setdefault(name.split(" (")[0].lower().replace("-", "_"), []).append(np.mean([*accuracies.values()]))
    literature = {name: float(np.mean(values)) for name, values in listed.items()}
    texts = []
    for name, theirs, count in (
        ("demo_gains.csv", of_paper, 6),
        ("zoo_gains.csv", literature, 8),
        ("zoo_gains.csv", {**literature, "clip_lora": None}, 7),
    ):
        ours = {row["method"]: float(row["value"]) for row in rows_of(name)}
        common = [each for each in ours if theirs.get(each) is not None]
        assert len(common) == count
        texts.append(
            f"{spearmanr([ours[each] for each in common], [theirs[each] for each in common]).statistic:.2f}".replace(
                "-", "−"
            )
        )
    return texts


def test_each_number_of_a_sentence_is_in_its_csv():
    for page, expected in sentences().items():
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        assert [sentence for sentence in expected if sentence not in text] == [], page
