from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipbias
from experiments import train
from tests.end_to_end.binaries import CLASS_NAMES, SHORT_RUN, save_random, succeed_here


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs, shared by the processes of a test session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of noise per class and split."""
    root = tmp_path_factory.mktemp("images")
    for number, name in enumerate(CLASS_NAMES):
        for index in range(2):
            pixels = np.random.default_rng([number, index]).integers(0, 255, (20, 24, 3), dtype=np.uint8)
            for split in ("train", "test"):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An IVLP and a bias adapter with random learnables; the second in a folder as `train` leaves it."""
    folder = tmp_path_factory.mktemp("adapters")
    clip = clipbias.load(model)
    paths = [folder / "ivlp.safetensors", folder / "bias" / "adapter.safetensors"]
    for method, path in zip(("ivlp", "bias"), paths, strict=True):
        save_random(clip, method, CLASS_NAMES, path)
    return [str(paths[0]), str(paths[1].parent)]


@pytest.fixture(scope="session")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """One short run of `train` to its end, not to be changed: its work folder, what it printed and said on stderr."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, *succeed_here(train, SHORT_RUN | {"model": str(model)}, folder)
