"""Tables of the demo in the documents: those of the numbers beside their pictures."""

import csv
import json
from pathlib import Path

import pytest

from tests.documents import ROOT
from tools import make_demo_tables
from tools.pages import END

PROMPTS = ("IVLP", "VPT")


@pytest.mark.parametrize("name", make_demo_tables.PAGES)
def test_the_pages_are_those_of_the_numbers(name: str) -> None:
    path = ROOT / "docs" / name
    advice = f"run python -m tools.make_demo_tables docs/{name}"
    assert path.read_text(encoding="utf-8") == make_demo_tables.page(path), advice


def made(folder: Path, page: str, **texts: str) -> list[list[str]]:
    """The lines of the tables of each section that is made of these numbers."""
    (folder / "images").mkdir(parents=True)
    begins = [make_demo_tables.BEGIN.format(name=f"{name}.csv") for name in texts]
    for name, text in texts.items():
        (folder / "images" / f"{name}.csv").write_text(text)
    (folder / page).write_text("before\n" + "".join(f"{begin}\nold\n{END}\nbetween\n" for begin in begins))
    whole = make_demo_tables.page(folder / page)
    assert whole.startswith("before\n") and whole.endswith("\nbetween\n") and "\nold\n" not in whole
    assert whole.count("between") == whole.count(END) == len(texts)
    sections = whole.split(END)[:-1]
    return [[line for line in each.splitlines() if line.startswith("| ") and "---" not in line] for each in sections]


def test_the_largest_gain_of_a_kind_comes_first(tmp_path: Path) -> None:
    text = "method,label,kind,parameters,value,low,high\n"
    text += (
        "coop,CoOp,Prompts,384,0.04,-1.2,1.3\nbias,Bias,Weights,896,4.9,3.0,6.8\nmaple,MaPLe,Prompts,50432,1.06,0,2\n"
    )
    (gain,) = made(tmp_path, "methods.md", zoo_gains=text)
    assert gain == [
        "| kind | method | parameters | gain (points) |",
        "| Weights | `bias` | 896 | +4.9 (+3.0 to +6.8) |",
        "| Prompts | `maple` | 50,432 | +1.1 (+0.0 to +2.0) |",
        "| Prompts | `coop` | 384 | +0.0 (-1.2 to +1.3) |",
    ]


