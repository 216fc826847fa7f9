"""The binary `show` as a user runs it, on folders of which some cannot be read."""

import json
from pathlib import Path

from tests.end_to_end import binaries
from tests.report.test_runs import state, trained


def test_what_can_be_read_is_shown(cache: Path, tmp_path: Path) -> None:
    first, second = trained(tmp_path / "one", state=state("finished")), trained(tmp_path / "two")
    (tmp_path / "broken").mkdir()
    picture = tmp_path / "curves.png"
    done = binaries.run(
        "show",
        *map(str, (first, tmp_path / "broken", second, tmp_path / "nowhere")),
        "--format=json",
        f"--output={picture}",
        cache=cache,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "broken is not the work folder" in errors[0] and "nowhere" in errors[1]
    content = json.loads(done.stdout)
    assert [run["name"] for run in content["runs"]] == [str(first), str(second)]
    assert [f"error: {problem}" for problem in content["problems"]] == errors
    assert picture.read_bytes()[:4] == b"\x89PNG"
