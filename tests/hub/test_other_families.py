"""MetaCLIP 2, SigLIP and SigLIP 2 from the hub by name, as `transformers` saved them."""

import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip
from tests.families import DATA
from tests.hub.server import Hub, Repository

NAMES = {
    "metaclip_2": "facebook/metaclip-2-worldwide-s16",
    "siglip": "google/siglip-base-patch16-224",
    "siglip_2": "google/siglip2-base-patch16-224",
}


def fetched(folder: str, hub: Hub) -> Clip:
    files = {path.name: path.read_bytes() for path in (DATA / folder).iterdir() if path.stem != "expected"}
    hub.repositories[NAMES[folder]] = Repository(files)
    return clipbias.load(NAMES[folder])


@pytest.mark.parametrize("folder", NAMES)
def test_a_model_comes_from_the_hub_by_name(folder: str, hub: Hub) -> None:
    if folder == "siglip":
        pytest.importorskip("sentencepiece")
    clip = fetched(folder, hub)
    assert (clip.name, clip.fingerprint) == (NAMES[folder], clipbias.load(DATA / folder).fingerprint)


def test_siglip_reads_whole_images_in_lower_case(hub: Hub) -> None:
    clip = fetched("siglip_2", hub)
    wide = np.random.default_rng(0).integers(0, 256, (8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 0
    assert abs(clip.preprocess(wide)[:, 0]).max() > 0.1 and clip.preprocessing.mean == (0.5, 0.5, 0.5)
    np.testing.assert_array_equal(clip.tokenize(["A CAT"]), clip.tokenize(["a cat"]))
