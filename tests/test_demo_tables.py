"""Tables of the demo in the documents: those of the numbers beside their pictures."""

from pathlib import Path

import pytest

from clipbias.errors import ClipbiasError
from tests.documents import ROOT
from tools import make_demo_tables
from tools.pages import END

HEADS = "method,quantity,outcome,unit,dataset,seeds,value,low,high,images_low,images_high,share,share_low,share_high"
LINES = f"""{HEADS}
IVLP,gain,accuracy,points,demo/digits,3,9.9,9.9,9.9,,,,,
IVLP,gain,accuracy,points,mean,,5.349,-2.0,8.0,3.149,7.551,,,
IVLP,scale,accuracy,points,mean,,-0.04,-10.0,6.0,-2.8,-0.55,,,
Bias tuning,gain,accuracy,points,mean,,2.0,-3.0,7.0,0.04,3.99,,,
IVLP,gain,log_likelihood,nats,demo/digits,3,0.01,-0.06,0.07,,,,,
IVLP,values,log_likelihood,nats,demo/digits,3,0.09,0.05,0.14,,,,,
IVLP,values,log_likelihood,nats,demo/fashion,3,0.44,0.35,0.53,,,0.706,0.6449,0.775
IVLP,kind,log_likelihood,nats,demo/fashion,3,0.4,0.3,0.5,,,0.744,-0.004,0.79
"""


@pytest.mark.parametrize("name", make_demo_tables.PAGES)
def test_the_pages_are_those_of_the_numbers(name: str) -> None:
    path = ROOT / "docs" / name
    told = f"run python -m tools.make_demo_tables docs/{name}"
    assert path.read_text(encoding="utf-8") == make_demo_tables.page(path), told


def made(folder: Path, page: str, **texts: str) -> list[list[str]]:
    """The lines of the tables of each section that is made of these numbers."""
    (folder / "images").mkdir()
    begins = [make_demo_tables.BEGIN.format(name=f"{name}.csv") for name in texts]
    for name, text in texts.items():
        (folder / "images" / f"{name}.csv").write_text(text)
    (folder / page).write_text("before\n" + "".join(f"{begin}\nold\n{END}\nbetween\n" for begin in begins))
    whole = make_demo_tables.page(folder / page)
    assert whole.startswith("before\n") and whole.endswith("\nbetween\n") and "old" not in whole
    assert whole.count("between") == whole.count(END) == len(texts)
    sections = whole.split(END)[:-1]
    return [[line for line in each.splitlines() if line.startswith("| ") and "---" not in line] for each in sections]


def test_points_are_means_and_shares_are_of_datasets(tmp_path: Path) -> None:
    ((first, ivlp, bias, second, shares),) = made(tmp_path, "report.md", verdict=LINES)
    assert first == "| method | gain | attention | scale | values | one vector | two, by kind | one per token |"
    assert ivlp == "| IVLP | +5.3 (+3.1 to +7.6) | – | +0.0 (-2.8 to -0.6) | – | – | – | – |"
    assert bias == "| Bias tuning | +2.0 (+0.0 to +4.0) | – | – | – | – | – | – |"
    assert second == "| method | dataset | attention | scale | values | one vector | two, by kind | one per token |"
    # On digits the gain is not surely above 0, and bias tuning has none here.
    assert shares == "| IVLP | demo/fashion | – | – | 71 (64 to 78) | – | 74 (0 to 79) | – |"


def test_the_most_accurate_of_a_kind_comes_first(tmp_path: Path) -> None:
    text = "method,label,kind,parameters,accuracy,spread over seeds\n"
    text += "coop,CoOp,Prompts,384.0,51.04,\nbias,Bias,Weights,896.0,54.9,\nmaple,MaPLe,Prompts,50432.0,51.06,\n"
    found, shares = made(tmp_path, "methods.md", zoo=text, methods_verdict=LINES)
    assert found == [
        "| kind | method | parameters | accuracy (%) |",
        "| Prompts | `maple` | 50,432 | 51.1 |",
        "| Prompts | `coop` | 384 | 51.0 |",
        "| Weights | `bias` | 896 | 54.9 |",
    ]
    assert [line.split(" | ")[1:4] for line in shares] == [
        ["dataset", "attention", "scale"],
        ["demo/fashion", "–", "–"],
    ]


def test_other_pages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClipbiasError, match=r"runs\.md has no table of the demo; report\.md and methods\.md have"):
        make_demo_tables.page(tmp_path / "runs.md")
