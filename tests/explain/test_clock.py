import json

import pytest

from clipbias.explain import clock as clocks
from clipbias.explain.clock import Clock
from clipbias.explain.options import StudyOptions
from clipbias.explain.results import load_results
from clipbias.explain.run import run_study
from tests.explain.test_study import make


@pytest.fixture
def now(monkeypatch):
    """The time of day, which only a test moves."""
    time = [100.0]
    monkeypatch.setattr(clocks.time, "monotonic", lambda: time[0])
    return time


def test_times_of_stopped_processes_add_up(tmp_path, now):
    path = tmp_path / "seconds.json"
    clock = Clock(path, "mine")
    with pytest.raises(KeyboardInterrupt), clock.section("relevancy"):
        now[0] += 5
        clock.save()
        now[0] += 2
        raise KeyboardInterrupt
    with clock.section("factorial"):
        now[0] += 1
    killed = Clock(path, "mine")
    with killed.section("factorial"):
        now[0] += 3
        killed.save()
        kept = path.read_text()
        now[0] += 50  # what a process loses that is killed here
    path.write_text(kept)
    again = Clock(path, "mine")
    with again.section("relevancy"):
        now[0] += 10
    assert again.seconds == {"relevancy": 17.0, "factorial": 4.0}
    assert Clock(path, "other").seconds == {}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fingerprint": "mine"}', '{"fingerprint": "mine", "seconds": 3}'])
def test_a_damaged_file_says_nothing(tmp_path, content):
    path = tmp_path / "seconds.json"
    path.write_text(content)
    assert Clock(path, "mine").seconds == {}
    path.write_text(json.dumps({"fingerprint": "mine", "seconds": {"a": "x", "b": 2}}))
    assert Clock(path, "mine").seconds == {"b": 2.0}


def test_a_study_tells_and_keeps_the_time_of_every_section(clip, tmp_path):
    about = {"name": "noise", "split": "test"}
    figures = ("text_attention", "vision_attention")

    def stop(title, done, total):
        if "attention" in title and done == 2:
            raise KeyboardInterrupt

    options = StudyOptions(batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        stopped = make(clip, tmp_path, options=options, advance=stop)
        run_study(stopped, tmp_path, dataset=about, config={}, sections=figures)
    kept = tmp_path / "parts" / "seconds.json"
    words = json.loads(kept.read_text())
    words["seconds"]["vision_attention"] += 1000  # as if it had been so long until it was stopped
    kept.write_text(json.dumps(words))
    told = []
    study = make(clip, tmp_path, options=options)
    run_study(study, tmp_path, dataset=about, config={}, sections=figures, tell=lambda *words: told.append(words))
    found = load_results(tmp_path).scalars
    assert list(found["seconds_by_section"]) == found["sections"] == ["predictions", *figures]
    assert dict(told) == found["seconds_by_section"]
    assert found["seconds_by_section"]["vision_attention"] >= 1000
    assert found["seconds"] == pytest.approx(sum(found["seconds_by_section"].values()), abs=0.06)
