"""Rows against predictions: each difference is one line, and no file ends in a traceback."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipbias.data.confusion import class_summary
from clipbias.training.calibration import Outcome
from clipbias.training.evaluator import score
from clipbias.training.run import merge_scores
from tools import recompute

CLASSES = [f"class {number}" for number in range(6)]
Arrays = dict[str, np.ndarray]


def _evaluation(folder: Path, name: str, seed: int) -> dict:
    """Writes random predictions, with their name as identity, and returns their score."""
    stream = np.random.default_rng(seed)
    labels = stream.integers(0, len(CLASSES), 200)
    logits = stream.normal(size=(200, len(CLASSES))) + 2 * np.eye(len(CLASSES))[labels]
    total = np.logaddexp.reduce(logits, axis=1)
    highest = logits.max(1)
    five = -np.sort(-logits)[:, :5] - total[:, None]
    label = logits[np.arange(200), labels] - total
    arrays = {"images": np.arange(200).astype(str), "labels": labels.astype(np.int32)}
    arrays |= {"predicted": logits.argmax(1).astype(np.int32), "class_names": np.asarray(CLASSES)}
    arrays["identity"] = np.asarray(name)
    np.savez(folder / "predictions" / f"{name}.npz", log_probs=np.c_[five, label, total].astype(np.float16), **arrays)
    scores = score(Outcome(arrays["predicted"] == labels, np.exp(total - highest) - 1, highest), None)
    return scores | {"class_summary": class_summary(labels, arrays["predicted"], CLASSES)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A work folder with a run of one evaluation, and one of two."""
    (tmp_path / "predictions").mkdir()
    rows = []
    for seed, names in enumerate((("test",), ("base", "new"))):
        files = {name: f"bias-{name}-{seed}" for name in names}
        scores = {name: _evaluation(tmp_path, file, seed) for name, file in files.items()}
        facts = {"method": "bias", "dataset": "demo/fashion", "shots": 4, "seed": seed, "status": "ok"}
        facts |= {"key": f"key {seed}", "predictions": files, "identities": files}
        rows.append(facts | merge_scores(scores))
    _write_rows(tmp_path, rows)
    return tmp_path


def _write_rows(folder: Path, rows: list[dict]) -> None:
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _read_rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_the_same_class_may_be_rounded_in_two_ways(folder, capsys):
    def near_one(arrays: Arrays) -> None:
        right = np.flatnonzero(arrays["predicted"] == arrays["labels"])
        # As a program wrote them: the label's log-probability lies up to 3 steps of float16 from the largest.
        pairs = [(-7.492e-05, -7.433e-05, 36.72), (-9.95e-03, -9.94e-03, 36.1), (-4.015e-04, -4.008e-04, 35.0)]
        for image, (first, label, total) in zip(right, pairs, strict=False):
            arrays["log_probs"][image, [0, 5, 6]] = first, label, total

    _change(folder / "predictions" / "bias-test-0.npz", near_one)
    assert not any("contradict" in line for line in _lines(folder, capsys))


def _rank_the_label_between(arrays: Arrays) -> None:
    wrong = np.flatnonzero(arrays["predicted"] != arrays["labels"])[0]
    arrays["log_probs"][wrong, 5] = arrays["log_probs"][wrong, :2].astype(np.float64).mean()


def _lines(folder: Path, capsys: pytest.CaptureFixture) -> list[str]:
    """The problems that are printed, without the row's name."""
    status = recompute.main([str(folder)])
    *problems, last = capsys.readouterr().out.splitlines()
    assert status == int(bool(problems)) and "Neither is trusted" in last
    run = f"{folder}: method bias, dataset demo/fashion, shots 4, seed "
    assert all(problem.startswith(run) for problem in problems)
    return [problem.partition("seed ")[2][3:] for problem in problems]


@pytest.mark.parametrize(
    ("number", "change", "words"),
    [
        (0, lambda row: row.update(accuracy=row["accuracy"] + 0.5), "test: accuracy is "),
        (0, lambda row: row["calibration"].update(ece=math.nan), "test: ece is nan in the row, "),
        (1, lambda row: row["class_summaries"]["new"].update(worst_accuracy=1.0), "new: worst_accuracy is 1.0 in the "),
        (1, lambda row: row["tested_images"].update(base=7), "base: images is 7 in the row, 200 by the predictions"),
        (0, lambda row: row.pop("calibration"), "test: cannot compare with bias-test-0.npz: KeyError('calibrations')"),
        (0, lambda row: row["predictions"].update(test="none"), "test: cannot compare with none.npz: FileNotFound"),
        (0, lambda row: row["identities"].update(test="a"), "test: bias-test-0.npz has the predictions of another run"),
    ],
)
def test_what_a_row_says_is_recomputed(folder, capsys, number, change, words):
    rows = _read_rows(folder)
    change(rows[number])
    _write_rows(folder, rows)
    (line,) = _lines(folder, capsys)
    assert line.startswith(words)


def _change(path: Path, change: Callable[[Arrays], object]) -> None:
    with np.load(path) as file:
        arrays = {name: np.array(file[name]) for name in file.files}
    change(arrays)
    np.savez(path, **arrays)


def _forge(arrays: Arrays) -> None:
    arrays["predicted"][arrays["predicted"] != arrays["labels"]] = -1


def _correct_one(arrays: Arrays) -> None:
    wrong = np.flatnonzero(arrays["predicted"] != arrays["labels"])[0]
    arrays["predicted"][wrong] = arrays["labels"][wrong]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_forge, "images without a prediction (-1): with all of them wrong "),
        (_correct_one, "classes and log-probabilities contradict each other on 1 image"),
        (_rank_the_label_between, "classes and log-probabilities contradict each other on 1 image"),
        (lambda arrays: arrays["log_probs"].__setitem__((3, 0), np.nan), "log-probabilities are not finite"),
        (lambda arrays: arrays["predicted"].__setitem__(3, 6), "it has numbers that belong to no class"),
        (lambda arrays: arrays.update(log_probs=arrays["log_probs"][:, :5]), "cannot compare with bias-test-0.npz"),
    ],
)
def test_predictions_are_not_trusted_either(folder, capsys, change, words):
    path = folder / "predictions" / "bias-test-0.npz"
    _change(path, change)
    assert any(words in line for line in _lines(folder, capsys))


def test_a_failure_with_results_is_told(folder, capsys):
    rows = _read_rows(folder)
    names = ("method", "dataset", "shots", "seed", "key")
    failed = {name: rows[0][name] for name in names} | {"status": "failed", "error": "broken"}
    _write_rows(folder, [failed, rows[1]])
    assert recompute.main([str(folder)]) == 0
    assert capsys.readouterr().out == "1 of 1 rows agree with their predictions; 1 run failed. Neither is trusted.\n"
    _write_rows(folder, [rows[0] | failed, rows[1]])
    assert _lines(folder, capsys) == ["the run counts as failed, but has results"]
