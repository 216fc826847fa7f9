import json
from pathlib import Path

from clipbias.training.results import Results


def row(seed: int, **values) -> dict:
    names = {"protocol": "few_shot", "method": "bias", "dataset": "d", "shots": 4, "config_hash": "h"}
    return {**names, "seed": seed, "status": "ok", **values}


def test_a_line_cut_short_is_dropped_and_what_follows_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    Results(path).append([row(1, accuracy=50.0)])
    with open(path, "a") as file:
        file.write('{"method": "bias", "da')
    results = Results(path)
    assert len(results.rows) == 1
    results.append([row(2, accuracy=60.0)])
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_cell_that_failed_and_was_repeated_counts_once(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    results.append([row(1, status="failed", error="x")])
    assert not results.finished(row(1))
    results.append([row(1, accuracy=1.0)])
    assert results.finished(row(1))
    assert [r["accuracy"] for r in results.rows] == [1.0]
    assert not results.finished({**row(1), "config_hash": "other"})
