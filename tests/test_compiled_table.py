"""What was compiled for accelerators that are not there: lines that are added one by one, and the table of them."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from clipbias.errors import ClipbiasError
from clipbias.training.topology import CHIPS, Topology
from tests.documents import ROOT
from tools import make_compiled_table
from tools.benchmarks import __main__ as benchmark
from tools.benchmarks import ahead

PAGE = ROOT / "docs" / "performance.md"
V5E, POD, H100, EIGHT = make_compiled_table.TARGETS
STEP = {
    "estimate_bytes": 1_506_000_000,
    "bytes": 1_014_000_000,
    "temporary_bytes": 7e8,
    "fits": True,
    "remat": "products",
    "chunks": 1,
    "parts": 1,
    "chosen": "keeping products",
    "flop": 12_760_000_000_000,
    "exchanged": "4 all-reduces of 13.1 MB, none in a loop",
}


def line(topology: str, method: str, **other: Any) -> dict[str, Any]:
    """A line of the file, made up."""
    _, batch = make_compiled_table.TARGETS.get(topology, ("", 32))
    facts = {"topology": topology, "devices": f"{topology}, so many", "compiler": "a compiler 1.0", "batch": batch}
    return facts | make_compiled_table.SIZES | {"method": method} | STEP | other


def test_the_page_is_that_of_the_lines() -> None:
    made = make_compiled_table.page(PAGE, ROOT / make_compiled_table.ROWS)
    written = PAGE.read_text(encoding="utf-8")
    assert written == made, "run python -m tools.make_compiled_table docs/performance.md"


def test_a_table_tells_what_is_there_and_what_is_missing() -> None:
    lines = [
        line(V5E, "ivlp"),
        line(V5E, "ivlp", bytes=2e9),
        line(POD, "ivlp", batch=32, bytes=9e9),
        line(H100, "ivlp", remat="half", chunks=4, parts=16),
        line(H100, "bias", fits=False),
        line(H100, "bias", dtype="float32", bytes=9e9),
        line(EIGHT, "bias", classes=100),
        line("v6e:4x4", "bias"),
    ]
    text = make_compiled_table.section(lines, ["bias", "maple", "ivlp"])
    rows = [row for row in text.splitlines() if row.startswith("| ")]
    # The last line of a method counts, and those of other sizes or devices do not.
    assert rows[2:] == [
        "| bias | – | – | 1.01 (1.51), does not fit | – | – | – |",
        f"| ivlp | 2.00 (1.51) | – | 1.01 (1.51), half, 4 x 16 parts | – | 12.76 | {STEP['exchanged']} |",
    ]
    assert f"- v5e-16: {V5E}, so many, batch 32, by a compiler 1.0." in text
    missing = text.partition("Not compiled yet:")[2]
    assert "- v5e-16: bias, maple.\n- v5e-256: all methods.\n- H100: maple.\n- 8 x H100: all methods." in missing
    assert missing.count("--rows=docs/compiled.jsonl") == 4 and "--batch=256" in missing


def test_a_whole_table_asks_for_nothing() -> None:
    text = make_compiled_table.section([line(target, "ivlp") for target in make_compiled_table.TARGETS], ["ivlp"])
    assert "Not compiled" not in text and "–" not in text


def test_a_page_without_a_place_for_the_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# A page\n")
    with pytest.raises(ClipbiasError, match=r"page\.md has no place for the table; write the lines"):
        make_compiled_table.page(tmp_path / "page.md", ROOT / make_compiled_table.ROWS)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that were compiled, in their order, with made-up results; `maple` is refused at first."""
    found: list[str] = []

    def compile_method(asked: ahead.Asked, name: str, topology: Topology, *, run: int) -> dict[str, Any]:
        found.append(name)
        if name == "maple" and found.count(name) == 1:
            raise jax.errors.JaxRuntimeError("INTERNAL: a bug\nin many lines")
        return {"method": name} | STEP

    monkeypatch.setattr(ahead, "open_topology", lambda name: Topology(name, CHIPS["v5e"], jax.devices()[:1]))
    monkeypatch.setattr(Topology, "compiler", "a compiler 1.0")
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)  # devices are there already
    monkeypatch.setattr(ahead, "compile_method", compile_method)
    return found


def test_what_was_compiled_is_not_compiled_again(
    compiled: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(line(V5E, "coop"))[:40])  # cut short by a crash
    command = ["compile", "--geometry=tiny", f"--topology={V5E}", f"--rows={path}"]
    some = [*command, "--methods", "bias", "maple", "vpt"]
    assert benchmark.main(some) == 1 and compiled == ["bias", "maple", "vpt"]
    told = capsys.readouterr().err
    assert "maple: INTERNAL: a bug\nerror: the compiler refused maple, for the reasons above.\n" in told
    assert benchmark.main(some) == 0 and compiled[3:] == ["maple"]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [point["method"] for point in result["points"]] == ["bias", "maple", "vpt"]
    # Of another size, or by another compiler, it is another program.
    assert benchmark.main([*some[:-2], "--packed=3"]) == 0 and compiled[4:] == ["bias"]
    monkeypatch.setattr(Topology, "compiler", "a compiler 2.0")
    assert benchmark.main(some[:-2]) == 0 and compiled[5:] == ["bias"]
    rows = [json.loads(text) for text in path.read_text().splitlines()[1:]]
    assert [(row["method"], row["runs"], row["compiler"][-3:]) for row in rows] == [
        *(("bias", 1, "1.0"), ("vpt", 1, "1.0"), ("maple", 1, "1.0"), ("bias", 3, "1.0"), ("bias", 1, "2.0")),
    ]


def test_a_file_that_cannot_be_written_is_one_sentence(
    compiled: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "nowhere" / "rows.jsonl"
    assert benchmark.main(["compile", "--geometry=tiny", f"--rows={path}", "--methods", "bias"]) == 1
    assert capsys.readouterr().err.startswith(f"error: cannot add the line to {path}: ")
    assert compiled == []  # told before anything is compiled


def test_every_method_is_compiled_and_one_of_each_kind_first() -> None:
    names = ahead.trained_methods()
    kinds = [ahead.METHODS[name][0] for name in names]
    assert len(set(names)) == len(names) == sum(kind.trains for kind, _ in ahead.METHODS.values())
    assert len(set(kinds)) == len(set(kinds[: len(set(kinds))])) < len(names)
