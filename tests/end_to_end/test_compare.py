"""A results file beside published numbers."""

import json

import experiments.table1
from clipbias.data import catalog
from clipbias.report import style, sweep_tables
from tests.end_to_end import binaries


def rows(datasets: tuple[str, ...]) -> str:
    names = {"protocol": "few_shot", "method": "bias", "shots": 16, "seed": 1, "key": "h", "status": "ok"}
    facts = {"accuracy": 70.0, "parameters": 15360, "parameters_vision": 9216, "parameters_text": 6144}
    return "".join(json.dumps({**names, **facts, "dataset": dataset}) + "\n" for dataset in datasets)


def test_compare(tmp_path, monkeypatch):
    """Without its pictures, which `tests/report` draws."""
    (tmp_path / "results.jsonl").write_text(rows(catalog.ELEVEN[1:]))
    compare = {"compare": True}
    assert f"no results for {catalog.ELEVEN[0]}" in binaries.refusal_here(experiments.table1, compare, tmp_path)
    (tmp_path / "results.jsonl").write_text(rows(catalog.ELEVEN))
    monkeypatch.setattr(sweep_tables, "accuracy_figure", lambda _: style.new_figure(1, 1))
    printed, _ = binaries.succeed_here(experiments.table1, compare, tmp_path)
    assert "ublished" in printed
    assert "70.0" in printed
