"""Files that runs leave and read again: results, metrics, sums, arrays, a study's parts."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipbias import report
from clipbias.explain.results import load_arrays, load_results, save_results
from clipbias.explain.study import RequestProgress, SumRequest
from clipbias.io import read_json_lines
from clipbias.training.progress import MetricWriter
from tests.fuzz.answers import answered, corrupted, mutated
from tests.report.synthetic import only_sections, synthetic_results


@given(st.data())
def test_metrics(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "loss": 1.0} for step in range(3)]
    path.write_text("".join(json.dumps(data.draw(mutated(line))) + "\n" for line in lines))

    def go_on() -> None:
        with MetricWriter(tmp_path, start_step=2) as writer:
            writer.write(2, {"loss": 0.5})
        assert read_json_lines(path)[-1] == {"step": 2, "loss": 0.5}

    answered(go_on, tmp_path)


def archive(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@given(corrupted(archive(a=np.arange(5.0), b=np.zeros((2, 0)))))
def test_archives(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    answered(lambda: load_arrays(tmp_path / "a.npz"), tmp_path)


@given(st.data())
def test_sums_of_a_study(tmp_path: Path, data: st.DataObject) -> None:
    request = SumRequest("sums", "sums", np.arange(3), lambda batch: {})
    path = tmp_path / "sums.npz"
    saved = RequestProgress(request, tmp_path, "mine")
    saved.add({}, 3, np.ones(3, bool))
    saved.save()
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    name = data.draw(st.sampled_from(sorted(arrays)))
    arrays[name] = np.asarray(data.draw(st.sampled_from((1.5, -3, "x", [1, 2], b"y"))))
    arrays["a|count"] = np.zeros(2)
    np.savez(path, **arrays)
    answered(lambda: RequestProgress(request, tmp_path, "mine"), tmp_path)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = synthetic_results(layers=1, heads=1, pictures=1)
    folder = tmp_path_factory.mktemp("study")
    save_results(folder, only_sections(results, "text_attention", "causal"))
    return folder


@given(st.data())
def test_damaged_results_of_a_study(study: Path, data: st.DataObject) -> None:
    path = study / "results.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(data.draw(corrupted(whole)))
        answered(lambda: load_results(study), study)
        content = json.loads(whole)
        part = data.draw(st.sampled_from(("dataset", "clip", "models", "methods", "format", "sections")))
        path.write_text(json.dumps({**content, part: data.draw(mutated(content[part]))}))
        answered(lambda: report.write_report(study, study / "report"), study)
    finally:
        path.write_bytes(whole)
