"""The version of this package."""

import importlib.metadata
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


try:
    __version__ = importlib.metadata.version("clipbias")
except importlib.metadata.PackageNotFoundError:  # run from its sources, not installed
    __version__ = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
