"""Tables of the demo in the documents: those of the numbers beside their pictures."""

import csv
import json
from pathlib import Path

import pytest

from tests.documents import ROOT
from tools import make_demo_tables
from tools.pages import END

PROMPTS = ("IVLP", "VPT")
LINES = """method,quantity,outcome,unit,dataset,seeds,value,low,high,share,share_low,share_high
IVLP,gain,accuracy,points,demo/digits,3,5.349,3.149,7.551,,,
IVLP,gain,accuracy,points,mean,,9.9,9.9,9.9,,,
IVLP,attention alone,accuracy,points,demo/digits,3,-0.04,-2.8,-0.55,-0.01,-0.5,-0.1
IVLP,all that is added,accuracy,points,demo/digits,3,0.5,0.4,0.6,,,
IVLP,mean of what is added,accuracy,points,demo/digits,3,0.4,0.3,0.5,0.744,-0.004,0.79
IVLP,best constant,accuracy,points,demo/digits,3,0.4,0.3,0.5,,,
VPT,gain,accuracy,points,demo/digits,3,-2.0,-4.0,-1.0,,,
VPT,all that is added,accuracy,points,demo/digits,3,-2.0,-4.0,-1.0,,,
VPT,mean of what is added,accuracy,points,demo/digits,3,-2.0,-4.0,-1.0,1.0,1.0,1.0
IVLP,tokens alone,calibrated,nats,demo/fashion,3,0.4404,0.35,0.53,0.706,0.6449,0.775
"""


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
    assert whole.startswith("before\n") and whole.endswith("\nbetween\n") and "old" not in whole
    assert whole.count("between") == whole.count(END) == len(texts)
    sections = whole.split(END)[:-1]
    return [[line for line in each.splitlines() if line.startswith("| ") and "---" not in line] for each in sections]


def test_a_line_for_each_method_and_dataset(tmp_path: Path) -> None:
    ((heads, ivlp, vpt, again, nats),) = made(tmp_path, "report.md", verdict=LINES)
    columns = "gain | attention alone | tokens alone | mean of what is added | best constant"
    assert heads == again == f"| method | dataset | {columns} |"
    assert ivlp == "| IVLP | demo/digits | +5.3 (+3.1 to +7.6) | +0.0 (-2.8 to -0.6) | – | 74 (0 to 79) | – |"
    # A share of a loss is none of a gain.
    assert vpt == "| VPT | demo/digits | -2.0 (-4.0 to -1.0) | – | – | – | – |"
    assert nats == "| IVLP | demo/fashion | – | – | +0.440 (+0.350 to +0.530) | – | – |"


def test_two_families_stand_side_by_side(tmp_path: Path) -> None:
    head = LINES.splitlines()[0]
    clip = f"""{head}
IVLP,gain,accuracy,points,demo/digits,5,5.0,3.0,7.0,,,
IVLP,kept:vector,accuracy,points,demo/digits,5,1,0,2,0.2,-0.1,0.5
IVLP,kept:kind,accuracy,points,demo/digits,5,2,1,3,0.4,0.3,0.5
CoOp,gain,accuracy,points,demo/digits,5,5.0,3.0,7.0,,,
"""
    siglip = f"""{head}
IVLP,kept:kind,accuracy,points,demo/digits,5,2,1,3,0.8,0.7,0.9
IVLP,kept:vector,accuracy,points,demo/digits,5,1,0,2,0.7,0.6,0.8
IVLP,gain,accuracy,points,demo/digits,5,1.0,-1.0,2.0,,,
IVLP,gain,accuracy,points,mean,5,1.0,-1.0,2.0,,,
"""
    begin = make_demo_tables.BEGIN.format(name="verdict.csv and verdict_siglip.csv")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/verdict.csv").write_text(clip)
    (tmp_path / "images/verdict_siglip.csv").write_text(siglip)
    (tmp_path / "models.md").write_text(f"{begin}\nold\n{END}\n")
    points, nats = make_demo_tables.page(tmp_path / "models.md").split("Nats")
    heads, _, line = [each for each in points.splitlines() if each.startswith("| ")]
    of_both = "CLIP: gain | CLIP: one | CLIP: two | SigLIP: gain | SigLIP: one | SigLIP: two"
    assert heads == f"| method | dataset | {of_both} |"
    gains = "+5.0 (+3.0 to +7.0) | 20 (-10 to 50) | 40 (30 to 50) | +1.0 (-1.0 to +2.0)"
    assert line == f"| IVLP | demo/digits | {gains} | – | – |"
    assert "IVLP" not in nats


