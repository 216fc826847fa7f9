"""Progress on a terminal and elsewhere."""

import io
import itertools
import re
import time

import pytest

from clipbias.training import progress
from clipbias.training.progress import Progress, forecast, readable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_it_shows_the_work_the_values_and_the_end(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is measured by a clock that only goes forward: the wall's is set back again and again."""
    later, ticks = itertools.count(), itertools.count(step=10.0)
    monkeypatch.setattr(time, "time", lambda: 1.7e9 - 3600 * next(later))
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr("sys.stderr", shown := stream())
    bar = Progress(3, title="cells")
    for _ in range(3):
        bar.at_work("bias on demo/digits, 4 shots")
        bar.advance(1, {"lr": 0.0025, "images/s": 133512.4})
    bar.say("a line")
    bar.close()
    for part in ("cells", "bias on demo/digits, 4 shots", "images/s=133,512", "lr=0.0025", " 3/3", "a line\n"):
        assert part in shown.getvalue(), part
    assert ("\r" in shown.getvalue()) == shown.isatty()
    assert "-" not in shown.getvalue().replace("\x1b", "")  # no negative duration
    assert not shown.isatty() or all(f" {done}/3," in shown.getvalue() for done in (1, 2, 3))


def test_lines_elsewhere_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", shown := io.StringIO())
    with progress.progress(100, title="steps") as bar:
        for _ in range(100):
            bar.advance()
    first, last = shown.getvalue().splitlines()
    assert first.startswith("steps 0/100") and last.startswith("steps 100/100")


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_the_time_left_is_told_from_the_first_batches(
    stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen batches of thirty seconds each are eight minutes, of which seven are left after two."""
    now = 0.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    monkeypatch.setattr("sys.stderr", shown := stream())
    bar = Progress(16, title="measurements")
    for _ in range(16):
        now += 30.0
        bar.advance()
    bar.close()
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown.getvalue()) if line.strip()]
    assert "left" not in lines[0] and " 0/16" in lines[0]
    (second,) = [line for line in lines if " 2/16" in line]
    assert ", about 7 min left" in second
    assert any(" 15/16, about 30 s left" in line for line in lines) and "left" not in lines[-1]


def test_forecasts_are_round() -> None:
    seconds = (2.0, 44.0, 89.0, 100.0, 3600.0, 3 * 3600.0)
    assert [forecast(each).split()[1:3] for each in seconds] == [
        ["10", "s"],
        ["40", "s"],
        ["90", "s"],
        ["2", "min"],
        ["60", "min"],
        ["3", "h"],
    ]


def test_nothing_is_counted_before_a_total_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", shown := io.StringIO())
    bar = Progress(0)
    bar.advance()
    assert not shown.getvalue()
    bar.start(4, done=2)
    bar.advance(2)
    bar.close()
    assert "4/4" in shown.getvalue()


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_steps_of_a_part_move_the_whole_and_stages_are_named(
    stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two groups of 2 and 1 runs: after 3 of 4 steps of the first, 1.5 of 3 runs are done; the second counts none."""
    now = 0.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr("sys.stderr", shown := stream())
    whole = Progress(3, unit="run", title="runs")
    part = whole.part(2, "bias on digits")
    part.at_work("compiling")
    part.start(4)
    for _ in range(3):
        now += 20.0
        part.advance()
    part.say("of a part")
    part.close()
    whole.advance_to(2)
    now += 20.0
    whole.part(1, "coop on digits").at_work("evaluating")
    whole.advance_to(3)
    whole.close()
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown.getvalue()) if line.strip()]
    assert any(" 1.5/3, about 60 s left" in line for line in lines) and " 3/3" in lines[-1]
    for stage in ("bias on digits: compiling", "coop on digits: evaluating"):
        assert any(line.startswith(stage) for line in lines)
    assert "of a part" not in shown.getvalue()


def test_numbers_are_written_as_people_do() -> None:
    assert [readable(value) for value in (133500.4, 412.0, 0.0025, 1e-5)] == ["133,500", "412", "0.0025", "1e-05"]
