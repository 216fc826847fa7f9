"""Programs compiled by the compilers of accelerators that are not there.

They are installed apart (`.ci/accelerators tpu`, `.ci/accelerators gpu`), so these tests are collected only where
`CLIPBIAS_ACCELERATOR` says for which. `CLIPBIAS_ACCELERATOR_ALL=1` compiles every method for every topology in every
type; without it a part of them is compiled that has all kinds of code.
"""

import os

import pytest

from clipbias.clip import Clip
from clipbias.clip.params import empty_params
from clipbias.training.ahead import Topology, open_topology
from tools import benchmark as model

ACCELERATOR = os.environ.get("CLIPBIAS_ACCELERATOR", "")
ALL = os.environ.get("CLIPBIAS_ACCELERATOR_ALL") == "1"
TOPOLOGIES = {"tpu": ("v5e:4x4", "v5e:16x16"), "gpu": ("h100:1x1x1", "h100:1x1x8"), "": ()}[ACCELERATOR]

collect_ignore_glob = [] if ACCELERATOR else ["test_*.py"]


@pytest.fixture(scope="session")
def clip(topologies: dict[str, Topology]) -> Clip:
    """ViT-B/16, whose weights take no memory. Compilers read their flags once, before anything is computed."""
    return without_weights("ViT-B/16")


@pytest.fixture(scope="session")
def siglip(topologies: dict[str, Topology]) -> Clip:
    """SigLIP ViT-B/16, likewise."""
    return without_weights("SigLIP-B/16")


def without_weights(name: str) -> Clip:
    """A model of a geometry by name, all zeros."""
    config = model.geometry(name)
    return model.clip_of(config, empty_params(config))


@pytest.fixture(scope="session")
def topologies() -> dict[str, Topology]:
    """Those of the accelerator by name."""
    return {name: open_topology(name) for name in TOPOLOGIES}
