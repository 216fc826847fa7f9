"""The package as it is published: a wheel, installed away from the repository, that runs the README's Python."""

import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.documents import ROOT, blocks


def call(*command: str | Path, cwd: Path) -> str:
    """Runs a command without the repository on its path; returns what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, with the build backend that is installed: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "clipbias", folder / "source" / "clipbias", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / "source")
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder)
    call(sys.executable, *build, folder / "source", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    files = {path for path in (ROOT / "clipbias").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(ROOT).as_posix() for path in files} <= set(zipfile.ZipFile(wheel).namelist())


def test_the_readme_runs_on_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    call(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    call(sys.executable, *install, cwd=tmp_path)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # The dependencies are those of this environment; its own `.pth` files, an editable install's too, are not read.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    (tmp_path / "ten_lines.py").write_text(
        blocks(ROOT / "README.md", "python")[0] + "print(clipbias.__file__)\n", encoding="utf-8"
    )
    numbers, place = call(python, "ten_lines.py", cwd=tmp_path).splitlines()
    assert numbers.startswith("(2, 3) ") and numbers.endswith(" (2, 36)")
    assert Path(place).is_relative_to(packages)