def test_the_findings_on_a_model_without_cls_are_those_of_its_verdict() -> None:
    """What docs/models.md says below the table."""
    clip, siglip = (_shares(name) for name in ("verdict", "verdict_siglip"))
    pages = " ".join((ROOT / "docs/models.md").read_text(encoding="utf-8").split())
    cells = [(method, dataset) for method in ("VPT", "IVLP") for dataset in ("digits", "emoji", "fashion")]
    small = 0
    differences = []
    lines = {}
    for outcome in ("accuracy", "calibrated"):
        for cell in cells:
            gains = [rows[*cell, "gain", outcome]["low"] > 0 for rows in (clip, siglip)]
            for rows, gain in zip((clip, siglip), gains, strict=True):
                assert not gain or all(rows[*cell, f"kept:{k}", outcome]["share_low"] < 0.5 for k in ("vector", "kind"))
            vector = siglip[*cell, "kept:vector", outcome]
            two = clip[*cell, "kept:kind", outcome]
            if all(gains):
                overlap = vector["share_low"] < two["share_high"] and two["share_low"] < vector["share_high"]
                lines[*cell, outcome] = overlap
                assert overlap or vector["share_low"] > two["share_high"]
            if outcome == "calibrated":
                small += gains[1] and vector["share_high"] < 0.5
                assert gains[0] and clip[*cell, "kept:vector", outcome]["share_high"] < 0.5
            if gains[1]:
                differences.append(abs(vector["share"] - siglip[*cell, "kept:kind", outcome]["share"]))
                assert cell[0] != "VPT" or differences[-1] < 1e-3
    assert [line for line, overlap in lines.items() if not overlap] == [("VPT", "emoji", "calibrated")]
    assert len(lines) == 10 and "in nine of the ten lines where both models gain" in pages
    assert small == 6 and "less than half of each of the six gains, on SigLIP as on CLIP." in pages
    assert f"at most {100 * max(differences):.0f} percentage points" in pages
    constants = {
        name: [100 * siglip[*cell, name, "calibrated"]["share"] for cell in cells]
        for name in ("best constant", "mean of what is added")
    }
    best, mean = (f"{min(shares):.0f} to {max(shares):.0f} %" for shares in constants.values())
    assert f"is worth {best} of all that is added to SigLIP's image tokens, the mean {mean}." in pages


def test_the_conclusions_on_a_model_without_cls_are_those_of_its_file() -> None:
    siglip = _shares("verdict_siglip")
    page = " ".join((ROOT / "docs/models.md").read_text(encoding="utf-8").split())
    with open(ROOT / "docs/images/verdict_siglip_confirmed.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = {
        (row["Model"].partition(",")[0], row["Dataset"].removeprefix("demo/"), row["More than half of the gain"])
        for row in rows
        if row["Verdict"] == "shown"
    }
    expected = {("VPT", "emoji"), ("IVLP", "emoji"), ("IVLP", "fashion")}
    assert shown == {(*cell, "tokens alone") for cell in expected}
    assert "is shown on SigLIP for VPT and IVLP on emoji and for IVLP on clothes, and not" in page
    others = {("VPT", "digits"), ("VPT", "fashion"), ("IVLP", "digits")}
    shares = [100 * siglip[*cell, "tokens alone", "calibrated"]["share"] for cell in others]
    assert f"for the other three, which have {min(shares):.0f} to {max(shares):.0f} % ([all {len(rows)}" in page


def _shares(name: str) -> dict[tuple[str, ...], dict[str, float]]:
    with open(ROOT / f"docs/images/{name}.csv", encoding="utf-8", newline="") as file:
        return {
            (row["method"], row["dataset"].removeprefix("demo/"), row["quantity"], row["outcome"]): {
                end: float(row[end] or "nan") for end in ("value", "low", "high", "share", "share_low", "share_high")
            }
            for row in csv.DictReader(file)
        }


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


def test_the_findings_on_the_demo_are_those_of_its_verdict() -> None:
    """What docs/report.md says below the picture of the verdict."""
    rows = _shares("verdict")
    methods = ("VPT", "IVLP", "MaPLe")
    datasets = ("digits", "fashion", "emoji")
    assert {key[0] for key in rows} == set(methods) and {key[1] for key in rows} == {*datasets, "mean"}
    page = " ".join((ROOT / "docs/report.md").read_text(encoding="utf-8").split())

    def spread(quantity: str, outcome: str, *places: str) -> str:
        shares = [100 * rows[method, place, quantity, outcome]["share"] for method in methods for place in places]
        return f"{min(shares):.0f} to {max(shares):.0f} %"

    for method in methods:
        gains = {place: rows[method, place, "gain", "accuracy"] for place in datasets}
        assert gains["digits"]["low"] > 0 and gains["fashion"]["low"] > 0 > gains["emoji"]["low"]
        tokens = {place: rows[method, place, "tokens alone", "accuracy"] for place in ("digits", "fashion")}
        assert tokens["digits"]["share_low"] < 0.5 < tokens["digits"]["share_high"]
        assert rows[method, "digits", "attention alone", "accuracy"]["low"] < 0
        assert rows[method, "digits", "values", "accuracy"]["share_low"] > 0.5
        assert all(rows[method, place, "gain", "calibrated"]["low"] > 0 for place in datasets)
        for place in ("fashion", "emoji"):
            assert rows[method, place, "tokens alone", "calibrated"]["share_low"] > 0.5
    tokens, best, mean = "tokens alone", "best constant", "mean of what is added"
    assert f"tokens alone has {spread(tokens, 'accuracy', 'fashion')} of the accuracy that VPT, IVLP and MaPLe" in page
    assert f"gain on clothes, and {spread(tokens, 'accuracy', 'digits')} on digits" in page
    both = ("digits", "fashion")
    assert f"The best constant is worth {spread(best, 'accuracy', *both)} of all that is added to image tokens" in page
    assert f"log-likelihood {spread(best, 'calibrated', *both)}; on emoji, with sixty classes," in page
    assert f"with sixty classes, {spread(best, 'calibrated', 'emoji')}." in page
    assert f"it is worth {spread(mean, 'accuracy', *both)} in accuracy, and in calibrated log-likelihood" in page
    parts = [spread(mean, "calibrated", place) for place in datasets]
    assert f"log-likelihood {parts[0]} on digits, {parts[1]} on clothes and {parts[2]} on emoji." in page
    assert (
        f"two vectors per layer keep {spread('kept:kind', 'calibrated', *datasets)} of the gain in calibrated" in page
    )