def test_the_findings_on_the_zoo_are_those_of_its_numbers() -> None:
    """What docs/methods.md says below the table."""
    page = " ".join((ROOT / "docs/methods.md").read_text(encoding="utf-8").split())
    with open(ROOT / "docs/images/zoo_gains.csv", encoding="utf-8", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert max(rows, key=lambda name: float(rows[name]["value"])) == "gda"
    near = {name for name, row in rows.items() if float(row["high"]) > float(rows["gda"]["low"])} - {"gda"}
    assert near - {"mma"} == {"layer_norm", "visual_prompting", "linear_probe", "mmrl", "bitfit", "ivlp"}
    bias = rows["bias"]
    assert f"Bias tuning gains {float(bias['value']):.1f} points with {bias['parameters']} numbers" in page
    unsure = {name for name, row in rows.items() if float(row["low"]) <= 0}
    assert unsure == {"coop", "kgcoop", "tcp", "plot", "mma"}


def test_the_rank_correlations_with_the_literature() -> None:
    """What docs/methods.md says of them, from ranks by counting."""
    page = " ".join((ROOT / "docs/methods.md").read_text(encoding="utf-8").split())
    published = json.loads((ROOT / "clipbias/assets/published.json").read_text(encoding="utf-8"))
    table = published["averages"]
    of_paper = {name: row[table["shots"].index(16)] for name, row in table["accuracy"].items()}
    listed: dict[str, list[float]] = {}
    for source in published["sixteen_shots"]:
        for name, accuracies in source["accuracy"].items():
            key = name.split(" (")[0].lower().replace("-", "_")
            listed.setdefault(key, []).append(sum(accuracies.values()) / len(accuracies))
    literature = {name: sum(values) / len(values) for name, values in listed.items()}

    def gains(name: str) -> dict[str, float]:
        with open(ROOT / f"docs/images/{name}.csv", encoding="utf-8", newline="") as file:
            return {row["method"]: float(row["value"]) for row in csv.DictReader(file)}

    def correlation(ours: dict[str, float], theirs: dict[str, float], count: int, without: str = "") -> str:
        common = sorted((ours.keys() & theirs.keys()) - {without})
        assert len(common) == count
        ranks = [[sum(values[b] < values[a] for b in common) for a in common] for values in (ours, theirs)]
        squares = sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
        return f"{1 - 6 * squares / (count**3 - count):.2f}".replace("-", "−")

    zoo = gains("zoo_gains")
    assert f"{correlation(gains('demo_gains'), of_paper, 6)} for the six methods of the paper's Table 1" in page
    every = correlation(zoo, literature, 8)
    without = correlation(zoo, literature, 7, without="clip_lora")
    assert f"{every} for the eight methods of this table" in page and f"{without} without CLIP-LoRA" in page


def test_the_largest_gains_of_the_readmes_picture() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    with open(ROOT / "docs/images/demo_gains.csv", encoding="utf-8", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    bias, prompts = rows["bias"], rows["ivlp_matched"]
    assert bias["parameters"] == prompts["parameters"] == "896"
    pairs = {
        name: f"{float(bias[f'demo/{name}']):.1f} and {float(prompts[f'demo/{name}']):.1f}"
        for name in ("digits", "fashion", "emoji")
    }
    assert (
        f"with 896 numbers, a bias and prompts (IVLP) gain {pairs['digits']} points on digits, {pairs['fashion']} on"
        f" clothes and {pairs['emoji']} on emoji"
    ) in text
    assert max(rows, key=lambda name: float(rows[name]["value"])) == "taskres"
    assert f"TaskRes, a head, gains most ({float(rows['taskres']['value']):.1f} points)" in text


def _replacements() -> dict[tuple[str, ...], dict[str, str]]:
    """Rows by method, dataset, kind and form."""
    with open(ROOT / "docs/images/replacements.csv", encoding="utf-8", newline="") as file:
        return {
            (row["method"], row["dataset"].removeprefix("demo/"), row["kind"], row["form"]): row
            for row in csv.DictReader(file)
        }


def test_the_readmes_replacements_are_those_of_their_file() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    rows = _replacements()
    two = {name: rows["IVLP", name, "fitted", "kind"] for name in ("digits", "fashion", "emoji")}
    assert {row["models"] for row in two.values()} == {"5"}
    digits, clothes, emoji = (
        "{:.0f} % ({:.0f} to {:.0f})".format(*(float(row[end]) for end in ("value", "low", "high")))
        for row in two.values()
    )
    assert f"have {digits} of IVLP's gain on digits, {clothes} on clothes and {emoji} on emoji" in readme
    moved = [f"{float(row['moved_value']):.0f}" for row in two.values()]
    assert f"of the decisions that IVLP moved they make {moved[0]}, {moved[1]} and {moved[2]} %." in readme


def test_a_line_for_each_claim_of_the_paper(tmp_path: Path) -> None:
    text = "source,claim,method,statistic,unit,value,low,high,samples,outcome\n"
    text += (
        "Fig. 3,Kept,VPT,moved,%,12.04,10.06,14,40,does not\nFig. 3,Kept,IVLP,moved,%,3,,,9,undecided\n"
        "Fig. 2,Falls,IVLP,change,points,-2.04,-3,-1,40,holds\nFig. 4,SOS,Zero-shot,share,%,80,79,81,10,holds\n"
        "Fig. 6,Alike,VPT,correlation,,0.126,-0.1,0.3,99,undecided\nSec.,Both,VPT,lost,%,,,,0,undecided\n"
    )
    (lines,) = made(tmp_path, "paper.md", paper=text)
    assert lines == [
        "|  | claim | statistic | VPT | IVLP |",
        "| Fig. 3 | Kept | moved | 12.0 (10.1 to 14.0) %: **does not** | 3.0 %: **undecided** |",
        "| Fig. 2 | Falls | change | – | -2.0 (-3.0 to -1.0) points: **holds** |",
        "| Fig. 4 | SOS (Zero-shot) | share | 80.0 (79.0 to 81.0) %: **holds** | – |",
        "| Fig. 6 | Alike | correlation | 0.13 (-0.10 to 0.30): **undecided** | – |",
        "| Sec. | Both | lost | undecided | – |",
    ]


def test_what_two_vectors_do_stands_by_dataset(tmp_path: Path) -> None:
    text = "method,dataset,models,kind,form,value,low,high,moved_value,moved_low,moved_high\n"
    text += (
        "IVLP,demo/digits,5,fitted,vector,1,1,1,1,1,1\nIVLP,demo/digits,5,fitted,kind,97.8,88.2,108.1,71.4,67,75\n"
        "MaPLe,demo/emoji,1,fitted,kind,,,,38.6,34,42\nGDA,demo/emoji,1,fitted,kind,9,9,9,9,9,9\n"
        "MaPLe,demo/emoji,1,mean,kind,9,9,9,9,9,9\n"
    )
    heads = "| method | dataset | seeds | share of the gain (%) | same moved decisions (%) |"
    (lines,) = made(tmp_path / "without", "distil.md", replacements=text)
    assert lines == [
        heads,
        "| IVLP | demo/digits | 5 | 98 (88 to 108) | 71 (67 to 75) |",
        "| MaPLe | demo/emoji | 1 | – | 39 (34 to 42) |",
    ]
    text += "IVLP,demo/digits,5,ceiling,ivlp,98,97,99,92.3,91.4,94\n"
    (lines,) = made(tmp_path / "with", "distil.md", replacements=text)
    assert lines == [
        f"{heads} the method, fitted to itself (%) |",
        "| IVLP | demo/digits | 5 | 98 (88 to 108) | 71 (67 to 75) | 92 (91 to 94) |",
        "| MaPLe | demo/emoji | 1 | – | 39 (34 to 42) | – |",
    ]


def test_the_findings_on_replacements_are_those_of_their_table() -> None:
    """What docs/distil.md says below it."""
    page = " ".join((ROOT / "docs/distil.md").read_text(encoding="utf-8").split())
    rows = _replacements()
    ten = [rows[name, place, "fitted", "kind"] for name in PROMPTS for place in ("digits", "fashion")]
    moved = [float(row["moved_value"]) for row in ten]
    assert f"make {min(moved):.0f} to {max(moved):.0f} % of the decisions that these moved" in page
    assert min(float(row["low"]) for row in ten) > 85 and "nearly all of the gain of VPT and IVLP" in page
    head = float(rows["TaskRes", "digits", "fitted", "kind"]["value"])
    assert f"two vectors have {head:.0f} % of its gain on digits" in page
