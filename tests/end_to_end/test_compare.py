"""A results file beside published numbers."""

import json
from pathlib import Path

from clipbias.data import catalog
from tests.end_to_end import binaries


def rows(datasets: tuple[str, ...]) -> str:
    names = {"protocol": "few_shot", "method": "bias", "shots": 16, "seed": 1, "config_hash": "h", "status": "ok"}
    facts = {"accuracy": 70.0, "parameters": 15360, "parameters_vision": 9216, "parameters_text": 6144}
    return "".join(json.dumps({**names, **facts, "dataset": dataset}) + "\n" for dataset in datasets)


def test_compare(cache: Path, tmp_path: Path) -> None:
    arguments = ["--config=configs/table1.py", "--compare", f"--workdir={tmp_path}"]
    (tmp_path / "results.jsonl").write_text(rows(catalog.ELEVEN[1:]))
    assert f"no results for {catalog.ELEVEN[0]}" in binaries.refusal("table1", *arguments, cache=cache)
    (tmp_path / "results.jsonl").write_text(rows(catalog.ELEVEN))
    printed = binaries.succeed("table1", *arguments, cache=cache)
    assert "ublished" in printed
    assert "70.0" in printed
