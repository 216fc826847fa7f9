"""The package as it is published: a wheel, installed away from the repository, that runs the README's Python and the
command `clipbias` in a folder with nothing in it; and an editable install, as the README has it.
"""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from clipbias.version import __version__
from tests.documents import ROOT, blocks
from tests.report.test_runs import state, trained

pytestmark = pytest.mark.ci


def call(*command: str | Path, cwd: Path) -> str:
    """Runs a command without the repository on its path; returns what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


OFFLINE = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")  # the build backend is the installed one


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone."""
    folder = tmp_path_factory.mktemp("parent") / "clipbias"
    for name in ("clipbias", "configs", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY_NOTICES.md"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "pip", "wheel", *OFFLINE, "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def install(folder: Path, *what: str | Path) -> Path:
    """Installs the package in a new environment; returns the folder of its programs."""
    call(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # The dependencies are those of this environment; its own `.pth` files, an editable install's too, are not read.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    call(sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE, *what, cwd=folder)
    return python.parent


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("installed"), wheel)


def test_a_script_beside_the_clone_finds_the_package(source, tmp_path):
    """Python also finds the clone's folder there, a namespace package of the same name."""
    python = install(tmp_path, "-e", source) / "python"
    (source.parent / "script.py").write_text("import clipbias\nprint(clipbias.__version__)\n", encoding="utf-8")
    assert call(python, "script.py", cwd=source.parent) == f"{__version__}\n"


def test_every_file_of_the_package_is_in_a_small_wheel(wheel):
    assert wheel.stat().st_size <= 14e6
    inside = set(zipfile.ZipFile(wheel).namelist())
    for name in ("clipbias", "configs", "experiments"):
        files = {path for path in (ROOT / name).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        place = "" if name == "clipbias" else "clipbias/_commands/"
        assert {place + path.relative_to(ROOT).as_posix() for path in files} <= inside
    # No other name is taken in the folder that all packages share, and nothing is imported that stays at home.
    assert {name.partition("/")[0].partition("-")[0] for name in inside} == {"clipbias"}
    for name in (name for name in inside if name.endswith(".py")):
        source = (ROOT / name.removeprefix("clipbias/_commands/")).read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (tools|tests)\b", source, re.MULTILINE), name


def test_the_command_works_in_an_empty_folder(programs, tmp_path):
    tiny = ("--config.methods=('zero_shot',)", "--config.datasets=('demo/fashion',)", "--config.eval_batch_size=300")
    printed = call(programs / "clipbias", "table1", "--config=configs/demo.py:full", *tiny, cwd=tmp_path)
    assert "Tables and picture: workdir/demo_full/table.html" in printed
    assert "demo/fashion" in (tmp_path / "workdir" / "demo_full" / "table.md").read_text(encoding="utf-8")
    config = json.loads((tmp_path / "workdir" / "demo_full" / "config.json").read_text(encoding="utf-8"))
    assert config["model"] == "demo" and config["methods"] == ["zero_shot"]


def test_other_commands_work_in_an_empty_folder(programs, tmp_path):
    listed = call(programs / "clipbias", cwd=tmp_path)
    assert "  table1         Trains methods x datasets" in listed
    trained(tmp_path / "run", state=state("finished"))
    shown = call(programs / "clipbias", "show", "--config.runs=run", cwd=tmp_path)
    assert " train " in shown and " finished" in shown
    draw = ("--config.action=draw", "--config.datasets=demo/digits", "--config.shots=1", "--config.output=sheet.png")
    call(programs / "clipbias", "prepare_data", *draw, cwd=tmp_path)
    data = ROOT / "tests" / "data_files"
    adapter, base = data / "adapter_format_2.safetensors", data / "tiny_quick_gelu"
    flags = (f"--config.adapters={adapter}", f"--config.model={base}")
    printed = call(programs / "clipbias", "export", *flags, "--config.output=exported", cwd=tmp_path)
    assert "in the form program:" in printed and (tmp_path / "exported" / "classifier.stablehlo").is_file()
    assert (tmp_path / "sheet.png").is_file()


def test_the_readme_runs_on_the_installed_wheel(programs, tmp_path):
    python = programs / "python"
    (packages,) = (programs.parent / "lib").glob("python*/site-packages")
    lines = "".join(blocks(ROOT / "README.md", "python")) + "print(clipbias.__file__)\n"
    (tmp_path / "lines.py").write_text(lines, encoding="utf-8")
    # Without a warning of the package's.
    accuracy, *_, place = call(python, "-W", "error::UserWarning", "lines.py", cwd=tmp_path).splitlines()
    assert " images" in accuracy and (tmp_path / "maps.png").stat().st_size > 10_000
    assert Path(place).is_relative_to(packages)
