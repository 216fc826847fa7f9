"""What stands beside the package for those who cite, change or distribute it agrees with the package."""

import re
import tomllib

import pytest
import yaml

from tests.documents import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_one_version_is_told_everywhere() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert cited["version"] == PROJECT["version"] == re.search(r"^## ([\d.]+)", changes, re.MULTILINE)[1]
    assert cited["license"] == PROJECT["license"] and all((ROOT / name).is_file() for name in PROJECT["license-files"])


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "THIRD_PARTY_NOTICES.md"])
def test_every_path_that_is_named_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:clipbias|tests|tools|docs|\.ci)/[^`\s]*)`", text))
    assert named and not {name for name in named if not (ROOT / name).exists()}


def test_the_workflow_and_the_images_run_what_the_documents_say() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["tests"]["steps"][-1] == {"run": ".ci/run"} and (ROOT / ".ci/run").stat().st_mode & 0o111
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "docker").iterdir():
        command = re.search(r"^CMD \[(.*)\]$", path.read_text(encoding="utf-8"), re.MULTILINE)[1]
        assert " ".join(re.findall(r'"([^"]*)"', command)) in readme, path.name
